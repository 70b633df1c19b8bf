//! The record of all times at which a job has fired, with the fencing token of the leader.

use std::{str::FromStr as _, time::Duration};

use chrono::{DateTime, Utc};
use sqlx::{
    SqlitePool,
    sqlite::{SqliteConnectOptions, SqliteJournalMode, SqlitePoolOptions},
};
use tenure::FencingToken;

/// The table of all times at which a job has fired.
#[derive(Clone, Debug)]
pub(crate) struct Ledger(SqlitePool);

impl Ledger {
    pub(crate) async fn open(url: &str) -> Result<Self, sqlx::Error> {
        let options = SqliteConnectOptions::from_str(url)?
            .create_if_missing(true)
            .journal_mode(SqliteJournalMode::Wal)
            .busy_timeout(Duration::from_secs(5));
        let pool = SqlitePoolOptions::new().max_connections(2).connect_with(options).await?;
        sqlx::query(
            "CREATE TABLE IF NOT EXISTS fired (job TEXT NOT NULL, time INTEGER NOT NULL, token INTEGER NOT NULL, \
             candidate TEXT NOT NULL, PRIMARY KEY (job, time)) STRICT",
        )
        .execute(&pool)
        .await?;
        Ok(Self(pool))
    }

    /// The latest time at which the job has fired.
    pub(crate) async fn last_fired(&self, job: &str) -> Result<Option<DateTime<Utc>>, sqlx::Error> {
        let last: Option<i64> = sqlx::query_scalar("SELECT max(time) FROM fired WHERE job = ?")
            .bind(job)
            .fetch_one(&self.0)
            .await?;
        Ok(last.and_then(|seconds| DateTime::from_timestamp(seconds, 0)))
    }

    /// Claims a time for this leader. Returns `false` if this time or a later one has been claimed, or if a leader
    /// with a higher token has claimed one. This is a single statement, so that only one of two concurrent claims
    /// succeeds.
    pub(crate) async fn claim(
        &self,
        job: &str,
        time: DateTime<Utc>,
        token: FencingToken,
        candidate: &str,
    ) -> Result<bool, sqlx::Error> {
        // No store issues tokens of more than 63 bits.
        let token = i64::try_from(token.get()).map_err(|error| sqlx::Error::Encode(error.into()))?;
        let claimed = sqlx::query(
            "INSERT INTO fired (job, time, token, candidate) SELECT ?1, ?2, ?3, ?4 \
             WHERE NOT EXISTS (SELECT 1 FROM fired WHERE job = ?1 AND (time >= ?2 OR token > ?3))",
        )
        .bind(job)
        .bind(time.timestamp())
        .bind(token)
        .bind(candidate)
        .execute(&self.0)
        .await?;
        Ok(claimed.rows_affected() == 1)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_time_is_claimed_once_and_not_by_a_stale_leader() {
        let directory = tempfile::tempdir().unwrap();
        let ledger =
            Ledger::open(&format!("sqlite:{}", directory.path().join("l.db").display())).await.unwrap();
        let at = |seconds| DateTime::from_timestamp(seconds, 0).unwrap();
        let token = |number| FencingToken::new(number).unwrap();
        assert_eq!(ledger.last_fired("job").await.unwrap(), None);
        assert!(ledger.claim("job", at(10), token(1), "a").await.unwrap());
        assert!(!ledger.claim("job", at(10), token(2), "b").await.unwrap(), "it has been claimed");
        assert!(ledger.claim("job", at(11), token(2), "b").await.unwrap());
        assert!(
            !ledger.claim("job", at(12), token(1), "a").await.unwrap(),
            "a leader with a higher token has claimed a time"
        );
        assert!(ledger.claim("other", at(10), token(1), "a").await.unwrap());
        assert_eq!(ledger.last_fired("job").await.unwrap(), Some(at(11)));
    }
}
