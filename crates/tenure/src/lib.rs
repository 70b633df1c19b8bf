//! Leader election for Rust services: one of your processes does the work, never two; the work is stopped *before*
//! another process can be elected, and a fencing token protects what it writes.
//!
//! # Highlights
//!
//! - **One API for several stores.** [`connect`] takes a URL and returns an [`Elector`]: etcd, ZooKeeper, PostgreSQL,
//!   Consul, Kubernetes, NATS, S3, MariaDB, MySQL, Redis, file locks of one machine, or memory.
//! - **A guard instead of callbacks.** A campaign returns a [`Leadership`]. [`run`](LeadershipHandle::run) cancels, awaits and drops
//!   the work when the leadership is lost. Dropping the guard resigns.
//! - **Deadlines from the local clock.** [`ensure`](LeadershipHandle::ensure) compares the clock and sends no request, so
//!   that it is cheap enough to call before each side effect.
//! - **Fencing tokens.** Every term has a [`FencingToken`], which increases from term to term. [`Fence`] checks tokens.
//! - **Any executor, or none.** The engine has threads of its own, which electors can share ([`Engine`]): tokio, smol and
//!   `futures::executor` work alike, and [`blocking`] serves code without an executor.
//! - **Testable.** The in-memory store injects faults, and `tenure-testkit` runs electors in simulated time.
//!
//! # Quick start
//!
//! [`run_while_leader`](ElectorExt::run_while_leader) campaigns, runs the work while it leads, and campaigns again after a
//! loss, until `shutdown` completes:
//!
//! ```
//! use tenure::ElectorExt;
//! # use std::sync::{Arc, atomic::{AtomicU64, Ordering}};
//! # #[tokio::main(flavor = "current_thread")]
//! # async fn main() -> Result<(), tenure::Error> {
//! # let (done, charged) = (Arc::new(tokio::sync::Notify::new()), Arc::new(AtomicU64::new(0)));
//! # let shutdown = { let done = done.clone(); async move { done.notified().await } };
//! # async fn charge(token: tenure::FencingToken, charged: &AtomicU64) -> Result<(), tenure::BoxError> { charged.store(token.get(), Ordering::Relaxed); Ok(()) }
//! let elector = tenure::connect("memory:").await?; // or local:/dir, etcd://host/prefix, postgres://user@host/database, …
//!
//! elector.run_while_leader("billing", shutdown, |leadership| {
//! #    let (done, charged) = (done.clone(), charged.clone());
//!     async move {
//!         leadership.ensure()?;                                // before each side effect
//!         charge(leadership.fencing_token(), &charged).await?; // send the token with it
//! #       done.notify_one();
//!         Ok(())
//!     }
//! }).await?;
//! # assert!(charged.load(Ordering::Relaxed) > 0);
//! # Ok(()) }
//! ```
//!
//! The same in single steps, with an observer:
//!
//! ```
//! use futures::StreamExt;
//!
//! # #[tokio::main(flavor = "current_thread")]
//! # async fn main() -> Result<(), Box<dyn std::error::Error>> {
//! # async fn do_the_work() {}
//! let elector = tenure::connect("memory:steps").await?;
//! let leadership = elector.campaign("billing").await?; // waits until it leads; dropping the future withdraws
//! leadership.run(do_the_work()).await?;                // cancelled when the leadership is lost
//!
//! let mut leaders = elector.observe("billing");        // yields `None` while no candidate leads
//! let leader = leaders.next().await.transpose()?.flatten();
//! assert!(leader.is_some());
//!
//! leadership.resign().await?;                          // returns when the store has confirmed it
//! elector.close().await;
//! # Ok(()) }
//! ```
//!
//! # Stores
//!
//! | store, tested versions | URL | feature | ordered | fencing token from |
//! |---|---|---|---|---|
//! | etcd 3.4, 3.5 | `etcd://host:2379,host:2379/prefix` | `etcd` | yes | create revision of the entry's key |
//! | ZooKeeper 3.8, 3.9 | `zookeeper://host:2181,host:2181/root` | `zookeeper` | yes | `czxid` of the entry's znode |
//! | PostgreSQL 15, 17 | `postgres://user@host,host/database` | `postgres` | yes | a counter per election; its upper bits count failovers |
//! | Consul 1.8 | `consul://host:8500,host:8500/prefix` | `consul` | yes | a counter per election |
//! | Kubernetes 1.20 | `kubernetes:///namespace` | `kubernetes` | no | `resourceVersion` of the write that acquired the Lease |
//! | NATS 2.11 or later | `nats://host:4222,host:4222/bucket` | `nats` | yes | a counter per election |
//! | S3 (SeaweedFS 4.48) | `s3://bucket/prefix` | `s3` | yes | a counter per election |
//! | MariaDB 10.11 | `mysql://user@host,host/database` | `mysql` | yes | a counter per election; its upper bits count failovers |
//! | Redis 7.0, Valkey 8.1; one node | `redis://user@host/0` | `redis` | yes | a counter per election; its upper bits count restarts of the server |
//! | one machine | `local:/directory` | `local` (default) | yes | a counter file per election |
//! | one process, for tests | `memory:NAME` | `memory` (default) | yes | a counter of the store |
//!
//! Ordered means that candidates lead in the order in which they entered. [`connect`] lists the settings in a URL. To add
//! a store, implement the traits in `tenure_core::spi` (re-exported as [`spi`]) in a crate that depends on `tenure-core`,
//! test it with `tenure-testkit`, and add its scheme to a
//! [`Registry`].
//!
//! # Features
//!
//! | feature | default | adds |
//! |---|---|---|
//! | `local` | yes | elections among the processes of one machine |
//! | `memory` | yes | elections within one process, for tests |
//! | `etcd` | no | elections in etcd; building it needs a protobuf compiler: `cargo install protox --features bin` and `PROTOC=protox`, or `protoc` |
//! | `zookeeper` | no | elections in ZooKeeper |
//! | `postgres` | no | elections in PostgreSQL |
//! | `consul` | no | elections in Consul's key-value store |
//! | `kubernetes` | no | elections by Leases of Kubernetes; it always has TLS, whose settings are those of the service account or the kubeconfig |
//! | `nats` | no | elections in NATS JetStream |
//! | `s3` | no | elections in Amazon S3 and servers that speak its protocol; it always has TLS |
//! | `mysql` | no | elections in MariaDB and MySQL |
//! | `redis` | no | elections on one Redis or Valkey server |
//! | `tls` | no | TLS to etcd, ZooKeeper, PostgreSQL, Consul, NATS, MariaDB and MySQL, and Redis |
//! | `sasl` | no | SASL (DIGEST-MD5) to ZooKeeper |
//! | `metrics` | no | metrics through the `metrics` facade |
//! | `axum` | no | health endpoints, forwarding of requests to the leader, and the `Fencing-Token` header for axum services |
//! | `clap` | no | [`Settings`] from a command line |
//! | `serde` | no | [`Settings`] from a configuration file |
//!
//! Building needs a C compiler, and `etcd` a protobuf compiler. `kubernetes` compiles in the newest version of Kubernetes' API that the crate `k8s-openapi` has; a
//! program that needs another version uses the crate `tenure-kubernetes` without its feature `latest`, and [`Registry`] or [`StoreElector`].
//!
//! # Guarantees
//!
//! - **At most one leader.** At most one candidate considers itself leader, provided clock rates differ by less than the
//!   drift bound (10 %) and nothing deletes a live entry. etcd itself can delete a live entry when it lacks processor
//!   time. No clock's absolute value is used.
//! - **Increasing tokens.** Fencing tokens of an election strictly increase from term to term. A resource that refuses
//!   tokens lower than the highest one it has seen never accepts a write of a stale leader, even if the assumptions of the
//!   first guarantee do not hold.
//! - **Work stops in time.** Work is cancelled one grace period before the deadline and, unless it blocks its thread,
//!   dropped by the deadline, before the store can give leadership to another candidate.
//!
//! # Limitations
//!
//! - A write sent before the deadline can arrive after it. Send the token with each write, and let the resource refuse
//!   lower ones ([`Fence`]).
//! - All clocks of a paused virtual machine may stand still. Until the pause is detected, only the token protects.
//! - Work that blocks its thread cannot be dropped. It is reported at the deadline ([`OnOverrun`]).
//! - A task that the work spawns is not dropped with it. Run it under [`LeadershipHandle::run`].
//! - A stopped process keeps its leadership in the local store, which works on one machine only.
#![doc(test(attr(deny(warnings))))]
#![cfg_attr(docsrs, feature(doc_cfg))]

