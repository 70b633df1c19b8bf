//! Transactions that only the leader can commit.

use std::time::Duration;

use tenure_cas::HeadSlot;
use tenure_core::{LeadershipHandle, Lost};
use thiserror::Error;
use tokio_postgres::{
    Transaction,
    error::SqlState,
    types::{ToSql, Type},
};

use crate::store::PostgresStore;

/// What the server says when a fence refuses.
const IS_OVER: &str = "this leadership is over";

/// Makes `transaction` one that commits only under this leadership. Call it first in the transaction.
///
/// # Behavior
/// - Fails unless the election's record says that this leadership stands. The transaction can then do nothing but roll back.
/// - Locks the record until the transaction ends: no other candidate becomes the leader before that. Heartbeats go on, and candidates enter and
///   leave. Keep the transaction short.
/// - Bounds the transaction by what is left of the leadership's window now: PostgreSQL 17 ends it after that time, earlier versions end it when it
///   is idle for that time or a statement takes as long. So a client that is frozen, or cut off, holds up a takeover for no longer.
///   Each wait for a lock is bounded by it, too. Shorter timeouts of one's own stay in force.
/// - Takes one round trip, and works through PgBouncer in transaction mode.
///
/// The transaction has to be one of the database that the elections are in. Its user needs `USAGE` of the schema, and `SELECT` and
/// `UPDATE (key)` of its table `records`.
///
/// # What a fence does not cover
/// - `COPY … FROM STDIN` within the transaction: PostgreSQL waits for its data without a time limit, and the next leader with it. The backends
///   that block a session are `pg_blocking_pids(pid)`; `pg_terminate_backend` ends them.
/// - A savepoint: rolling back to one that is older than the fence gives the lock up. Fence before the first.
/// - `PREPARE TRANSACTION`: its commit comes at any time, without a time limit.
///
/// With the isolation level `REPEATABLE READ` or `SERIALIZABLE` it fails with the code 40001 if a candidate has entered or left since the first
/// statement. Begin the transaction again.
///
/// ```no_run
/// # pub async fn charge(client: &mut tokio_postgres::Client, leadership: tenure_core::Leadership) -> Result<(), Box<dyn std::error::Error>> {
/// let mut transaction = client.transaction().await?;
/// tenure_postgres::fence(&mut transaction, &leadership).await?;
/// transaction.execute("UPDATE subscriptions SET paid = true WHERE id = $1", &[&7]).await?;
/// transaction.commit().await?;
/// # Ok(()) }
/// # let _ = charge;
/// ```
///
/// # Errors
/// [`FenceError`]. Roll back after each.
///
/// # Cancellation safety
/// The transaction may be fenced, failed, or neither: roll it back.
pub async fn fence(
    transaction: &mut Transaction<'_>,
    leadership: &LeadershipHandle,
) -> Result<(), FenceError> {
    let query = FenceQuery::new(leadership)?;
    let parameters: [(&(dyn ToSql + Sync), Type); 4] = [
        (&query.key(), Type::TEXT),
        (&query.token(), Type::INT8),
        (&query.nonce(), Type::TEXT),
        (&query.milliseconds(), Type::INT4),
    ];
    match transaction.query_typed(query.sql(), &parameters).await {
        Ok(_) => Ok(()),
        Err(error) if is_over(&error) => Err(FenceError::Over),
        Err(error) => Err(FenceError::Database(error)),
    }
}

fn is_over(error: &tokio_postgres::Error) -> bool {
    error.as_db_error().is_some_and(|error| {
        *error.code() == SqlState::INVALID_TEXT_REPRESENTATION && error.message().contains(IS_OVER)
    })
}

