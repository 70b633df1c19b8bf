//! etcd, ZooKeeper, PostgreSQL, Consul, Kubernetes API, NATS, S3, MariaDB and Redis servers in Docker containers, and the faults that tests inject into them.
//!
//! Testcontainers runs the servers. It finds the Docker engine by `DOCKER_HOST` or at the usual sockets. The images have
//! names of their own (`tenure-test/etcd:3.5`); `cargo xtask images` builds them, and no test pulls an image. Servers
//! publish their ports on loopback only, and keep their data in a volume that is removed with the container.
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
//! - Dropping a [`Fault`] undoes it. Dropping a server removes it with its data, also when a test panics.
//! - What a killed test process or a cancelled start leaves behind carries the label `tenure-test` with the id of that
//!   process; the next `cargo xtask test` removes it.
//!
//! # Limitations
//! - Dropping a fault or a server waits for the Docker engine and blocks its thread meanwhile.
//! - An engine behind TLS or SSH, or one known only to a context of the `docker` command, is not supported.
//! - With `TESTCONTAINERS_COMMAND=keep`, servers stay for inspection until the next `cargo xtask test`.
//!
//! # Layout
//! [`Server`], [`SharedServer`] and [`Cluster`] hold what all stores share; [`StoreAdmin`] is what they need to know of a
//! store. `etcd`, `zookeeper`, `postgres`, `consul`, `kubernetes`, `nats`, `s3`, `mysql` and `redis` add how their servers are configured, administered, and asked for their leader.

mod cluster;
mod consul;
mod container;
mod docker;
mod error;
mod etcd;
mod fault;
mod fault_kind;
mod health;
mod kubernetes;
mod mysql;
mod nats;
mod network;
mod postgres;
mod program;
mod redis;
mod s3;
mod server;
mod spec;
mod tls;
mod version;
mod zookeeper;

pub use cluster::Cluster;
pub use consul::{ConsulAdmin, ConsulCluster, ConsulServer, ConsulSettings, ConsulToken, SharedConsul};
pub use error::ContainerError;
pub use etcd::{
    EtcdAdmin, EtcdCluster, EtcdServer, KeyValue, Lease, LeaseExpiryMonitor, LeaseExpiryStats, Permission,
    SharedEtcd,
};
pub use fault::Fault;
pub use fault_kind::{Direction, FaultKind};
pub use kubernetes::{
    GoCandidate, GoCandidateSettings, GoEvent, KubernetesAdmin, KubernetesCluster, KubernetesServer,
    KubernetesSettings, SharedKubernetes,
};
pub use mysql::{MysqlAdmin, MysqlCluster, MysqlServer, MysqlSettings, SharedMysql};
pub use nats::{NatsAdmin, NatsCluster, NatsServer, NatsSettings, SharedNats};
pub use postgres::{
    PostgresAdmin, PostgresCluster, PostgresServer, PostgresSettings, Replication, SharedPostgres,
};
pub use program::Program;
pub use redis::{RedisAdmin, RedisCluster, RedisServer, RedisSettings, SharedRedis};
pub use s3::{S3Admin, S3Server, S3Settings, SharedS3};
pub use server::{Server, SharedServer, StoreAdmin};
pub use tls::TlsFiles;
pub use version::Version;
pub use zookeeper::{
    AclEntry, AdminSession, CreateMode, SharedZookeeper, Znode, ZookeeperAdmin, ZookeeperEnsemble,
    ZookeeperServer, ZookeeperSettings,
};
