//! The provider's ledger: every request and its outcome, decided and recorded in one transaction.

use std::{path::Path, time::Duration};

use sqlx::{
    SqlitePool,
    sqlite::{SqliteConnectOptions, SqliteJournalMode, SqlitePoolOptions, SqliteSynchronous},
};

use crate::payment_api::{ChargeAnswer, ChargeRequest, Outcome};

/// The table of all requests.
const LEDGER_TABLE: &str = "
CREATE TABLE IF NOT EXISTS charges (
    id              INTEGER PRIMARY KEY AUTOINCREMENT,
    received_at     INTEGER NOT NULL,
    subscription    INTEGER NOT NULL,
    period          TEXT NOT NULL,
    amount_cents    INTEGER NOT NULL,
    idempotency_key TEXT NOT NULL,
    token           INTEGER NOT NULL,
    outcome         TEXT NOT NULL CHECK (outcome IN ('charged', 'refused_stale', 'refused_duplicate'))
)";

/// One row with the highest token that the provider has seen.
const FENCE_TABLE: &str = "
CREATE TABLE IF NOT EXISTS fence (
    only  INTEGER PRIMARY KEY CHECK (only = 1),
    token INTEGER NOT NULL
)";

/// Which headers the provider checks.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Rules {
    /// Refuse a token that is lower than the highest one seen.
    pub(crate) tokens: bool,
    /// Charge each idempotency key only once.
    pub(crate) idempotency: bool,
}

/// A request with its headers.
#[derive(Clone, Debug)]
pub(crate) struct ChargeOrder {
    pub(crate) key: String,
    pub(crate) token: i64,
    /// When the request arrived, in milliseconds since 1970.
    pub(crate) received_at: i64,
    pub(crate) request: ChargeRequest,
}

/// The ledger's database.
#[derive(Debug)]
pub(crate) struct Ledger {
    pool: SqlitePool,
    rules: Rules,
}

impl Ledger {
    pub(crate) async fn open(file: &Path, rules: Rules) -> Result<Self, sqlx::Error> {
        let options = SqliteConnectOptions::new()
            .filename(file)
            .create_if_missing(true)
            .journal_mode(SqliteJournalMode::Wal)
            .synchronous(SqliteSynchronous::Full)
            .busy_timeout(Duration::from_secs(10));
        // With one connection, transactions queue in this process. SQLite has only one writer at a time anyway.
        let pool = SqlitePoolOptions::new().max_connections(1).connect_with(options).await?;
        sqlx::query(LEDGER_TABLE).execute(&pool).await?;
        sqlx::query(FENCE_TABLE).execute(&pool).await?;
        sqlx::query("INSERT INTO fence (only, token) VALUES (1, 0) ON CONFLICT DO NOTHING")
            .execute(&pool)
            .await?;
        // With idempotency, the schema prevents a second charge, too.
        let index = if rules.idempotency {
            "CREATE UNIQUE INDEX IF NOT EXISTS charged_once ON charges (idempotency_key) WHERE outcome = 'charged'"
        } else {
            "DROP INDEX IF EXISTS charged_once"
        };
        sqlx::query(index).execute(&pool).await?;
        Ok(Self { pool, rules })
    }

    pub(crate) fn rules(&self) -> Rules {
        self.rules
    }

    /// Decides about a request and records it, in one transaction.
    ///
    /// The token is checked first, so that a stale leader is always refused as stale.
    pub(crate) async fn process(&self, order: &ChargeOrder) -> Result<ChargeAnswer, sqlx::Error> {
        let mut tx = self.pool.begin_with("BEGIN IMMEDIATE").await?;
        let mut answer =
            ChargeAnswer { outcome: Outcome::Charged, charge: None, amount_cents: None, highest_token: None };

        if self.rules.tokens {
            let raised = sqlx::query("UPDATE fence SET token = $1 WHERE token <= $1")
                .bind(order.token)
                .execute(&mut *tx)
                .await?
                .rows_affected();
            if raised == 0 {
                let highest = sqlx::query_scalar("SELECT token FROM fence").fetch_one(&mut *tx).await?;
                answer.outcome = Outcome::RefusedStale;
                answer.highest_token = Some(highest);
            }
        }
        if self.rules.idempotency && answer.outcome == Outcome::Charged {
            let earlier: Option<(i64, i64)> = sqlx::query_as(
                "SELECT id, amount_cents FROM charges WHERE idempotency_key = $1 AND outcome = 'charged'",
            )
            .bind(&order.key)
            .fetch_optional(&mut *tx)
            .await?;
            if let Some((charge, amount_cents)) = earlier {
                answer.outcome = Outcome::RefusedDuplicate;
                answer.charge = Some(charge);
                answer.amount_cents = Some(amount_cents);
            }
        }
        let id: i64 = sqlx::query_scalar(
            "INSERT INTO charges (received_at, subscription, period, amount_cents, idempotency_key, token, outcome)
             VALUES ($1, $2, $3, $4, $5, $6, $7) RETURNING id",
        )
        .bind(order.received_at)
        .bind(order.request.subscription)
        .bind(&order.request.period)
        .bind(order.request.amount_cents)
        .bind(&order.key)
        .bind(order.token)
        .bind(answer.outcome.as_str())
        .fetch_one(&mut *tx)
        .await?;
        if answer.outcome == Outcome::Charged {
            answer.charge = Some(id);
            answer.amount_cents = Some(order.request.amount_cents);
        }
        tx.commit().await?;
        Ok(answer)
    }
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;

