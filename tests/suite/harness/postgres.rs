//! PostgreSQL in the conformance suite: a real server, and a proxy for each client.

use std::{sync::Arc, time::Duration};

use async_trait::async_trait;
use tenure::{
    BootClock, Clock,
    postgres::{PostgresBackend, PostgresConfig},
    spi::Backend as _,
};
use tenure_testkit::{
    harness::{Client, Harness, HarnessCapabilities},
    proxy::Proxy,
    recorder::Recorder,
};
use tokio_postgres::{NoTls, Row, types::ToSql};

/// A test's schema on a PostgreSQL server that tests share.
#[derive(Debug)]
pub struct Postgres {
    endpoint: String,
    schema: String,
    recorder: Recorder,
    /// Ends what dead sessions have left, as any other elector would.
    collector: PostgresBackend,
}

impl Postgres {
    const USER: &str = "billing";
    const DATABASE: &str = "billing";

    /// A new schema on the shared server.
    ///
    /// # Panics
    /// When the server cannot be used; the message names the remedy.
    pub async fn new() -> Self {
        let url = std::env::var("TENURE_TEST_POSTGRES").expect("`cargo xtask test` starts a PostgreSQL");
        let endpoint = url.split(['@', '/']).rev().nth(1).expect("it has a host").to_owned();
        let schema = format!("suite-{:016x}", fastrand::u64(..));
        let collector = backend(&endpoint, &schema);
        Self { endpoint, schema, recorder: Recorder::default(), collector }
    }

    /// The schema of this test.
    pub fn schema(&self) -> &str {
        &self.schema
    }

    /// A store URL without a proxy.
    pub fn url(&self) -> String {
        format!("postgres://{}@{}/{}?schema={}", Self::USER, self.endpoint, Self::DATABASE, self.schema)
    }

    /// A backend without a proxy.
    pub fn backend(&self) -> PostgresBackend {
        backend(&self.endpoint, &self.schema)
    }

    /// Runs a statement as an operator. `{records}` stands for the table.
    ///
    /// # Panics
    /// When the server refuses it.
    pub async fn sql(&self, statement: &str, parameters: &[&(dyn ToSql + Sync)]) -> Vec<Row> {
        let url = format!("postgres://{}@{}/{}", Self::USER, self.endpoint, Self::DATABASE);
        let (client, connection) =
            tokio_postgres::connect(&url, NoTls).await.expect("the server accepts a connection");
        let driver = tokio::spawn(connection);
        let statement = statement.replace("{records}", &format!("\"{}\".records", self.schema));
        let rows = client.query(&statement, parameters).await.unwrap_or_else(|error| panic!("{error:?}"));
        driver.abort();
        rows
    }

    /// Changes a record by hand, as an operator would: by an expression over its JSON `body`.
    async fn edit(&self, key: &str, expression: &str) {
        let nonce = format!("{:032x}", fastrand::u128(..));
        let statement = format!(
            "UPDATE {{records}} SET body = convert_to(jsonb_set({expression}, '{{nonce}}', to_jsonb($2::text))::text, 'UTF8') \
             FROM (SELECT key AS edited, convert_from(body, 'UTF8')::jsonb AS json FROM {{records}}) AS old \
             WHERE edited = key AND key = $1 RETURNING key"
        );
        assert_eq!(self.sql(&statement, &[&key, &nonce]).await.len(), 1, "{key} does not exist");
    }
}

fn backend(endpoint: &str, schema: &str) -> PostgresBackend {
    let config = PostgresConfig::new([endpoint], Postgres::USER, Postgres::DATABASE)
        .schema(schema)
        .attempt_timeout(Duration::from_secs(1))
        .poll_interval(Duration::from_millis(100));
    tenure::postgres::backend(config).unwrap_or_else(|error| panic!("{error}"))
}

/// What tenure did not write.
const FOREIGN: [(&str, &str); 4] =
    [("e/another", "10.0.0.1"), ("e/", "x"), ("s/not-a-session", "{}"), ("e/a/b", "y")];

#[async_trait]
impl Harness for Postgres {
    fn capabilities(&self) -> HarnessCapabilities {
        HarnessCapabilities::ALL
    }

    async fn client(&self) -> Client {
        let proxy = Proxy::start(self.endpoint.clone()).await.expect("a loopback port can be bound");
        let backend = backend(&proxy.endpoint(), &self.schema);
        Client { backend: self.recorder.wrap(backend), faults: Some(Arc::new(proxy)) }
    }

    fn ttl(&self) -> Duration {
        Duration::from_secs(2)
    }

    async fn delete_entry(&self, election: &str, session: &str, _token: u64) {
        let expression = format!(
            "jsonb_set(jsonb_set(json, '{{queue}}', (SELECT coalesce(jsonb_agg(slot), '[]') FROM jsonb_array_elements(json->'queue') slot \
             WHERE slot->>'session' <> '{session}')), '{{token}}', to_jsonb((json->>'token')::bigint + 1))"
        );
        self.edit(&format!("e/{election}"), &expression).await;
    }

    async fn expire_session(&self, session: &str) {
        let expression = "jsonb_build_object('format', json->'format', 'state', 'ended')";
        self.edit(&format!("s/{session}"), expression).await;
    }

    async fn add_foreign_entries(&self, _election: &str) {
        // Creates the tables.
        self.collector.elections().await.unwrap_or_else(|error| panic!("{error}"));
        self.collector.close().await;
        for (key, body) in FOREIGN {
            self.sql("INSERT INTO {records} (key, body) VALUES ($1, $2)", &[&key, &body.as_bytes()]).await;
        }
    }

    async fn foreign_entries_untouched(&self, _election: &str) -> bool {
        for (key, body) in FOREIGN {
            let found = "SELECT key FROM {records} WHERE key = $1 AND body = $2";
            if self.sql(found, &[&key, &body.as_bytes()]).await.is_empty() {
                return false;
            }
        }
        true
    }

    async fn remaining_state(&self) -> Vec<String> {
        let clock: Arc<dyn Clock> = Arc::new(BootClock);
        self.collector.collect_garbage(&clock, 0.1).await.unwrap_or_else(|error| panic!("{error}"));
        self.collector.close().await;
        let statement = "SELECT key FROM {records} WHERE convert_from(body, 'UTF8') LIKE '{%\"state\":\"live\"%' \
                         OR convert_from(body, 'UTF8') LIKE '{%\"queue\":[{%'";
        self.sql(statement, &[]).await.iter().map(|row| row.get(0)).collect()
    }
}
