//! The tables, and new subscriptions.

use sqlx::Executor;

use super::{Database, Engine};
use crate::calendar::Plan;

const TABLES: [&str; 6] = [
    "CREATE TABLE IF NOT EXISTS subscriptions (
        id           BIGINT PRIMARY KEY,
        plan         TEXT   NOT NULL CHECK (plan IN ('monthly', 'annual')),
        price_cents  BIGINT NOT NULL CHECK (price_cents > 0),
        started_at   BIGINT NOT NULL,
        periods_paid BIGINT NOT NULL,
        renews_at    BIGINT NOT NULL,
        not_before   BIGINT NOT NULL DEFAULT 0
    )",
    "CREATE INDEX IF NOT EXISTS subscriptions_by_renewal ON subscriptions (renews_at)",
    // The renewals that have been charged. The primary key allows one per period.
    "CREATE TABLE IF NOT EXISTS renewals (
        subscription BIGINT NOT NULL REFERENCES subscriptions (id),
        period       TEXT   NOT NULL,
        amount_cents BIGINT NOT NULL,
        charge       BIGINT NOT NULL,
        token        BIGINT NOT NULL,
        recorded_at  BIGINT NOT NULL,
        PRIMARY KEY (subscription, period)
    )",
    // The highest fencing token that has written to this database.
    "CREATE TABLE IF NOT EXISTS fence (
        resource TEXT   PRIMARY KEY,
        token    BIGINT NOT NULL
    )",
    "INSERT INTO fence (resource, token) VALUES ('renewals', 0) ON CONFLICT DO NOTHING",
    // A record of the leaders, for people.
    "CREATE TABLE IF NOT EXISTS terms (
        token      BIGINT PRIMARY KEY,
        leader     TEXT   NOT NULL,
        claimed_at BIGINT NOT NULL
    )",
];

/// Serialises the creation of tables: PostgreSQL's IF NOT EXISTS fails if two transactions do it concurrently.
const POSTGRES_SCHEMA_LOCK: &str = "SELECT pg_advisory_xact_lock(7238701)";

/// A subscription that is not in the database yet.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct NewSubscription {
    pub(crate) id: i64,
    pub(crate) plan: Plan,
    pub(crate) price_cents: i64,
    /// In milliseconds since 1970.
    pub(crate) started_at: i64,
    /// How many periods have been paid.
    pub(crate) periods_paid: i64,
}

impl NewSubscription {
    /// When the first unpaid period begins, in milliseconds since 1970.
    pub(crate) fn renews_at(&self) -> i64 {
        self.plan.renews_at(self.started_at, self.periods_paid)
    }
}

impl Database {
    pub(super) async fn create_tables(&self) -> Result<(), sqlx::Error> {
        // All tables are created in one transaction, so if one exists, all do. Then nothing is locked: on PostgreSQL
        // IF NOT EXISTS takes locks that conflict with those of a working leader.
        if sqlx::query("SELECT token FROM terms LIMIT 0").execute(&self.pool).await.is_ok() {
            return Ok(());
        }
        let mut tx = match self.engine {
            // SQLite makes a transaction wait for the write lock only if it begins as a writer.
            Engine::Sqlite => self.pool.begin_with("BEGIN IMMEDIATE").await?,
            Engine::Postgres => {
                let mut tx = self.pool.begin().await?;
                tx.execute(POSTGRES_SCHEMA_LOCK).await?;
                tx
            }
        };
        for table in TABLES {
            tx.execute(table).await?;
        }
        tx.commit().await
    }

    /// Adds subscriptions in one transaction.
    pub(crate) async fn add_subscriptions(
        &self,
        subscriptions: &[NewSubscription],
    ) -> Result<(), sqlx::Error> {
        let mut tx = self.pool.begin().await?;
        for new in subscriptions {
            sqlx::query(
                "INSERT INTO subscriptions (id, plan, price_cents, started_at, periods_paid, renews_at)
                 VALUES ($1, $2, $3, $4, $5, $6)",
            )
            .bind(new.id)
            .bind(new.plan.as_str())
            .bind(new.price_cents)
            .bind(new.started_at)
            .bind(new.periods_paid)
            .bind(new.renews_at())
            .execute(&mut *tx)
            .await?;
        }
        tx.commit().await
    }
}