    use futures::future::try_join_all;
    use proptest::prelude::*;

    use super::*;

    const ALL_RULES: Rules = Rules { tokens: true, idempotency: true };

    impl Ledger {
        pub(crate) async fn outcomes(&self) -> Vec<(i64, String, Outcome)> {
            let rows: Vec<(i64, String, String)> =
                sqlx::query_as("SELECT subscription, period, outcome FROM charges ORDER BY id")
                    .fetch_all(&self.pool)
                    .await
                    .unwrap();
            rows.into_iter().map(|(s, period, o)| (s, period, Outcome::from_str(&o).unwrap())).collect()
        }
    }

    fn order(subscription: i64, token: i64) -> ChargeOrder {
        let request = ChargeRequest { subscription, period: "2026-12-21".into(), amount_cents: 990 };
        ChargeOrder { key: request.idempotency_key(), token, received_at: 0, request }
    }

    async fn outcomes(ledger: &Ledger, orders: &[(i64, i64)]) -> Vec<Outcome> {
        let mut outcomes = Vec::new();
        for (subscription, token) in orders {
            outcomes.push(ledger.process(&order(*subscription, *token)).await.unwrap().outcome);
        }
        outcomes
    }

    async fn ledger(rules: Rules) -> (tempfile::TempDir, Ledger) {
        let dir = tempfile::tempdir().unwrap();
        let ledger = Ledger::open(&dir.path().join("provider.db"), rules).await.unwrap();
        (dir, ledger)
    }

    #[tokio::test]
    async fn a_key_is_charged_once_and_a_stale_token_never() {
        use Outcome::*;
        let (_dir, ledger) = ledger(ALL_RULES).await;
        let outcomes = outcomes(&ledger, &[(1, 7), (1, 7), (2, 9), (3, 7), (1, 7), (1, 9)]).await;
        assert_eq!(
            outcomes,
            [Charged, RefusedDuplicate, Charged, RefusedStale, RefusedStale, RefusedDuplicate]
        );
    }

    #[tokio::test]
    async fn the_answer_to_a_duplicate_has_the_amount_that_was_charged() {
        let (_dir, ledger) = ledger(ALL_RULES).await;
        let first = ledger.process(&order(1, 7)).await.unwrap();
        let mut dearer = order(1, 8);
        dearer.request.amount_cents = 1_990;
        let second = ledger.process(&dearer).await.unwrap();
        assert_eq!((second.charge, second.amount_cents), (first.charge, Some(990)));
    }

    #[tokio::test]
    async fn a_restarted_provider_remembers_tokens_and_keys() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("provider.db");
        let before = Ledger::open(&file, ALL_RULES).await.unwrap();
        before.process(&order(1, 9)).await.unwrap();
        drop(before);

        let after = Ledger::open(&file, ALL_RULES).await.unwrap();
        let outcomes = outcomes(&after, &[(1, 9), (2, 8)]).await;
        assert_eq!(outcomes, [Outcome::RefusedDuplicate, Outcome::RefusedStale]);
    }

    #[tokio::test]
    async fn without_rules_the_provider_charges_every_request() {
        let (_dir, no_rules) = ledger(Rules { tokens: false, idempotency: false }).await;
        assert_eq!(outcomes(&no_rules, &[(1, 9), (1, 8)]).await, [Outcome::Charged; 2]);
        let (_dir, no_tokens) = ledger(Rules { tokens: false, idempotency: true }).await;
        assert_eq!(
            outcomes(&no_tokens, &[(1, 9), (2, 8), (1, 8)]).await,
            [Outcome::Charged, Outcome::Charged, Outcome::RefusedDuplicate]
        );
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(24))]

        /// Promise S2 at the provider, with arbitrary concurrent requests.
        #[test]
        fn any_interleaving_charges_each_key_at_most_once_and_no_stale_token(
            requests in proptest::collection::vec((0i64..6, 1i64..6), 1..40),
        ) {
            let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap();
            let rows: Vec<(i64, i64, String)> = runtime.block_on(async {
                let (_dir, ledger) = ledger(ALL_RULES).await;
                let orders: Vec<_> = requests.iter().map(|(s, t)| order(*s, *t)).collect();
                try_join_all(orders.iter().map(|o| ledger.process(o))).await.unwrap();
                sqlx::query_as("SELECT subscription, token, outcome FROM charges ORDER BY id")
                    .fetch_all(&ledger.pool).await.unwrap()
            });
            prop_assert_eq!(rows.len(), requests.len(), "every request is in the ledger");
            let (mut highest, mut charged) = (0, HashSet::new());
            for (subscription, token, outcome) in rows {
                let expected = if token < highest {
                    Outcome::RefusedStale
                } else if charged.insert(subscription) {
                    Outcome::Charged
                } else {
                    Outcome::RefusedDuplicate
                };
                highest = highest.max(token);
                prop_assert_eq!(outcome, expected.as_str());
            }
        }
    }
}
