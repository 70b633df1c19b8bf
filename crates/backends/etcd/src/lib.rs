//! Leader election on etcd: tenure's etcd backend.
//!
//! An entry is the key `PREFIX/ELECTION/HEX(lease)` and whoever has the lowest create
//! revision leads, exactly as in Go's `concurrency.Election` and `etcdctl elect`: candidates
//! of both stand in one queue. The create revision is the fencing token.
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
//! - A heartbeat counts only once a linearizable read, sent after its answer, was
//!   answered in the same raft term.
//! - Nobody is said to lead but by a linearizable read that saw its entry first in line, or by one watch that held
//!   both entries and told of the leader's end and not of its own.
//! - With one member of three dead or frozen every call still succeeds: each member has
//!   its own connection, and a late answer is asked for elsewhere.
//! - A request that the store carries out late, after its caller gave up, leaves no entry for
//!   longer than one TTL.
//!
//! # Assumptions
//!
//! - etcd 3.4 or later, reached with TLS where the feature `tls` is on and an authority is given.
//! - With auth switched on, the user may read and write every key below `PREFIX/`.
//! - Nobody else writes below `PREFIX/~`, which holds this library's own marks.
//!
//! # Caveats
//!
//! - Keys in an election that no candidate made (not named after their own lease) are
//!   passed over, counted and logged. Go's candidates wait for such keys until somebody
//!   deletes them; we do not, and never delete them.
//! - After an answer to an entering request was lost, a mark stays below `PREFIX/~withdrawn/`
//!   until the session ends.
//! - Under the NOSPACE alarm nobody can enter. Whoever leads goes on leading, and can resign.
//! - A store that was wiped, or restored from an older snapshot, gives out old revisions again:
//!   tokens repeat then. Restore with `--bump-revision` (etcd 3.6), or change the prefix and reset
//!   the fences.
//! - The TTL is in whole seconds, rounded up, and etcd has a least one that follows from
//!   its election timeout: 2 s by default.
#![doc(test(attr(deny(warnings))))]

mod config;
mod diagnose;
mod election;
#[cfg(fuzzing)]
#[doc(hidden)]
pub mod fuzzing;
#[cfg(feature = "simulation")]
#[doc(hidden)]
pub mod simulation;
mod transport;

use std::{
    fmt,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering::Relaxed},
    },
    time::Duration,
};

use async_trait::async_trait;
use tenure_core::{
    Candidate, Diagnosis, ElectionName, Error,
    spi::{self, Backend, BackendError, BackendSession, Capabilities, Observation},
};
use tracing::warn;

pub use crate::config::EtcdConfig;
use crate::{
    election::{keys, keys::Keys, observe, position_reader::Looking, session::EtcdSession},
    transport::{batcher::Together, members::Members, watch::watcher::Watches},
};

/// An etcd cluster as a store for elections.
pub struct EtcdBackend {
    shared: Arc<Shared>,
}

/// What the backend, its sessions and its observers share.
struct Shared {
    keys: Keys,
    members: Arc<Members>,
    watches: Watches,
    looking: Arc<Together<Looking>>,
    strangers: AtomicU64,
}

impl EtcdBackend {
    /// A backend for the cluster that `config` describes. Connects to nothing yet.
    ///
    /// # Errors
    /// When `config` names no endpoint or has a time out of bounds.
    pub fn new(config: EtcdConfig) -> Result<Self, Error> {
        config.check()?;
        if config.tls.is_none() {
            spi::warn_of_plain_text("etcd", &config.endpoints, config.login.is_some());
        }
        let keys = Keys::new(&config.prefix);
        let members = Arc::new(Members::new(config, keys.probe()));
        let watches = Watches::new(Arc::clone(&members));
        let looking = Together::new(Looking { members: Arc::clone(&members) });
        let shared = Shared { keys, members, watches, looking, strangers: AtomicU64::new(0) };
        Ok(Self { shared: Arc::new(shared) })
    }

    /// How often a key was met in an election that no candidate can have made.
    pub fn foreign_entries_seen(&self) -> u64 {
        self.shared.strangers.load(Relaxed)
    }
}

impl Shared {
    /// Counts `count` keys below `election` that no candidate made, and logs the first of them: once, for they stay.
    fn note_strangers(&self, election: &str, count: u64, first: &[u8]) {
        if count == 0 {
            return;
        }
        spi::note_foreign_entries(keys::name(election), count);
        if self.strangers.fetch_add(count, Relaxed) == 0 {
            warn!(
                election = keys::name(election),
                key = %spi::printable(&String::from_utf8_lossy(first), MOST_OF_A_KEY),
                count,
                "keys in this etcd election were made by no candidate; Go candidates wait for them for ever"
            );
        }
    }
}

/// How much of a stranger's key is logged.
const MOST_OF_A_KEY: usize = 256;

#[async_trait]
impl Backend for EtcdBackend {
    fn capabilities(&self) -> Capabilities {
        Capabilities::QUEUE
    }

    async fn open_session(&self, ttl: Duration) -> Result<Box<dyn BackendSession>, BackendError> {
        Ok(Box::new(EtcdSession::open(Arc::clone(&self.shared), ttl).await?))
    }

    async fn candidates(&self, election: &ElectionName) -> Result<Vec<Candidate>, BackendError> {
        observe::candidates(&self.shared, election).await
    }

    async fn leader(&self, election: &ElectionName) -> Result<Option<Candidate>, BackendError> {
        observe::leader(&self.shared, election).await
    }

    async fn observe(&self, election: &ElectionName) -> Result<Observation, BackendError> {
        observe::observe(Arc::clone(&self.shared), election).await
    }

    async fn request_resign(&self, election: &ElectionName) -> Result<Option<Candidate>, BackendError> {
        observe::request_resign(&self.shared, election).await
    }

    async fn diagnose(&self) -> Vec<Diagnosis> {
        diagnose::diagnose(&self.shared.members).await
    }

    async fn close(&self) {
        self.shared.watches.close();
        self.shared.members.disconnect();
    }
}

impl fmt::Debug for EtcdBackend {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("EtcdBackend").field("members", &self.shared.members).finish_non_exhaustive()
    }
}
