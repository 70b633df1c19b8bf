//! Leader election on ZooKeeper: tenure's ZooKeeper backend.
//!
//! An entry is an ephemeral sequential znode `ROOT/ELECTION/c-GUID-NUMBER`. The candidate with the lowest
//! number leads, and each candidate watches its own entry and the two just ahead of it. The znode's `czxid`, a number that
//! rises across the whole ensemble, is the fencing token.
//!
//! ```no_run
//! # fn main() -> Result<(), tenure_core::Error> {
//! use tenure_zookeeper::{ZookeeperBackend, ZookeeperConfig};
//!
//! let url = "zookeeper://10.0.0.1:2181,10.0.0.2:2181,10.0.0.3:2181/acme".parse()?;
//! let backend = ZookeeperBackend::new(ZookeeperConfig::from_url(&url)?)?;
//! # let _ = backend;
//! # Ok(())
//! # }
//! ```
//!
//! # Guarantees
//!
//! - A heartbeat is a write that is refused, which a quorum commits. It counts once three later ones were answered, of which the
//!   first was sent at least a quarter of the TTL after its answer (or one tick, if `tick` is set and less); `election/session.rs`
//!   says why. While all candidates wait and none is next in line, reads keep the session alive, which extend no leadership.
//! - A candidate is reported as leader only if its entry is first in a listing, or if the leader's deletion was reported
//!   over a connection on which the watch on the candidate's own entry, set under our session, had not fired.
//! - A session outlives its connection: it is resumed at another server, and everything is read
//!   again. A session that ZooKeeper has substituted for it is never used.
//! - A request with an unknown outcome is resolved by the GUID in the entry's name, after a quorum write.
//!
//! # Assumptions
//!
//! - ZooKeeper 3.6 or later. Tested with 3.8 and 3.9.
//! - The servers' `minSessionTimeout` is at least two of their ticks, as by default, and all servers have
//!   the same bounds: a session whose timeout a server reduces is given up.
//! - With a login, no other user created the root or the znodes below it, or has permissions on them: created znodes belong
//!   to their creator alone. Each session checks that once, and warns.
//!
//! # Limitations
//!
//! - The servers grant 2 to 20 ticks, by default 4 s to 40 s. A granted timeout of half to twice the requested TTL is
//!   accepted, and refused otherwise; `min_ttl` and `max_ttl` set other bounds.
//! - With TLS, only the first reachable address of a host name is tried: the client library checks the certificate against
//!   the name that it connects to. Give each server a name of its own.
//! - The client library warns of every attempt to connect that fails, with the target `zookeeper_client`; this crate reports
//!   them at debug level. `zookeeper_client=error` leaves them out.
//! - An election's znode is a container: ZooKeeper deletes it some time after the last candidate has left.
//! - A store that was wiped reuses transaction numbers, so that fencing tokens repeat. Change the root and reset the
//!   fences.
//! - A server that is not ZooKeeper, and sends data endlessly, is read for as long as an answer is waited for, and all of
//!   the data is buffered: the client library has no bound. This lasts a fifth of the TTL and at most `attempt_timeout`
//!   while connecting, three fifths of the TTL for other requests, and some 25 s if only an observer waits. The library also
//!   trusts the length of a list: a server that sends a false one, which a real server does not do, can make the process
//!   run out of memory.
//! - From 3.9 on, a persistent znode that is named like an entry and that the user may not read cannot be recognized as
//!   garbage, and is waited for. A warning names it.
//! - ZooKeeper may keep an entry after its session has ended (ZOOKEEPER-2867, ZOOKEEPER-4837).
//!   [`Candidate`] shows its session and age; deleting it is the operator's decision.
//!
//! Numbers such as Z18 in comments are those of `docs/assurance/hazards.md`, which lists every known way in which this goes wrong.
#![doc(test(attr(deny(warnings))))]

mod config;
mod diagnose;
// The recipe: its module has a table of the steps.
mod election;
#[cfg(fuzzing)]
#[doc(hidden)]
pub mod test_support;
mod transport;

use std::{fmt, sync::Arc};

