//! Real servers in Docker containers, with handles to break and to mend them.
//!
//! Testcontainers runs them, and finds the engine: by `DOCKER_HOST`, or at its usual
//! sockets. The images have names of their own (`tenure-test/etcd:3.5`); `cargo xtask images`
//! makes them, and nothing is pulled behind a test's back. Servers publish their ports on loopback only, and
//! keep their data in a volume that goes with them.
//!
//! ```no_run
//! # #![allow(dead_code)]
//! # async fn example() -> Result<(), tenure_containers::ContainerError> {
//! use tenure_containers::{EtcdCluster, Version};
//!
//! let cluster = EtcdCluster::start(Version::Etcd35).await?;
//! let leader = cluster.leader().await?;
//! let fault = cluster.member(leader).pause().await?; // frozen, its connections stay open
//! let successor = cluster.successor_of(leader).await?;
//! cluster.member(successor).admin().put("written", "meanwhile").await?;
//! fault.heal().await?;
//! # Ok(())
//! # }
//! ```
//!
//! # Guarantees
//! - A dropped [`Fault`] undoes what it did; a dropped server is removed with its
//!   data, also when a test panics.
//! - What a killed test process leaves behind, or a start that was cancelled, carries the label
//!   `tenure-test` with that process's id; the next `cargo xtask test` removes it.
//!
//! # Caveats
//! - Dropping a fault or a server waits for the engine and blocks its thread for a moment.
//! - An engine behind TLS or SSH is not reached, nor one known only to a context of the `docker` command.
//! - With `TESTCONTAINERS_COMMAND=keep`, servers stay for inspection until the next `cargo xtask test`.

mod admin;
mod cluster;
mod container;
mod engine;
mod error;
mod etcd;
mod expiries;
mod fault;
mod harm;
mod health;
mod network;
mod program;
mod tls;
mod version;
mod zookeeper;

pub use admin::{EtcdAdmin, Expiries, KeyValue, Lease, Permission};
pub use cluster::EtcdCluster;
pub use error::ContainerError;
pub use etcd::{EtcdServer, SharedEtcd};
pub use expiries::ExpiryWatch;
pub use fault::Fault;
pub use harm::{Harm, Way};
pub use program::Program;
pub use tls::TlsFiles;
pub use version::Version;
pub use zookeeper::{
    AdminSession, Lifetime, Permitted, SharedZookeeper, Znode, ZookeeperAdmin, ZookeeperEnsemble,
    ZookeeperServer, ZookeeperSettings,
};
