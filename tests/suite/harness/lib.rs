//! The stores under test, as harnesses of the conformance suite, and helpers that several tests use.

/// The Rust code of the guides as documentation tests.
#[cfg(doctest)]
mod guides {
    #[doc = include_str!("../../../docs/contributing/backend.md")]
    struct Backend;
    #[doc = include_str!("../../../docs/guide/choosing.md")]
    struct Choosing;
    #[doc = include_str!("../../../docs/guide/coming-from.md")]
    struct ComingFrom;
    #[doc = include_str!("../../../docs/guide/fencing.md")]
    struct Fencing;
    #[doc = include_str!("../../../docs/guide/kubernetes.md")]
    struct OnKubernetes;
    #[doc = include_str!("../../../docs/guide/operating.md")]
    struct Operating;
    #[doc = include_str!("../../../docs/guide/restart.md")]
    mod restart {}
    #[doc = include_str!("../../../docs/guide/start.md")]
    struct Start;
    #[doc = include_str!("../../../crates/backends/postgres/README.md")]
    struct Postgres;
    #[doc = include_str!("../../../crates/backends/redis/README.md")]
    struct Redis;
}

mod authority;
pub mod campaign;
mod captured_log;
pub mod cas;
pub mod cas_contract;
mod consul;
mod etcd;
mod kubernetes;
mod local;
mod memory;
pub mod mysql;
mod nats;
mod postgres;
pub mod postgres_store;
pub mod redis;
mod s3;
mod wait;
mod zookeeper;
mod zookeeper_proxy;

pub use authority::{Authority, ClientFiles};
pub use captured_log::CapturedLog;
pub use cas::{Cas, CasServer};
pub use consul::Consul;
pub use etcd::Etcd;
pub use kubernetes::{Kubeconfig, Kubernetes, new_namespace};
pub use local::Local;
pub use memory::Memory;
pub use mysql::Mysql;
pub use nats::Nats;
pub use postgres::Postgres;
pub use redis::Redis;
pub use s3::S3;
pub use wait::{promptly, wait_for_heartbeats};
pub use zookeeper::{Zookeeper, session_id};
pub use zookeeper_proxy::ZookeeperProxy;

/// Options with which a test opens a session of a backend, without an engine.
pub fn session_options(ttl: std::time::Duration) -> tenure::spi::SessionOptions {
    tenure::spi::SessionOptions::new(ttl, std::sync::Arc::new(tenure::BootClock), 0.1)
}
