//! The leader's writes. Each is a transaction that first proves that its writer leads, or is refused.
//!
//! Where the election is in this database, the proof is the election itself. Its record is locked until the commit, and no other candidate
//! can become the leader before that. So no time is left between the check and the write, and a write that is committed was the leader's.
//! Everywhere else it is the token: an earlier leader is refused from the first write of the next one on.

use sqlx::{Any, AssertSqlSafe, Transaction};
use tenure::{
    FencingToken, LeadershipHandle,
    postgres::{FenceError, FenceQuery},
};
use thiserror::Error;

use super::{Database, Renewal};
use crate::{clock::now_ms, payment_api::Receipt};

/// The code with which PostgreSQL fails a statement of [`FenceQuery`] once the leadership is over.
const FENCE_REFUSES: &str = "22P02";

/// Why a write was not made.
#[derive(Debug, Error)]
pub(crate) enum WriteError {
    /// A newer leader has written.
    #[error("the database refuses fencing token {token}: a newer leader has written")]
    Stale { token: FencingToken },
    /// The token does not fit into the column. No store issues such a number.
    #[error("fencing token {token} is too large for the database")]
    TokenTooLarge { token: FencingToken },
    /// The leadership is over, by the clock or by the election in the database.
    #[error("the transaction was not begun: {0}")]
    Over(#[source] FenceError),
    #[error("the database failed")]
    Database(#[from] sqlx::Error),
}

/// What proves that a writer leads.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Proof<'a> {
    /// Its token is not lower than that of an earlier write.
    Token(FencingToken),
    /// The election, which is in the same database, says so.
    Election(&'a LeadershipHandle),
}

impl From<FencingToken> for Proof<'_> {
    fn from(token: FencingToken) -> Self {
        Self::Token(token)
    }
}

impl Database {
    /// How a leader proves in this database that it leads.
    pub(crate) fn proof<'a>(&self, leadership: &'a LeadershipHandle) -> Proof<'a> {
        if self.has_election { Proof::Election(leadership) } else { Proof::Token(leadership.fencing_token()) }
    }

    /// Begins a term: from here on, the database refuses the writes of earlier leaders.
    ///
    /// This waits for an earlier leader's running transaction, because that holds the fence's row. (Where the proof is the election, the
    /// takeover has waited.) What it commits is visible to the reads that follow.
    pub(crate) async fn begin_term(
        &self,
        proof: impl Into<Proof<'_>>,
        leader: &str,
    ) -> Result<(), WriteError> {
        let mut tx = self.pool.begin().await?;
        let number = prove(&mut tx, proof.into()).await?;
        sqlx::query(
            "INSERT INTO terms (token, leader, claimed_at) VALUES ($1, $2, $3) ON CONFLICT DO NOTHING",
        )
        .bind(number)
        .bind(leader)
        .bind(now_ms())
        .execute(&mut *tx)
        .await?;
        Ok(tx.commit().await?)
    }

    /// Records a charge and advances the subscription to its next period, in one transaction. Repeating it has no
    /// effect.
    pub(crate) async fn record(
        &self,
        renewal: &Renewal,
        receipt: &Receipt,
        proof: impl Into<Proof<'_>>,
    ) -> Result<(), WriteError> {
        let mut tx = self.pool.begin().await?;
        let number = prove(&mut tx, proof.into()).await?;
        sqlx::query(
            "INSERT INTO renewals (subscription, period, amount_cents, charge, token, recorded_at)
             VALUES ($1, $2, $3, $4, $5, $6) ON CONFLICT DO NOTHING",
        )
        .bind(renewal.subscription)
        .bind(renewal.request().period)
        .bind(receipt.amount_cents)
        .bind(receipt.charge)
        .bind(number)
        .bind(now_ms())
        .execute(&mut *tx)
        .await?;
        sqlx::query(
            "UPDATE subscriptions SET periods_paid = periods_paid + 1, renews_at = $1, not_before = 0
             WHERE id = $2 AND periods_paid = $3",
        )
        .bind(renewal.next_renewal_at)
        .bind(renewal.subscription)
        .bind(renewal.periods_paid)
        .execute(&mut *tx)
        .await?;
        Ok(tx.commit().await?)
    }

    /// Postpones a renewal until a time, so that one that cannot be charged does not delay the others.
    pub(crate) async fn postpone(
        &self,
        renewal: &Renewal,
        until: i64,
        proof: impl Into<Proof<'_>>,
    ) -> Result<(), WriteError> {
        let mut tx = self.pool.begin().await?;
        prove(&mut tx, proof.into()).await?;
        sqlx::query("UPDATE subscriptions SET not_before = $1 WHERE id = $2 AND periods_paid = $3")
            .bind(until)
            .bind(renewal.subscription)
            .bind(renewal.periods_paid)
            .execute(&mut *tx)
            .await?;
        Ok(tx.commit().await?)
    }
}