/// Why a transaction is not fenced.
#[derive(Debug, Error)]
#[non_exhaustive]
pub enum FenceError {
    /// The leadership is over by this process's clock. Nothing was sent.
    #[error(transparent)]
    Lost(#[from] Lost),
    /// The database says that the leadership is over.
    #[error("the database says that this leadership is over")]
    Over,
    /// The leadership is one of another store.
    #[error("the leadership is not one of a PostgreSQL database")]
    OtherStore,
    /// The statement failed.
    #[error("the fence of the transaction failed")]
    Database(#[source] tokio_postgres::Error),
}

/// The statement of [`fence`], for another client library. Run it first in a transaction, soon after this was made.
///
/// The parameters `$1` to `$4` are [`key`](Self::key), [`token`](Self::token), [`nonce`](Self::nonce) and
/// [`milliseconds`](Self::milliseconds). It fails with the code 22P02 and the text `this leadership is over` when it is. The README has an
/// example with sqlx.
#[derive(Clone, Debug)]
pub struct FenceQuery {
    sql: String,
    key: String,
    token: i64,
    nonce: String,
    milliseconds: i32,
}

impl FenceQuery {
    /// The statement for a leadership that is not over.
    ///
    /// # Errors
    /// [`FenceError::Lost`] and [`FenceError::OtherStore`].
    pub fn new(leadership: &LeadershipHandle) -> Result<Self, FenceError> {
        let slot = HeadSlot::<PostgresStore>::of(leadership).ok_or(FenceError::OtherStore)?;
        leadership.ensure()?;
        let window = leadership.remaining().max(Duration::from_millis(1));
        Ok(Self {
            sql: statement(slot.store.schema()),
            // No store has a larger one.
            token: i64::try_from(slot.token.get()).unwrap_or(i64::MAX),
            nonce: slot.nonce.to_owned(),
            key: slot.key,
            milliseconds: i32::try_from(window.as_millis()).unwrap_or(i32::MAX),
        })
    }

    /// The statement.
    pub fn sql(&self) -> &str {
        &self.sql
    }

    /// `$1`: the key of the election's record.
    pub fn key(&self) -> &str {
        &self.key
    }

    /// `$2`: the fencing token.
    pub fn token(&self) -> i64 {
        self.token
    }

    /// `$3`: identifies the term.
    pub fn nonce(&self) -> &str {
        &self.nonce
    }

    /// `$4`: what was left of the leadership's window.
    pub fn milliseconds(&self) -> i32 {
        self.milliseconds
    }
}

/// Locks the record against the next leader, and fails by a text that is no number, which no planner can evaluate before it has read the record.
///
/// The lock is one of the row's key columns, of which the token is one; a table without that column has an error. Swaps that leave the token do not wait for it: shared locks of a
/// row are not granted in order, and those of a busy leader overlap all the time.
fn statement(schema: &str) -> String {
    // The settings are in force before the row is locked. Zero is none; null where the version does not have it.
    let given = |setting: &str| {
        format!("(extract(epoch FROM current_setting('{setting}', true)::interval) * 1000)::int AS {setting}")
    };
    // A limit of the transaction that runs already is not replaced by another one, but by none.
    let shortened = |setting: &str| {
        format!(
            "CASE WHEN {setting} = 0 OR {setting} > $4 THEN \
             CASE WHEN set_config('{setting}', '0', true) IS NOT NULL THEN set_config('{setting}', $4::text, true) END END"
        )
    };
    let settings =
        ["lock_timeout", "idle_in_transaction_session_timeout", "statement_timeout", "transaction_timeout"];
    format!(
        "WITH given AS MATERIALIZED (SELECT {}), settings AS MATERIALIZED (SELECT {} FROM given), \
         locked AS MATERIALIZED (SELECT token, convert_from(body, 'UTF8')::json AS record FROM settings, \"{schema}\".records AS election \
         WHERE key = $1 FOR KEY SHARE OF election) \
         SELECT CASE WHEN (SELECT token::bigint = $2 AND record#>>'{{queue,0,nonce}}' = $3 FROM locked) \
         THEN '1' ELSE '{IS_OVER}' END::int FROM settings",
        settings.map(given).join(", "),
        settings.map(shortened).join(", "),
    )
}
