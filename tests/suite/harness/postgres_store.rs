//! PostgreSQL as a store of records, without the recipe.

use std::time::Duration;

use tenure::postgres::{PostgresConfig, PostgresStore};
use tenure_cas::{CasStore as _, Epoch, EpochState, Swap, Version as RecordVersion};
use tenure_containers::{SharedPostgres, Version};

/// The epoch of a server that never failed over.
pub const FIRST: Epoch = Epoch(0);

/// A schema of this server, with requests that end soon.
pub fn config(endpoint: &str, schema: &str) -> PostgresConfig {
    PostgresConfig::new([endpoint], "postgres", "postgres")
        .schema(schema)
        .attempt_timeout(Duration::from_secs(1))
}

/// A name for a schema that does not exist yet.
pub fn new_schema() -> String {
    format!("store-{:016x}", fastrand::u64(..))
}

/// A store in a new schema on the shared server of this version, which lives as long as what is returned.
///
/// # Panics
/// When the server cannot be used; the message names the remedy.
pub async fn shared(version: Version) -> (PostgresStore, SharedPostgres, String) {
    let server = SharedPostgres::get(version).await.unwrap_or_else(|error| panic!("{error}"));
    let schema = new_schema();
    let store = PostgresStore::new(config(&server.endpoint(), &schema)).expect("the configuration is valid");
    (store, server, schema)
}

/// Creates a record.
///
/// # Panics
/// When that fails.
pub async fn create(store: &PostgresStore, key: &str) -> RecordVersion {
    let body = format!("{:032x}", fastrand::u128(..));
    match store.swap(key, None, epoch(store).await, body.as_bytes()).await {
        Ok(Swap::Done(version)) => version,
        other => panic!("{other:?}"),
    }
}

/// The current epoch.
///
/// # Panics
/// When it cannot be read.
pub async fn epoch(store: &PostgresStore) -> Epoch {
    match store.epoch().await {
        Ok(EpochState::Known(epoch)) => epoch,
        other => panic!("{other:?}"),
    }
}

/// The keys with this prefix, sorted.
///
/// # Panics
/// When they cannot be read.
pub async fn keys(store: &PostgresStore, prefix: &str) -> Vec<String> {
    let records = store.list(prefix).await.unwrap_or_else(|error| panic!("{error}"));
    let mut keys: Vec<_> = records.into_iter().map(|record| record.key).collect();
    keys.sort();
    keys
}