/// The first statement of each of the leader's transactions. Returns the token as a number.
async fn prove(tx: &mut Transaction<'_, Any>, proof: Proof<'_>) -> Result<i64, WriteError> {
    match proof {
        Proof::Token(token) => raise_fence(tx, token).await,
        Proof::Election(leadership) => check_election(tx, leadership).await,
    }
}

/// Locks the election's record until the commit, or fails if it has another leader. It also bounds the transaction by what is left of the
/// leadership, so that the next leader need not wait for one that is stopped within a transaction.
async fn check_election(
    tx: &mut Transaction<'_, Any>,
    leadership: &LeadershipHandle,
) -> Result<i64, WriteError> {
    let fence = FenceQuery::new(leadership).map_err(WriteError::Over)?;
    let checked = sqlx::query(AssertSqlSafe(fence.sql().to_owned()))
        .bind(fence.key())
        .bind(fence.token())
        .bind(fence.nonce())
        .bind(fence.milliseconds())
        .execute(&mut **tx)
        .await;
    match checked {
        Ok(_) => Ok(fence.token()),
        Err(sqlx::Error::Database(refusal)) if refusal.code().as_deref() == Some(FENCE_REFUSES) => {
            Err(WriteError::Over(FenceError::Over))
        }
        Err(error) => Err(error.into()),
    }
}

