//! Leader election for Rust services: exactly one of your processes runs the job, its work is
//! stopped *before* anybody else can be elected, and a fencing token protects what it writes.
//!
//! ```
//! use tenure::ElectorExt;
//! # use std::sync::atomic::{AtomicU64, Ordering};
//! # #[tokio::main(flavor = "current_thread")]
//! # async fn main() -> Result<(), tenure::Error> {
//! # let (done, charged) = (tokio_util_stop(), std::sync::Arc::new(AtomicU64::new(0)));
//! # let shutdown = { let done = done.clone(); async move { done.notified().await } };
//! # async fn charge(token: tenure::FencingToken, charged: &AtomicU64) -> Result<(), tenure::BoxError> { charged.store(token.get(), Ordering::Relaxed); Ok(()) }
//! # fn tokio_util_stop() -> std::sync::Arc<tokio::sync::Notify> { Default::default() }
//! let elector = tenure::connect("memory:").await?; // or local:/dir, etcd://host/prefix, zookeeper://host/root
//!
//! elector.run_while_leader("billing", shutdown, |leadership| {
//! #    let (done, charged) = (done.clone(), charged.clone());
//!     async move {
//!         leadership.ensure()?;                                // cheap; before each side effect
//!         charge(leadership.fencing_token(), &charged).await?; // the token travels with it
//! #       done.notify_one();
//!         Ok(())
//!     }
//! }).await?;
//! # assert!(charged.load(Ordering::Relaxed) > 0);
//! # Ok(()) }
//! ```
//!
//! By hand, and watching only:
//!
//! ```
//! use futures::StreamExt;
//!
//! # #[tokio::main(flavor = "current_thread")]
//! # async fn main() -> Result<(), Box<dyn std::error::Error>> {
//! # async fn do_the_work() {}
//! let elector = tenure::connect("memory:by-hand").await?;
//! let leadership = elector.campaign("billing").await?; // waits its turn; drop it to withdraw
//! leadership.run(do_the_work()).await?;                // stopped on loss
//!
//! let mut leaders = elector.observe("billing");        // Some(leader), None while nobody leads
//! let leader = leaders.next().await.transpose()?.flatten();
//! assert!(leader.is_some());
//!
//! leadership.resign().await?;                          // a confirmed hand-over
//! elector.close().await;
//! # Ok(()) }
//! ```
//!
//! # What is promised
//!
//! - Two candidates' valid windows never overlap, as long as clock rates differ by less than the
//!   configured drift, and nobody, the store included, deletes a live entry (etcd short of processor
//!   time can). No clock's absolute value is used.
//! - Fencing tokens of one election strictly increase from term to term. A resource that refuses a
//!   token lower than the highest it has seen never takes a stale leader's write, even when the
//!   first promise's assumptions fail.
//! - Work is told to stop a grace period before the deadline, and is dropped by the deadline, before
//!   the store can give leadership to anyone else.
//!
//! # What is not
//!
//! A side effect begun in time can take effect late, and a paused virtual machine's clocks may all
//! stand still: then only the token protects, and only where the resource checks it ([`Fence`]).
//!
//! # Features
//!
//! `local` and `memory` are on by default and build without any system package, and so does
//! `zookeeper`, which is off by default. `etcd` is off by default: building it needs `protoc` with
//! protobuf's own definitions (Debian's `protobuf-compiler` and `libprotobuf-dev`).
//! `tls` adds TLS to etcd and ZooKeeper, `sasl` SASL (DIGEST-MD5) to ZooKeeper.
//!
//! `metrics` counts and measures through the `metrics` facade, `axum` serves health endpoints and sends followers'
//! requests to the leader, `clap` and `serde` read [`Settings`].
#![doc(test(attr(deny(warnings))))]
#![cfg_attr(docsrs, feature(doc_cfg))]

mod connect;
#[cfg(fuzzing)]
#[doc(hidden)]
pub mod fuzzing;
mod settings;

pub use connect::{connect, connect_with};
pub use settings::Settings;
pub use tenure_core::{
    Backoff, BootClock, BootInstant, BoxError, Candidate, CandidateId, Clock, Config, Connection, Diagnosis,
    ElectionName, ElectionStatus, Elector, ElectorExt, Error, Fence, FencingToken, Hierarchy,
    InvalidCandidate, InvalidConfig, InvalidElection, InvalidUrl, Leaders, Leadership, LeadershipHandle,
    Level, LossReason, Lost, MAX_VALUE_BYTES, OnDisconnect, OnOverrun, Overrun, ParseTokenError, Password,
    Secret, StaleToken, Status, StatusHandle, StoreElector, StoreUrl, Tls, TlsPem,
};

/// The trait that a store's backend implements, for those who write one.
pub use tenure_core::spi;

/// What is counted and measured.
#[cfg(feature = "metrics")]
pub use tenure_core::metrics;

/// Leader election in axum services.
#[cfg(feature = "axum")]
pub use tenure_axum as axum;

/// The in-memory store, with faults to inject, for tests.
#[cfg(feature = "memory")]
pub use tenure_core::memory;

/// The store for the processes of one machine.
#[cfg(feature = "local")]
pub use tenure_local as local;

/// The etcd store.
#[cfg(feature = "etcd")]
pub use tenure_etcd as etcd;

/// The ZooKeeper store.
#[cfg(feature = "zookeeper")]
pub use tenure_zookeeper as zookeeper;

/// The README's example, compiled.
#[cfg(doctest)]
#[doc = include_str!("../../../README.md")]
struct Readme;