pub mod blocking;
mod connect;
mod registry;
mod settings;
#[cfg(fuzzing)]
#[doc(hidden)]
pub mod test_support;

pub use connect::{connect, connect_checked, connect_checked_with, connect_with};
pub use registry::{RegisterError, Registry};
pub use settings::Settings;
pub use tenure_core::{
    Backoff, BootClock, BootInstant, BoxError, CampaignOptions, Candidate, CandidateId, Clock, Config,
    Connection, Diagnosis, ElectionName, ElectionStatus, Elector, ElectorExt, Engine, Error, Fence,
    FencingToken, Hierarchy, InvalidCandidate, InvalidConfig, InvalidElection, InvalidUrl, Leaders,
    Leadership, LeadershipHandle, LeadershipState, Level, LossReason, Lost, MAX_VALUE_BYTES, OnClockJump,
    OnDisconnect, OnOverrun, Overrun, ParseTokenError, Password, Patience, Secret, Shutdown, StaleToken,
    Status, StatusHandle, StoreElector, StoreUrl, Tls, TlsPem,
};

/// The traits that a backend implements.
pub use tenure_core::spi;

/// The names of the metrics.
#[cfg(feature = "metrics")]
pub use tenure_core::metrics;

/// Leader election in axum services.
#[cfg(feature = "axum")]
pub use tenure_axum as axum;

/// The in-memory store for tests, with fault injection.
#[cfg(feature = "memory")]
pub use tenure_core::memory;

/// The store for the processes of one machine.
#[cfg(feature = "local")]
pub use tenure_local as local;

/// The Consul store.
#[cfg(feature = "consul")]
pub use tenure_consul as consul;

/// The etcd store.
#[cfg(feature = "etcd")]
pub use tenure_etcd as etcd;

/// The Kubernetes store.
#[cfg(feature = "kubernetes")]
pub use tenure_kubernetes as kubernetes;

/// The NATS store.
#[cfg(feature = "nats")]
pub use tenure_nats as nats;

/// The S3 store.
#[cfg(feature = "s3")]
pub use tenure_s3 as s3;

/// The MariaDB and MySQL store.
#[cfg(feature = "mysql")]
pub use tenure_mysql as mysql;

/// The PostgreSQL store.
#[cfg(feature = "postgres")]
pub use tenure_postgres as postgres;

/// The Redis store.
#[cfg(feature = "redis")]
pub use tenure_redis as redis;

/// The ZooKeeper store.
#[cfg(feature = "zookeeper")]
pub use tenure_zookeeper as zookeeper;

/// Compiles the example in the README.
#[cfg(doctest)]
#[doc = include_str!("../../../README.md")]
struct Readme;