use async_trait::async_trait;
use futures::StreamExt as _;
use tenure_core::{
    Candidate, Diagnosis, ElectionName, Error, LeadershipHandle, internal,
    spi::{Backend, BackendError, BackendSession, Capabilities, Observation, SessionOptions, SessionRecord},
};

pub use crate::{
    config::ZookeeperConfig,
    election::{
        fenced::{FencedError, FencedWrite},
        layout::Layout,
    },
};
use crate::{
    election::{earlier_session, listing, observe, session::ZookeeperSession, store::ElectionStore},
    transport::{connect_options::ConnectOptions, ensemble::Ensemble},
};

/// A ZooKeeper ensemble as a store for elections.
#[derive(Clone)]
pub struct ZookeeperBackend {
    config: ZookeeperConfig,
    store: Arc<ElectionStore>,
}

impl ZookeeperBackend {
    /// A backend for the ensemble that `config` describes. Does not connect yet.
    ///
    /// # Errors
    /// When `config` names no server, an illegal root, or a time out of bounds.
    pub fn new(config: ZookeeperConfig) -> Result<Self, Error> {
        config.check()?;
        if config.tls.is_none() {
            internal::warn_of_plain_text("ZooKeeper", &config.servers, config.login.is_some(), "ca");
        }
        let options = ConnectOptions {
            login: config.login.clone(),
            creator_only: config.creator_only.unwrap_or(config.login.is_some()),
            attempt_timeout: config.attempt_timeout,
            tls: config.tls.clone(),
            root: config.root.clone(),
            barrier_path: format!("{}/~nowhere", config.root),
        };
        let ensemble = Ensemble::new(options, config.servers.clone());
        let store = Arc::new(ElectionStore::new(config.layout, config.bounds, ensemble));
        Ok(Self { config, store })
    }

    /// How often a znode with a name that no candidate uses was seen in an election.
    pub fn foreign_entries_seen(&self) -> u64 {
        self.store.foreign_entries.seen()
    }

    /// A transaction that ZooKeeper carries out only while `leadership` lasts.
    pub fn fenced(&self, leadership: &LeadershipHandle) -> FencedWrite {
        FencedWrite::new(Arc::clone(&self.store), leadership.entry())
    }
}

#[async_trait]
impl Backend for ZookeeperBackend {
    fn capabilities(&self) -> Capabilities {
        Capabilities::QUEUE.ends_sessions(true)
    }

    fn store_name(&self) -> String {
        format!("zookeeper {}", self.config.servers.join(", "))
    }

    async fn open_session(&self, options: &SessionOptions) -> Result<Box<dyn BackendSession>, BackendError> {
        Ok(Box::new(ZookeeperSession::open(Arc::clone(&self.store), options.ttl).await?))
    }

    async fn candidates(&self, election: &ElectionName) -> Result<Vec<Candidate>, BackendError> {
        self.store.map_error(observe::candidates(&self.store, election).await)
    }

    async fn leader(&self, election: &ElectionName) -> Result<Option<Candidate>, BackendError> {
        self.store.map_error(observe::leader(&self.store, election).await)
    }

    async fn observe(&self, election: &ElectionName) -> Result<Observation, BackendError> {
        let observed = observe::observe(Arc::clone(&self.store), election).await;
        let store = Arc::clone(&self.store);
        let observed = self.store.map_error(observed)?;
        Ok(observed.map(move |leader| store.map_error(leader)).boxed())
    }

    async fn elections(&self) -> Result<Vec<ElectionName>, BackendError> {
        self.store.map_error(listing::elections(&self.store).await)
    }

    async fn request_resign(&self, election: &ElectionName) -> Result<Option<Candidate>, BackendError> {
        self.store.map_error(observe::request_resign(&self.store, election).await)
    }

    /// Deletes the session's entries in all elections below the root; the session expires by its TTL.
    async fn end_session(&self, record: &SessionRecord) -> Result<(), BackendError> {
        self.store.map_error(earlier_session::end(&self.store, record).await)
    }

    async fn diagnose(&self) -> Vec<Diagnosis> {
        diagnose::diagnose(&self.store).await
    }

    async fn close(&self) {
        self.store.reader_sessions.close().await;
    }
}

impl fmt::Debug for ZookeeperBackend {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ZookeeperBackend").field("config", &self.config).finish_non_exhaustive()
    }
}
