//! Reads the provider's ledger.

use std::{path::Path, time::Duration};

use anyhow::Context;
use sqlx::{
    Row, SqlitePool,
    sqlite::{SqliteConnectOptions, SqlitePoolOptions},
};

use crate::payment_api::Outcome;

/// One request in the provider's ledger.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct LedgerEntry {
    pub(crate) subscription: i64,
    pub(crate) period: String,
    pub(crate) amount_cents: i64,
    pub(crate) token: i64,
    pub(crate) outcome: Outcome,
    /// In milliseconds since 1970.
    pub(crate) received_at: i64,
}

/// A connection to the provider's ledger.
#[derive(Clone, Debug)]
pub(crate) struct LedgerReader {
    pool: SqlitePool,
}

impl LedgerReader {
    pub(crate) async fn open(file: &Path) -> anyhow::Result<Self> {
        let options = SqliteConnectOptions::new().filename(file).busy_timeout(Duration::from_secs(10));
        let pool = SqlitePoolOptions::new()
            .max_connections(1)
            .connect_with(options)
            .await
            .with_context(|| format!("cannot read the provider's ledger {}", file.display()))?;
        Ok(Self { pool })
    }

    /// The number of charges that were made.
    pub(crate) async fn count_charged(&self) -> Result<i64, sqlx::Error> {
        sqlx::query_scalar("SELECT COUNT(*) FROM charges WHERE outcome = 'charged'")
            .fetch_one(&self.pool)
            .await
    }

    /// All requests, in the order in which the provider processed them.
    pub(crate) async fn entries(&self) -> Result<Vec<LedgerEntry>, sqlx::Error> {
        sqlx::query(
            "SELECT subscription, period, amount_cents, token, outcome, received_at FROM charges ORDER BY id",
        )
        .fetch_all(&self.pool)
        .await?
        .iter()
        .map(|row| {
            let outcome: String = row.try_get(4)?;
            Ok(LedgerEntry {
                subscription: row.try_get(0)?,
                period: row.try_get(1)?,
                amount_cents: row.try_get(2)?,
                token: row.try_get(3)?,
                outcome: Outcome::from_str(&outcome)
                    .ok_or_else(|| sqlx::Error::Decode(format!("unknown outcome {outcome:?}").into()))?,
                received_at: row.try_get(5)?,
            })
        })
        .collect()
    }
}
