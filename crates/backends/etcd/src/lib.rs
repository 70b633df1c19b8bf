//! Leader election on etcd: tenure's etcd backend.
//!
//! An entry is the key `PREFIX/ELECTION/HEX(lease)`, and the entry with the lowest create revision leads, exactly as
//! in Go's `concurrency.Election` and `etcdctl elect`: candidates of both are in one queue. The create revision is
//! the fencing token.
//!
//! ```no_run
//! # fn main() -> Result<(), tenure_core::Error> {
//! use tenure_etcd::{EtcdBackend, EtcdConfig};
//!
//! let url = "etcd://10.0.0.1:2379,10.0.0.2:2379,10.0.0.3:2379/acme".parse()?;
//! let backend = EtcdBackend::new(EtcdConfig::from_url(&url)?)?;
//! # let _ = backend;
//! # Ok(())
//! # }
//! ```
//!
//! # Guarantees
//!
//! - The heartbeat of a leader, or of a candidate that is next in line, is a lease keepalive, and a linearizable read that is
//!   sent after its response. It counts if both report the same raft term; otherwise both are repeated. Candidates further
//!   back send keepalives only.
//! - A candidate is reported as leader only by a linearizable read that found its entry first in the queue, or by the
//!   watch of all deletions, which reported the deletion of the leader's entry, and not of its own.
//! - With one member of three dead or frozen every call still succeeds: each member has its own connection, and a
//!   late request is repeated on another member.
//! - A request that the store executes after its caller gave up leaves an entry for at most one TTL.
//!
//! # Assumptions
//!
//! - etcd 3.4 or 3.5; 3.6 is not tested. TLS needs the feature `tls` and a certificate authority.
//! - etcd runs without `--experimental-enable-lease-checkpoint-persist`, as it does by default.
//! - With authentication enabled, the user may read and write every key below `PREFIX/`.
//! - No other client writes below `PREFIX/~`, which holds the markers of withdrawn requests.
//!
//! # Limitations
//!
//! - Foreign keys in an election, which are not named after their own lease, are skipped, counted and logged, and
//!   never deleted. Go's candidates wait for such keys until they are deleted.
//! - When a request to enter is withdrawn, and one of its attempts was never answered, a marker stays below
//!   `PREFIX/~withdrawn/` until the session ends.
//! - Under the NOSPACE alarm no candidate can enter. The leader stays leader, and can resign.
//! - A store that was wiped, or restored from an older snapshot, assigns old revisions again, so that tokens repeat.
//!   Restore with `--bump-revision` (etcd 3.6), or change the prefix and reset the fences.
//! - The TTL is in whole seconds, rounded up. etcd's minimum follows from its election timeout: 2 s by default.
//!
//! Numbers such as E18 in comments are those of `docs/assurance/hazards.md`, which lists every known way in which this goes wrong.
#![doc(test(attr(deny(warnings))))]

mod config;
mod diagnose;
// The recipe: its module has a table of the steps.
mod election;
mod known_bugs;
#[cfg(any(fuzzing, feature = "simulation"))]
#[doc(hidden)]
pub mod test_support;
mod transport;

use std::{fmt, sync::Arc};

use async_trait::async_trait;
use tenure_core::{
    Candidate, Diagnosis, ElectionName, Error, internal,
    spi::{Backend, BackendError, BackendSession, Capabilities, Observation, SessionOptions, SessionRecord},
};

pub use crate::config::EtcdConfig;
use crate::election::{earlier_session, listing, observe, session::EtcdSession, store::ElectionStore};

/// An etcd cluster as a store for elections.
pub struct EtcdBackend {
    store: Arc<ElectionStore>,
}

impl EtcdBackend {
    /// A backend for the cluster that `config` describes. Does not connect yet.
    ///
    /// # Errors
    /// When `config` has no endpoint or a time that is out of range.
    pub fn new(config: EtcdConfig) -> Result<Self, Error> {
        config.check()?;
        if config.tls.is_none() {
            internal::warn_of_plain_text("etcd", config.hosts(), config.login.is_some(), "ca");
        }
        Ok(Self { store: Arc::new(ElectionStore::new(config)) })
    }

    /// How many foreign keys were found in elections. A key counts each time it is found.
    pub fn foreign_entries_seen(&self) -> u64 {
        self.store.foreign_entries()
    }
}

/// How many entries are created under one lease. Where authentication is enabled, etcd checks for each put under a lease whether the user may write every key of that
/// lease: 10 000 keys make that 44 ms a put (hazard E18).
const ENTRIES_PER_LEASE: usize = 500;

#[async_trait]
impl Backend for EtcdBackend {
    fn capabilities(&self) -> Capabilities {
        Capabilities::QUEUE.ends_sessions(true).entries_per_session(ENTRIES_PER_LEASE)
    }

    fn store_name(&self) -> String {
        format!("etcd {}", self.store.members.config.hosts().join(", "))
    }

    async fn open_session(&self, options: &SessionOptions) -> Result<Box<dyn BackendSession>, BackendError> {
        Ok(Box::new(EtcdSession::open(Arc::clone(&self.store), options.ttl).await?))
    }

    async fn candidates(&self, election: &ElectionName) -> Result<Vec<Candidate>, BackendError> {
        observe::candidates(&self.store, election).await
    }

    async fn leader(&self, election: &ElectionName) -> Result<Option<Candidate>, BackendError> {
        observe::leader(&self.store, election).await
    }

    async fn elections(&self) -> Result<Vec<ElectionName>, BackendError> {
        listing::elections(&self.store).await
    }

    async fn observe(&self, election: &ElectionName) -> Result<Observation, BackendError> {
        observe::observe(Arc::clone(&self.store), election).await
    }

    async fn request_resign(&self, election: &ElectionName) -> Result<Option<Candidate>, BackendError> {
        observe::request_resign(&self.store, election).await
    }

    async fn end_session(&self, record: &SessionRecord) -> Result<(), BackendError> {
        earlier_session::end(&self.store, record).await
    }

    async fn diagnose(&self) -> Vec<Diagnosis> {
        diagnose::diagnose(&self.store.members).await
    }

    async fn close(&self) {
        self.store.watcher.close();
        self.store.members.disconnect_all();
    }
}

impl fmt::Debug for EtcdBackend {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("EtcdBackend").field("members", &self.store.members).finish_non_exhaustive()
    }
}
