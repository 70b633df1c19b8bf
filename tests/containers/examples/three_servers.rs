//! Starts three servers of a store in containers, prints their addresses on one line, and removes them at the end of its input.
//!
//! ```text
//! cargo run --release -p tenure-containers --example three_servers -- zookeeper
//! ```

use clap::{Parser, ValueEnum};
use tenure_containers::{ContainerError, EtcdCluster, Version, ZookeeperEnsemble};
use tokio::io::{AsyncReadExt as _, stdin};

#[derive(Parser)]
struct Options {
    /// The store
    store: Store,
}

#[derive(Clone, Copy, ValueEnum)]
enum Store {
    Etcd,
    Zookeeper,
}

#[tokio::main]
async fn main() -> Result<(), ContainerError> {
    match Options::parse().store {
        Store::Etcd => {
            let cluster = EtcdCluster::start(Version::Etcd35).await?;
            serve(cluster.endpoints()).await;
        }
        Store::Zookeeper => {
            let ensemble = ZookeeperEnsemble::start(Version::Zookeeper39).await?;
            serve(ensemble.endpoints()).await;
        }
    }
    Ok(())
}

async fn serve(endpoints: Vec<String>) {
    println!("{}", endpoints.join(","));
    // Until the parent process closes the pipe or ends.
    let _ = stdin().read_to_end(&mut Vec::new()).await;
}
