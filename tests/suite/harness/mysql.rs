//! MariaDB in the conformance suite: a database on a real server.

use std::time::Duration;

use tenure::mysql::{MysqlBackend, MysqlConfig, MysqlStore};
use tenure_cas::CasStore as _;
use tenure_containers::{MysqlAdmin, SharedMysql, Version};

use crate::cas::{Cas, CasServer};

/// A test's database on a MariaDB server that tests share.
#[derive(Debug)]
pub struct Mysql {
    server: SharedMysql,
    database: MysqlAdmin,
}

impl Mysql {
    /// A new database on the shared server of this version, in the first epoch.
    ///
    /// # Panics
    /// When the server cannot be used; the message names the remedy.
    pub async fn new(version: Version) -> Self {
        let server = SharedMysql::get(version).await.unwrap_or_else(|error| panic!("{error}"));
        let database = server.admin().create_database(&format!("suite-{:016x}", fastrand::u64(..))).await;
        let database = database.unwrap_or_else(|error| panic!("{error}"));
        begin_first_epoch(&database).await;
        Self { server, database }
    }

    /// The harness of a new database.
    ///
    /// # Panics
    /// When the server cannot be used; the message names the remedy.
    pub async fn harness(version: Version) -> Cas<Self> {
        Cas::new(Self::new(version).await)
    }

    /// The database of this test.
    pub fn database(&self) -> &MysqlAdmin {
        &self.database
    }

    /// A store URL without a proxy.
    pub fn url(&self) -> String {
        self.database.url()
    }
}

/// Creates the tables of the elections, and says that they have never lost a record, so that no candidate waits for a TTL before the first one
/// leads.
///
/// # Panics
/// When the server cannot be used.
pub async fn begin_first_epoch(database: &MysqlAdmin) {
    let config = MysqlConfig::new([database.endpoint()], "root", database.database());
    let store = MysqlStore::new(config).unwrap_or_else(|error| panic!("{error}"));
    store.epoch().await.unwrap_or_else(|error| panic!("{error}"));
    store.close().await;
    let first = database.execute("UPDATE tenure_epoch SET epoch = 0").await;
    first.unwrap_or_else(|error| panic!("{error}"));
}

impl CasServer for Mysql {
    type Store = MysqlStore;

    fn gives_hints(&self) -> bool {
        false
    }

    fn endpoint(&self) -> String {
        self.server.endpoint()
    }

    fn backend(&self, endpoint: &str) -> MysqlBackend {
        let config = MysqlConfig::new([endpoint], "root", self.database.database())
            .attempt_timeout(Duration::from_secs(1))
            .poll_interval(Duration::from_millis(100));
        tenure::mysql::backend(config).unwrap_or_else(|error| panic!("{error}"))
    }
}
