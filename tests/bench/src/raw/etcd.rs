//! etcd, through etcd-client.

use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use async_trait::async_trait;
use etcd_client::{
    Client, Compare, CompareOp, GetOptions, PutOptions, SortOrder, SortTarget, Txn, TxnOp, WatchFilterType,
    WatchOptions,
};
use futures::{FutureExt as _, StreamExt as _, TryStreamExt as _, future::try_join_all, stream};

use super::RawStore;

/// How many elections go into one transaction, and how many of those are under way.
const AT_ONCE: usize = 60;
const UNDER_WAY: usize = 16;

pub(crate) struct Etcd {
    endpoints: Vec<String>,
    client: Client,
    other: Client,
    lease: i64,
    next: u64,
}

impl Etcd {
    pub(crate) async fn connect(endpoint: &str) -> Result<Self> {
        let endpoints: Vec<_> = endpoint.split(',').map(|endpoint| format!("http://{endpoint}")).collect();
        let connect = || async { Client::connect(&endpoints, None).await };
        let client = connect().await?;
        let lease = client.lease_client().grant(600, None).await?.id();
        let (other, next) = (connect().await?, fastrand::u64(..) >> 16);
        Ok(Self { endpoints, client, other, lease, next })
    }

    fn election(&mut self) -> String {
        self.next += 1;
        format!("raw/{:x}/", self.next)
    }
}

/// Puts a key if it is not there, and reads the first of the election.
fn enter(election: &str, lease: i64) -> Txn {
    let key = format!("{election}{lease:x}");
    let first = GetOptions::new()
        .with_prefix()
        .with_keys_only()
        .with_sort(SortTarget::Create, SortOrder::Ascend)
        .with_limit(1);
    Txn::new().when([Compare::create_revision(key.as_str(), CompareOp::Equal, 0)]).and_then([
        TxnOp::put(key, "value", Some(PutOptions::new().with_lease(lease))),
        TxnOp::get(election, Some(first)),
    ])
}

#[async_trait]
impl RawStore for Etcd {
    fn entering(&self) -> (&'static str, &'static str) {
        ("one txn: put with a held lease, read the head", "connect, lease grant, that txn")
    }

    async fn enter(&mut self) -> Result<Duration> {
        let election = self.election();
        let begun = Instant::now();
        let entered = self.client.kv_client().txn(enter(&election, self.lease)).await?;
        let took = begun.elapsed();
        ensure!(entered.succeeded(), "the key was there");
        self.client
            .kv_client()
            .delete(election, Some(etcd_client::DeleteOptions::new().with_prefix()))
            .await?;
        Ok(took)
    }

    async fn enter_from_nothing(&mut self) -> Result<Duration> {
        let election = self.election();
        let begun = Instant::now();
        let client = Client::connect(&self.endpoints, None).await?;
        let lease = client.lease_client().grant(10, None).await?.id();
        client.kv_client().txn(enter(&election, lease)).await?;
        let took = begun.elapsed();
        client.lease_client().revoke(lease).await?;
        Ok(took)
    }

    async fn handover(&mut self, quiet: Duration) -> Result<Duration> {
        let key = format!("{}{:x}", self.election(), self.lease);
        let put = self.client.kv_client().put(key.as_str(), "value", None).await?;
        let revision = put.header().context("no header")?.revision();
        let options = WatchOptions::new().with_start_revision(revision + 1);
        let mut watch = self.other.watch_client().watch(key.as_str(), Some(options)).await?;
        tokio::time::sleep(quiet).await;
        let begun = Instant::now();
        let deleting = self.client.kv_client();
        let (deleted, told) =
            tokio::join!(async { deleting.clone().delete(key.as_str(), None).await }, async {
                while let Some(message) = watch.message().await? {
                    if !message.events().is_empty() {
                        return Ok::<_, anyhow::Error>(begun.elapsed());
                    }
                }
                anyhow::bail!("the watch ended")
            });
        deleted?;
        told
    }

    async fn enter_many(&mut self, count: usize) -> Result<Duration> {
        let lease = self.client.lease_client().grant(600, None).await?.id();
        let elections: Vec<_> = (0..count).map(|_| self.election()).collect();
        let begun = Instant::now();
        let batches = elections.chunks(AT_ONCE).map(|some| {
            let steps: Vec<_> = some.iter().map(|election| TxnOp::txn(enter(election, lease))).collect();
            let kv = self.client.kv_client();
            async move { kv.clone().txn(Txn::new().and_then(steps)).await.map(drop) }.boxed()
        });
        stream::iter(batches.collect::<Vec<_>>()).buffer_unordered(UNDER_WAY).try_collect::<()>().await?;
        let took = begun.elapsed();
        self.client.lease_client().revoke(lease).await?;
        Ok(took)
    }

    async fn expire(&mut self, ttl: Duration, spread: Duration, times: usize) -> Result<Vec<Duration>> {
        let elections: Vec<_> = (0..times).map(|_| self.election()).collect();
        let (client, other) = (&self.client, &self.other);
        let all = elections.into_iter().map(|election| async move {
            tokio::time::sleep(spread.mul_f64(fastrand::f64())).await;
            let begun = Instant::now();
            let lease = client.lease_client().grant(i64::try_from(ttl.as_secs())?, None).await?.id();
            client.kv_client().txn(enter(&election, lease)).await?;
            let options = WatchOptions::new().with_filters([WatchFilterType::NoPut]);
            let mut watch = other.watch_client().watch(format!("{election}{lease:x}"), Some(options)).await?;
            while let Some(message) = watch.message().await? {
                if !message.events().is_empty() {
                    return Ok(begun.elapsed());
                }
            }
            anyhow::bail!("the watch ended")
        });
        try_join_all(all).await
    }

    async fn requests(&mut self) -> Result<u64> {
        let mut sum = 0.0;
        for endpoint in &self.endpoints {
            let text = reqwest::get(format!("{endpoint}/metrics")).await?.text().await?;
            let counts = text.lines().filter(|line| line.starts_with("grpc_server_msg_received_total{"));
            sum += counts.filter_map(|line| line.rsplit_once(' ')?.1.parse::<f64>().ok()).sum::<f64>();
        }
        Ok(sum as u64)
    }
}