/// Raises the fence to a token, or is refused.
///
/// It locks the fence's row until the commit, so that no other leader's transaction comes between this check and the
/// writes after it.
async fn raise_fence(tx: &mut Transaction<'_, Any>, token: FencingToken) -> Result<i64, WriteError> {
    let number = i64::try_from(token.get()).map_err(|_| WriteError::TokenTooLarge { token })?;
    let raised = sqlx::query("UPDATE fence SET token = $1 WHERE resource = 'renewals' AND token <= $1")
        .bind(number)
        .execute(&mut **tx)
        .await?
        .rows_affected();
    if raised == 0 { Err(WriteError::Stale { token }) } else { Ok(number) }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        calendar::{DAY_MS, Plan},
        db::{
            NewSubscription, RecordedRenewal,
            tests::{postgres, sqlite},
        },
    };

    fn token(number: u64) -> FencingToken {
        FencingToken::new(number).unwrap()
    }

    const RECEIPT: Receipt = Receipt { charge: 1, amount_cents: 990, was_duplicate: false };

    fn subscription(id: i64) -> NewSubscription {
        NewSubscription {
            id,
            plan: Plan::Monthly,
            price_cents: 990,
            started_at: 20_000 * DAY_MS,
            periods_paid: 3,
        }
    }

    /// Checks the fence, on either database.
    async fn check_fence(database: &Database) {
        database.add_subscriptions(&[subscription(1), subscription(2)]).await.unwrap();
        let due = database.due(i64::MAX, now_ms(), 10).await.unwrap();

        // given: the leader with token 7, and then one with token 9
        database.begin_term(token(7), "old").await.unwrap();
        database.record(&due[0], &RECEIPT, token(7)).await.unwrap();
        database.begin_term(token(9), "new").await.unwrap();

        // when: the old one writes again
        let record = database.record(&due[1], &RECEIPT, token(7)).await;
        let postpone = database.postpone(&due[1], i64::MAX, token(7)).await;
        let begin_term = database.begin_term(token(7), "old").await;

        // then: its writes are refused
        for refused in [record, postpone, begin_term] {
            assert!(matches!(refused, Err(WriteError::Stale { .. })), "{refused:?}");
        }
        let expected = RecordedRenewal {
            subscription: 1,
            period: due[0].request().period,
            amount_cents: RECEIPT.amount_cents,
        };
        assert_eq!(database.recorded().await.unwrap(), [expected]);
        let still_due = database.due(due[1].renews_at, now_ms(), 10).await.unwrap();
        assert_eq!(still_due, due[1..], "only the paid subscription advances");

        // and: if the new one records the same renewal twice, it counts once
        database.record(&due[1], &RECEIPT, token(9)).await.unwrap();
        database.record(&due[1], &RECEIPT, token(9)).await.unwrap();
        let next = database.due(due[1].next_renewal_at, now_ms(), 10).await.unwrap();
        let advanced = next.iter().find(|renewal| renewal.subscription == 2).unwrap();
        assert_eq!((advanced.periods_paid, advanced.renews_at), (4, due[1].next_renewal_at));
    }

    /// Hazard G1 and G24: the token is checked in the transaction that writes.
    #[tokio::test]
    async fn a_stale_leader_writes_nothing_to_sqlite() {
        let (_dir, database) = sqlite().await;
        check_fence(&database).await;
    }

    #[tokio::test]
    async fn a_stale_leader_writes_nothing_to_postgres() {
        let database = Database::open(&postgres().await).await.unwrap();
        check_fence(&database).await;
    }

    /// PostgreSQL ends the transaction of a leader that is stopped within it.
    #[tokio::test]
    async fn on_postgres_the_next_leader_does_not_wait_for_a_stopped_one() {
        let url = postgres().await;
        let (old, new) = (Database::open(&url).await.unwrap(), Database::open(&url).await.unwrap());

        // given: a leader that is stopped with the fence's row locked
        let mut stopped = old.pool.begin().await.unwrap();
        raise_fence(&mut stopped, token(7)).await.unwrap();

        // when: the next leader begins its term
        new.begin_term(token(9), "new").await.unwrap();

        // then: the old one's transaction fails
        assert!(stopped.commit().await.is_err());
        assert!(matches!(old.begin_term(token(7), "old").await, Err(WriteError::Stale { .. })));
    }

    /// Hazards G1 and G24, where the election is in the same database: it decides, and not the token.
    #[tokio::test]
    async fn only_the_leader_of_the_election_writes_to_its_database() {
        let url = postgres().await;
        let database = Database::open(&url).await.unwrap().with_election();
        database.add_subscriptions(&[subscription(1), subscription(2)]).await.unwrap();
        let due = database.due(i64::MAX, now_ms(), 10).await.unwrap();
        let elector = tenure::connect(&url).await.unwrap();

        // given: a leader, which writes
        let leadership = elector.campaign("billing").await.unwrap();
        let former = leadership.handle();
        database.begin_term(database.proof(&former), "former").await.unwrap();
        database.record(&due[0], &RECEIPT, database.proof(&former)).await.unwrap();

        // when: it leads no more, by its own knowledge or by the database's alone
        let refused_by_election = async |leadership: &LeadershipHandle| {
            database.record(&due[1], &RECEIPT, database.proof(leadership)).await
        };
        leadership.resign().await.unwrap();
        let resigned = refused_by_election(&former).await;
        let next = elector.campaign("billing").await.unwrap();
        sqlx::query("DELETE FROM tenure.records WHERE key = 'e/billing'")
            .execute(&database.pool)
            .await
            .unwrap();
        let deleted = refused_by_election(&next).await;

        // then: its writes are refused
        for refused in [resigned, deleted] {
            assert!(matches!(refused, Err(WriteError::Over(_))), "{refused:?}");
        }
        assert_eq!(database.recorded().await.unwrap().len(), 1);
        let fence: i64 =
            sqlx::query_scalar("SELECT token FROM fence").fetch_one(&database.pool).await.unwrap();
        assert_eq!(fence, 0, "the token is not needed");
        drop(next);
        elector.close().await;
    }

    /// A leader that crashes within a transaction leaves no effect of it.
    #[tokio::test]
    async fn a_dropped_transaction_has_no_effect() {
        let (_dir, database) = sqlite().await;
        let mut tx = database.pool.begin().await.unwrap();
        raise_fence(&mut tx, token(9)).await.unwrap();
        drop(tx);
        database.begin_term(token(7), "next").await.unwrap();
    }

    #[tokio::test]
    async fn a_postponed_renewal_is_not_due_until_then() {
        let (_dir, database) = sqlite().await;
        let new =
            NewSubscription { id: 1, plan: Plan::Annual, price_cents: 5, started_at: 0, periods_paid: 1 };
        database.add_subscriptions(&[new]).await.unwrap();
        let due = database.due(i64::MAX, 1_000, 10).await.unwrap();
        database.postpone(&due[0], 2_000, token(1)).await.unwrap();
        assert!(database.due(i64::MAX, 1_999, 10).await.unwrap().is_empty());
        assert_eq!(database.due(i64::MAX, 2_000, 10).await.unwrap(), due);
    }
}
