//! PostgreSQL in the conformance suite: a real server, and a proxy for each client.

use std::{sync::Arc, time::Duration};

use async_trait::async_trait;
use tenure::{
    BootClock, Clock,
    postgres::{PostgresBackend, PostgresConfig},
    spi::Backend as _,
};
use tenure_containers::{SharedPostgres, Version};
use tenure_testkit::{
    harness::{Client, Harness, HarnessCapabilities},
    proxy::Proxy,
    recorder::Recorder,
};

/// A test's schema on a PostgreSQL server that tests share.
#[derive(Debug)]
pub struct Postgres {
    server: SharedPostgres,
    schema: String,
    recorder: Recorder,
    /// Ends what dead sessions have left, as any other elector would.
    collector: PostgresBackend,
}

impl Postgres {
    /// A new schema on the shared server of this version.
    ///
    /// # Panics
    /// When the server cannot be used; the message names the remedy.
    pub async fn new(version: Version) -> Self {
        let server = SharedPostgres::get(version).await.unwrap_or_else(|error| panic!("{error}"));
        let schema = format!("suite-{:016x}", fastrand::u64(..));
        let collector = backend(&server.endpoint(), &schema);
        Self { server, schema, recorder: Recorder::default(), collector }
    }

    /// The server.
    pub fn server(&self) -> &SharedPostgres {
        &self.server
    }

    /// The schema of this test.
    pub fn schema(&self) -> &str {
        &self.schema
    }

    /// A store URL without a proxy.
    pub fn url(&self) -> String {
        format!("{}?schema={}", self.server.admin().url(), self.schema)
    }

    /// Runs a statement as an operator, and returns the first column. `{records}` stands for the table.
    async fn sql(&self, statement: &str) -> Vec<String> {
        let statement = statement.replace("{records}", &format!("\"{}\".records", self.schema));
        let rows = self.server.admin().query(&statement).await.unwrap_or_else(|error| panic!("{error}"));
        rows.into_iter().filter_map(|row| row.into_iter().next().flatten()).collect()
    }

    /// Changes a record by hand, as an operator would: by an expression over its JSON.
    async fn edit(&self, key: &str, expression: &str) {
        let nonce = format!("{:032x}", fastrand::u128(..));
        let statement = format!(
            "UPDATE {{records}} SET body = convert_to(jsonb_set({expression}, '{{nonce}}', '\"{nonce}\"')::text, 'UTF8') \
             FROM (SELECT key AS edited, convert_from(body, 'UTF8')::jsonb AS json FROM {{records}}) AS old \
             WHERE edited = key AND key = '{key}' RETURNING key"
        );
        assert_eq!(self.sql(&statement).await.len(), 1, "{key} does not exist");
    }
}

fn backend(endpoint: &str, schema: &str) -> PostgresBackend {
    let config = PostgresConfig::new([endpoint], "postgres", "postgres")
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
        let proxy = Proxy::start(self.server.endpoint()).await.expect("a loopback port can be bound");
        let backend = backend(&proxy.endpoint(), &self.schema);
        Client { backend: self.recorder.wrap(backend), faults: Some(Arc::new(proxy)) }
    }

    fn ttl(&self) -> Duration {
        Duration::from_secs(2)
    }

    async fn delete_entry(&self, election: &str, session: &str, _token: u64) {
        let others = format!(
            "SELECT coalesce(jsonb_agg(slot), '[]') FROM jsonb_array_elements(json->'queue') slot WHERE slot->>'session' <> '{session}'"
        );
        let token = "to_jsonb((json->>'token')::bigint + 1)";
        let expression = format!("jsonb_set(jsonb_set(json, '{{queue}}', ({others})), '{{token}}', {token})");
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
            self.sql(&format!("INSERT INTO {{records}} (key, body) VALUES ('{key}', '{body}')")).await;
        }
    }

    async fn foreign_entries_untouched(&self, _election: &str) -> bool {
        for (key, body) in FOREIGN {
            let found = format!("SELECT key FROM {{records}} WHERE key = '{key}' AND body = '{body}'");
            if self.sql(&found).await.is_empty() {
                return false;
            }
        }
        true
    }

    async fn remaining_state(&self) -> Vec<String> {
        let clock: Arc<dyn Clock> = Arc::new(BootClock);
        self.collector.collect_garbage(&clock, 0.1).await.unwrap_or_else(|error| panic!("{error}"));
        self.collector.close().await;
        let text = "convert_from(body, 'UTF8')";
        let live = format!("{text} LIKE '{{%\"state\":\"live\"%'");
        let queue = format!("{text} LIKE '{{%\"queue\":[{{%'");
        self.sql(&format!("SELECT key FROM {{records}} WHERE {live} OR {queue}")).await
    }
}
