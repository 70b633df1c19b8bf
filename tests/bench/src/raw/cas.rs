//! A store that compares and swaps, through its adapter: single requests, without the recipe.

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, bail, ensure};
use async_trait::async_trait;
use futures::{StreamExt as _, stream::BoxStream};
use tenure::{StoreUrl, consul, mysql, nats, redis, s3};
use tenure_cas::{CasStore, Epoch, EpochState, Freshness, Swap, Version};

use super::RawStore;

/// The election that is entered again and again, as one that is in use is.
const ELECTION: &str = "e/election";
/// The election whose changes are watched.
const WATCHED: &str = "e/watched";
/// As long as the record of an election with one candidate.
const BODY_BYTES: usize = 300;
/// How long a subscription may take until it is in the server.
const SUBSCRIPTION_TIME: Duration = Duration::from_millis(500);

/// Opens a client of the store.
fn open(url: &str) -> Result<Arc<dyn CasStore>> {
    let url: StoreUrl = url.parse()?;
    Ok(match url.scheme() {
        "consul" => Arc::new(consul::ConsulStore::new(consul::ConsulConfig::from_url(&url)?)?),
        "nats" => Arc::new(nats::NatsStore::new(nats::NatsConfig::from_url(&url)?)?),
        "s3" => Arc::new(s3::S3Store::new(s3::S3Config::from_url(&url)?)?),
        "mysql" => Arc::new(mysql::MysqlStore::new(mysql::MysqlConfig::from_url(&url)?)?),
        "redis" => Arc::new(redis::RedisStore::new(redis::RedisConfig::from_url(&url)?)?),
        other => bail!("{other} is measured in another way"),
    })
}

pub(crate) struct Cas {
    url: String,
    store: Arc<dyn CasStore>,
    epoch: Epoch,
    /// Of another client. `None` where the store gives none.
    hints: Option<BoxStream<'static, ()>>,
    watched: Version,
}

/// A body that no other record has.
fn body() -> Vec<u8> {
    let mut body = format!("{:032x}", fastrand::u128(..)).into_bytes();
    body.resize(BODY_BYTES, b'x');
    body
}

async fn epoch(store: &dyn CasStore) -> Result<Epoch> {
    Ok(match store.epoch().await? {
        EpochState::Known(epoch) => epoch,
        EpochState::Fixed | EpochState::Unknown => Epoch(0),
    })
}

/// Swaps a record of which there is one, or creates it.
async fn swap(store: &dyn CasStore, key: &str, expected: Option<&Version>, epoch: Epoch) -> Result<Version> {
    match store.swap(key, expected, epoch, &body()).await? {
        Swap::Done(version) => Ok(version),
        other => bail!("{key}: {other:?}"),
    }
}

async fn version_of(store: &dyn CasStore, key: &str) -> Result<Option<Version>> {
    Ok(store.read(key, Freshness::Fresh).await?.map(|record| record.version))
}

impl Cas {
    pub(crate) async fn connect(url: &str) -> Result<Self> {
        let store = open(url)?;
        let epoch = epoch(&*store).await?;
        let mut versions = Vec::new();
        for key in [ELECTION, WATCHED] {
            let found = version_of(&*store, key).await?;
            versions.push(swap(&*store, key, found.as_ref(), epoch).await?);
        }
        let watching = open(url)?;
        // Connects: a subscription alone may wait for that.
        version_of(&*watching, WATCHED).await?;
        let _ = watching.changes(WATCHED);
        tokio::time::sleep(SUBSCRIPTION_TIME).await;
        let hints = watching.changes(WATCHED);
        tokio::time::sleep(SUBSCRIPTION_TIME).await;
        // The client lives as long as its hints.
        let hints = hints.map(|hints| {
            hints
                .map(move |()| {
                    let _ = &watching;
                })
                .boxed()
        });
        Ok(Self { url: url.to_owned(), store, epoch, hints, watched: versions.remove(1) })
    }
}

#[async_trait]
impl RawStore for Cas {
    fn entering(&self) -> (&'static str, &'static str) {
        ("read the record, swap it", "connect, create a session's record, read the election's, swap it")
    }

    async fn enter(&mut self) -> Result<Duration> {
        let begun = Instant::now();
        let version = version_of(&*self.store, ELECTION).await?;
        swap(&*self.store, ELECTION, version.as_ref(), self.epoch).await?;
        Ok(begun.elapsed())
    }

    async fn enter_from_nothing(&mut self) -> Result<Duration> {
        let session = format!("s/{:032x}", fastrand::u128(..));
        let begun = Instant::now();
        let store = open(&self.url)?;
        let epoch = epoch(&*store).await?;
        let created = swap(&*store, &session, None, epoch).await?;
        let version = version_of(&*store, ELECTION).await?;
        swap(&*store, ELECTION, version.as_ref(), epoch).await?;
        let took = begun.elapsed();
        ensure!(store.delete(&session, &created).await?, "the session was changed");
        store.close().await;
        Ok(took)
    }

    async fn handover(&mut self, quiet: Duration) -> Result<Duration> {
        let hints = self.hints.as_mut().context("this store gives no hints of changes")?;
        tokio::time::sleep(quiet).await;
        // Of the previous change, of which there may be several.
        while futures::FutureExt::now_or_never(hints.next()).is_some() {}
        let begun = Instant::now();
        let swapping = swap(&*self.store, WATCHED, Some(&self.watched), self.epoch);
        let (swapped, hint) = tokio::join!(swapping, async { hints.next().await.map(|()| begun.elapsed()) });
        self.watched = swapped?;
        hint.context("the hints have ended")
    }

    async fn enter_many(&mut self, _: usize) -> Result<Duration> {
        bail!("many elections are not measured on this store")
    }

    /// A store that compares and swaps has no sessions that expire.
    async fn expire(&mut self, _: Duration, _: Duration, _: usize) -> Result<Vec<Duration>> {
        Ok(Vec::new())
    }

    async fn requests(&mut self) -> Result<u64> {
        bail!("requests are not counted on this store")
    }
}
