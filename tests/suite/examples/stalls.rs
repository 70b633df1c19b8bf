//! Measures how long a cluster of three servers may stall as a whole until a leader loses its leadership.
//!
//! ```text
//! cargo run --release -p tenure-tests --example stalls -- --store zookeeper --ttl 5 --rounds 20
//! ```

use std::time::Duration;

use anyhow::Result;
use clap::{Parser, ValueEnum};
use futures::future::try_join_all;
use tenure::Elector;
use tenure_containers::{EtcdCluster, Fault, Version, ZookeeperEnsemble};
use tokio::time::{sleep, timeout};

#[derive(Parser)]
struct Options {
    #[arg(long)]
    store: Store,
    /// The TTL, in seconds
    #[arg(long, default_value_t = 5)]
    ttl: u64,
    /// How often each stall is repeated, at a random moment
    #[arg(long, default_value_t = 20)]
    rounds: u32,
    /// The lengths of the stalls, in milliseconds
    #[arg(long, value_delimiter = ',', default_value = "1000,1250,1500,1750,2000,2500")]
    stalls: Vec<u64>,
}

#[derive(Clone, Copy, ValueEnum)]
enum Store {
    Etcd,
    Zookeeper,
}

enum Servers {
    Etcd(EtcdCluster),
    Zookeeper(ZookeeperEnsemble),
}

impl Servers {
    fn url(&self, ttl: u64) -> String {
        let (scheme, endpoints) = match self {
            Self::Etcd(cluster) => ("etcd", cluster.endpoints()),
            Self::Zookeeper(ensemble) => ("zookeeper", ensemble.endpoints()),
        };
        format!("{scheme}://{}/stalls?ttl={ttl}s", endpoints.join(","))
    }

    async fn pause_all(&self) -> Result<Vec<Fault>> {
        Ok(match self {
            Self::Etcd(cluster) => try_join_all((0..3).map(|index| cluster.member(index).pause())).await?,
            Self::Zookeeper(ensemble) => {
                try_join_all((0..3).map(|index| ensemble.member(index).pause())).await?
            }
        })
    }
}

#[tokio::main]
async fn main() -> Result<()> {
    let Options { store, ttl, rounds, stalls } = Options::parse();
    let servers = match store {
        Store::Etcd => Servers::Etcd(EtcdCluster::start(Version::Etcd35).await?),
        Store::Zookeeper => Servers::Zookeeper(ZookeeperEnsemble::start(Version::Zookeeper39).await?),
    };
    let elector = tenure::connect(&servers.url(ttl)).await?;
    println!("| stall, ms | leaderships lost |\n|---|---|");
    for stall in stalls {
        let mut lost = 0;
        for _ in 0..rounds {
            lost += u32::from(is_lost(&*elector, &servers, ttl, Duration::from_millis(stall)).await?);
        }
        println!("| {stall} | {lost} of {rounds} |");
    }
    elector.close().await;
    Ok(())
}

/// Whether a leadership is lost by a stall at a random moment.
async fn is_lost(elector: &dyn Elector, servers: &Servers, ttl: u64, stall: Duration) -> Result<bool> {
    let ttl = Duration::from_secs(ttl);
    let leadership = elector.campaign("e").await?;
    sleep(ttl.mul_f64(1.0 + fastrand::f64() / 2.0)).await;
    let paused = servers.pause_all().await?;
    sleep(stall).await;
    try_join_all(paused.into_iter().map(Fault::heal)).await?;
    let lost = timeout(ttl, leadership.lost()).await.is_ok();
    if !lost {
        leadership.resign().await?;
    }
    Ok(lost)
}
