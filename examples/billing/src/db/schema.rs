//! The tables, and what is put into them before anybody leads.

use sqlx::Executor;

use super::{Database, Kind};
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
    // What has been charged. The primary key is the last line of defence: one row per period.
    "CREATE TABLE IF NOT EXISTS renewals (
        subscription BIGINT NOT NULL REFERENCES subscriptions (id),
        period       TEXT   NOT NULL,
        amount_cents BIGINT NOT NULL,
        charge       BIGINT NOT NULL,
        token        BIGINT NOT NULL,
        recorded_at  BIGINT NOT NULL,
        PRIMARY KEY (subscription, period)
    )",
    // The highest fencing token that has written here.
    "CREATE TABLE IF NOT EXISTS fence (
        resource TEXT   PRIMARY KEY,
        token    BIGINT NOT NULL
    )",
    "INSERT INTO fence (resource, token) VALUES ('renewals', 0) ON CONFLICT DO NOTHING",
    // Who led when, for people.
    "CREATE TABLE IF NOT EXISTS terms (
        token      BIGINT PRIMARY KEY,
        leader     TEXT   NOT NULL,
        claimed_at BIGINT NOT NULL
    )",
];

/// PostgreSQL's IF NOT EXISTS fails when two do it at once; this makes them queue up.
const POSTGRES_QUEUE: &str = "SELECT pg_advisory_xact_lock(7238701)";

/// A customer who has just signed up.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct NewSubscription {
    pub(crate) id: i64,
    pub(crate) plan: Plan,
    pub(crate) price_cents: i64,
    /// The beginning, in milliseconds since 1970.
    pub(crate) started_at: i64,
    /// How many periods have been paid for.
    pub(crate) periods_paid: i64,
}

impl NewSubscription {
    /// When the period that has not been paid for begins.
    pub(crate) fn renews_at(&self) -> i64 {
        self.plan.renews_at(self.started_at, self.periods_paid)
    }
}

impl Database {
    pub(super) async fn make_tables(&self) -> Result<(), sqlx::Error> {
        // Made all at once, so that one tells of all. Where they are, nothing is locked: on PostgreSQL
        // IF NOT EXISTS takes locks that a leader at work would wait for, and it for the leader.
        if sqlx::query("SELECT token FROM terms LIMIT 0").execute(&self.pool).await.is_ok() {
            return Ok(());
        }
        let mut tx = match self.kind {
            // A transaction that reads first and then writes does not wait for its turn in SQLite.
            Kind::Sqlite => self.pool.begin_with("BEGIN IMMEDIATE").await?,
            Kind::Postgres => {
                let mut tx = self.pool.begin().await?;
                tx.execute(POSTGRES_QUEUE).await?;
                tx
            }
        };
        for table in TABLES {
            tx.execute(table).await?;
        }
        tx.commit().await
    }

    /// Signs customers up, all or none.
    pub(crate) async fn sign_up(&self, subscriptions: &[NewSubscription]) -> Result<(), sqlx::Error> {
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
