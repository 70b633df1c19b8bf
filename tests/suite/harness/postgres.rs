//! PostgreSQL in the conformance suite: a schema on a real server.

use std::time::Duration;

use tenure::postgres::{PostgresBackend, PostgresConfig, PostgresStore};
use tenure_containers::{SharedPostgres, Version};

use crate::cas::{Cas, CasServer};

/// A test's schema on a PostgreSQL server that tests share.
#[derive(Debug)]
pub struct Postgres {
    server: SharedPostgres,
    schema: String,
}

impl Postgres {
    /// A new schema on the shared server of this version.
    ///
    /// # Panics
    /// When the server cannot be used; the message names the remedy.
    pub async fn new(version: Version) -> Self {
        let server = SharedPostgres::get(version).await.unwrap_or_else(|error| panic!("{error}"));
        Self { server, schema: format!("suite-{:016x}", fastrand::u64(..)) }
    }

    /// The harness of a new schema.
    ///
    /// # Panics
    /// When the server cannot be used; the message names the remedy.
    pub async fn harness(version: Version) -> Cas<Self> {
        Cas::new(Self::new(version).await)
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
}

impl CasServer for Postgres {
    type Store = PostgresStore;

    fn endpoint(&self) -> String {
        self.server.endpoint()
    }

    fn backend(&self, endpoint: &str) -> PostgresBackend {
        let config = PostgresConfig::new([endpoint], "postgres", "postgres")
            .schema(&self.schema)
            .attempt_timeout(Duration::from_secs(1))
            .poll_interval(Duration::from_millis(100));
        tenure::postgres::backend(config).unwrap_or_else(|error| panic!("{error}"))
    }
}
