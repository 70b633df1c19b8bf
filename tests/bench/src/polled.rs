//! PostgreSQL without notifications, as behind PgBouncer in transaction mode: records are polled.

use std::sync::Arc;

use anyhow::Result;
use async_trait::async_trait;
use tenure::{Config, Elector, StoreElector, spi::BackendError};
use tenure_cas::{CasBackend, CasStore, Epoch, EpochState, Freshness, Record, Swap, Version};
use tenure_postgres::{PostgresConfig, PostgresStore};

/// An elector that polls at the default interval.
pub(crate) fn elector(url: &str, config: Config) -> Result<Arc<dyn Elector>> {
    let store = WithoutHints(PostgresStore::new(PostgresConfig::from_url(&url.parse()?)?)?);
    Ok(Arc::new(StoreElector::new(Arc::new(CasBackend::new(store)), config)?))
}

/// Has all but [`CasStore::changes`].
#[derive(Debug)]
struct WithoutHints(PostgresStore);

#[async_trait]
impl CasStore for WithoutHints {
    fn name(&self) -> String {
        self.0.name()
    }

    async fn read(&self, key: &str, freshness: Freshness) -> Result<Option<Record>, BackendError> {
        self.0.read(key, freshness).await
    }

    async fn swap(
        &self,
        key: &str,
        expected: Option<&Version>,
        epoch: Epoch,
        body: &[u8],
    ) -> Result<Swap, BackendError> {
        self.0.swap(key, expected, epoch, body).await
    }

    async fn delete(&self, key: &str, expected: &Version) -> Result<bool, BackendError> {
        self.0.delete(key, expected).await
    }

    async fn list(&self, prefix: &str) -> Result<Vec<Record>, BackendError> {
        self.0.list(prefix).await
    }

    async fn epoch(&self) -> Result<EpochState, BackendError> {
        self.0.epoch().await
    }

    async fn close(&self) {
        self.0.close().await;
    }
}
