//! Leader election over a shared store, with fencing tokens: the engine behind the `tenure` crate.
//!
//! This crate contains everything that does not depend on a particular store: the [`Elector`] trait and the guard type
//! [`Leadership`], which users hold; the engine, which implements all deadline rules; the traits in [`spi`], which a
//! store's backend implements; and an in-memory store for tests.
//!
//! # Who needs this crate
//!
//! - **Applications** depend on the facade crate `tenure`, which re-exports this crate and opens a store from its URL.
//! - **Authors of a backend** depend on this crate, implement [`spi::Backend`] and [`spi::BackendSession`], and test them with
//!   the conformance suite of `tenure-testkit`.
//!
//! # Example
//!
//! ```
//! # #[tokio::main(flavor = "current_thread")]
//! # async fn main() -> Result<(), tenure_core::Error> {
//! use std::sync::Arc;
//! use tenure_core::{Config, Elector, StoreElector, memory::MemoryStore};
//!
//! let elector = StoreElector::new(Arc::new(MemoryStore::new().backend()), Config::new())?;
//! let leadership = elector.campaign("billing").await?;
//! let output = leadership.run(async { "work, which is dropped before the deadline" }).await?;
//! # assert!(output.starts_with("work"));
//! leadership.resign().await
//! # }
//! ```
//!
//! # Modules and types
//!
//! | For | Types |
//! |---|---|
//! | campaigning and observing | [`Elector`], [`CampaignOptions`], [`ElectorExt`], [`Hierarchy`]; [`StoreElector`] is the implementation for every store, and [`Engine`] has its threads |
//! | leading | [`Leadership`], [`LeadershipHandle`], [`LeadershipState`], [`LossReason`] |
//! | shutting down | [`Shutdown`] |
//! | protecting a resource from a stale leader | [`FencingToken`], [`Fence`] |
//! | settings | [`Config`], [`StoreUrl`], [`Tls`], [`Password`] |
//! | health endpoints and operators | [`StatusHandle`], [`Status`], [`Diagnosis`], `metrics` |
//! | errors | [`Error`], [`Lost`], [`InvalidConfig`], [`InvalidUrl`] |
//! | clocks, real and simulated | [`Clock`], [`BootClock`], [`SimClock`] |
//! | implementing a store | [`spi`] |
//! | tests and simulations | [`memory`] |
//! | the rules of sessions, terms and deadlines | [`engine`] |
//!
//! # Platforms
//!
//! Tested on Linux. The crate compiles for macOS and Windows, without tests there: deadlines are measured with another
//! [clock](BootClock), and the watchdog checks them every 100 ms at least, because its wait may not count a suspension of the
//! machine.
//!
//! # Features
//!
//! | Feature | Effect |
//! |---|---|
//! | `metrics` | records metrics through the `metrics` facade |
//! | `tls` | checks certificates and keys when they are configured, not only when a connection is made |
#![doc(test(attr(deny(warnings))))]

#[doc(hidden)]
pub mod block_on;
mod campaign_options;
mod candidate;
mod clock;
mod config;
mod diagnosis;
mod election_status;
mod elector;
mod error;
mod error_chain;
#[doc(hidden)]
pub mod failpoints;
mod fencing;
mod hierarchy;
mod hosts;
mod leadership;
mod leadership_handle;
mod leadership_state;
mod loss;
mod name;
mod plain_text;
mod printable;
mod random;
mod resume;
mod retry_delays;
mod runner;
mod shutdown;
mod status;
mod sync;
mod telemetry;
mod timers;
mod tls;
mod url;

pub mod engine;
pub mod memory;
#[cfg(feature = "metrics")]
pub mod metrics;
pub mod spi;

/// For the backends of this project, and its command, only.
#[doc(hidden)]
pub mod internal {
    pub use crate::{
        hosts::{check_hosts, check_tls, name_and_port},
        plain_text::{is_loopback, warn_of_plain_text},
        printable::printable,
        tls::ClientCache,
    };

    /// Locks a mutex. A panic of a thread that held it is no reason to stop.
    pub fn lock<T>(mutex: &std::sync::Mutex<T>) -> std::sync::MutexGuard<'_, T> {
        mutex.lock().unwrap_or_else(std::sync::PoisonError::into_inner)
    }
}

pub use campaign_options::{CampaignOptions, Patience};
pub use candidate::{Candidate, MAX_VALUE_BYTES};
pub use clock::{BootClock, BootInstant, Clock, SimClock};
pub use config::{Backoff, Config, OnClockJump, OnDisconnect, OnOverrun, Overrun};
pub use diagnosis::{Diagnosis, Level};
pub use election_status::{ElectionStatus, StatusHandle};
pub use elector::{Elector, Leaders};
pub use engine::{Engine, StoreElector};
pub use error::{BoxError, Error, InvalidConfig, Lost};
pub use fencing::{Fence, FencingToken, ParseTokenError, StaleToken};
pub use hierarchy::Hierarchy;
pub use leadership::Leadership;
pub use leadership_handle::LeadershipHandle;
pub use leadership_state::LeadershipState;
pub use loss::LossReason;
pub use name::{CandidateId, ElectionName, InvalidCandidate, InvalidElection};
pub use runner::ElectorExt;
pub use shutdown::Shutdown;
pub use status::{Connection, Status};
pub use tls::{Tls, TlsPem};
pub use url::{InvalidUrl, Password, Secret, StoreUrl};
