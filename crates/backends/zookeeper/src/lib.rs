//! Leader election on ZooKeeper: tenure's ZooKeeper backend.
//!
//! An entry is an ephemeral sequential znode `ROOT/ELECTION/c-GUID-NUMBER`; whoever has the lowest
//! number leads, and each candidate watches the one just ahead of it. The znode's `czxid`, a number that
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
//! - A heartbeat is a quorum write and a `sync` after it, and counts only once a later one, sent a quarter of the
//!   TTL (or, where `tick` is given and less, a tick) after its answer, was answered too: a follower that is cut off
//!   answers its clients' pings for seconds.
//! - Nobody is said to lead but by a listing in which its entry is first, or because the leader's end came over a
//!   connection on which the watch on its own entry, made under our session, had not fired.
//! - A session outlives its connection: it is resumed at another server, and everything is looked
//!   at anew. A session that ZooKeeper has put in another's place is never taken for it.
//! - A request whose outcome is unknown is resolved by the GUID in the entry's name, after a write that took a quorum.
//!
//! # Assumptions
//!
//! - ZooKeeper 3.6 or later, tested with 3.8 and 3.9.
//! - The servers' `minSessionTimeout` is at least two of their ticks, as it is by default, and all have
//!   the same bounds: a session that a server cuts short is given up.
//! - Where we log in, nobody else made the root or the znodes below it, or has a part in them: what is created belongs to its creator
//!   alone. Each session looks once whether that is so, and warns.
//!
//! # Caveats
//!
//! - The servers grant 2 to 20 ticks, by default 4 s to 40 s. What they grant instead of the TTL asked for is taken when
//!   it is from half to twice of that, and refused otherwise; `min_ttl` and `max_ttl` set other bounds.
//! - An election's znode is a container: ZooKeeper deletes it some time after the last candidate has left.
//! - A store that was wiped gives out old transaction numbers again: tokens repeat then. Change the root and reset the
//!   fences.
//! - What is not ZooKeeper, and sends without end, is listened to for as long as an answer is waited for (connecting, a
//!   fifth of the TTL and at most `attempt_timeout`; otherwise that; some 25 s where only an observer listens), and all of it is kept
//!   for so long: the client library has no bound. It also believes a server that says how long a list is: one that lies,
//!   which a real one does not, can end the process for want of memory.
//! - From 3.9 on, a persistent znode that is named like an entry and that we may not read cannot be told for
//!   garbage, and is waited for; a warning names it.
//! - ZooKeeper may keep an entry whose session is over (ZOOKEEPER-2867, ZOOKEEPER-4837).
//!   [`Candidate`] shows its owner and age; deleting it is an operator's decision.
#![doc(test(attr(deny(warnings))))]

mod config;
mod connection;
mod diagnose;
mod ensemble;
mod entry_watcher;
mod error;
mod fenced;
#[cfg(fuzzing)]
#[doc(hidden)]
pub mod fuzzing;
mod layout;
mod link;
mod observe;
mod owners;
mod parents;
mod queue;
mod servers;
mod session;
mod survey;
mod terms;
mod wait;

use std::{
    collections::HashSet,
    fmt,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError, Weak,
        atomic::{AtomicU64, Ordering::Relaxed},
    },
    time::Duration,
};

use async_trait::async_trait;
use futures::{
    FutureExt as _, StreamExt as _,
    future::{BoxFuture, join_all},
};
use tenure_core::{
    Candidate, Diagnosis, ElectionName, Error, LeadershipHandle,
    spi::{self, Backend, BackendError, BackendSession, Capabilities, Observation},
};
use tracing::warn;
use zookeeper_client::Stat;

pub use crate::{
    config::ZookeeperConfig,
    fenced::{FencedError, FencedWrite},
    layout::Layout,
};
use crate::{
    connection::is_unread, ensemble::Ensemble, error::unknown, link::Link, servers::Servers,
    session::ZookeeperSession, terms::Terms,
};

/// The TTL of a session that is opened only to read.
const READER_TTL: Duration = Duration::from_secs(10);

/// A ZooKeeper ensemble as a store for elections.
#[derive(Clone)]
pub struct ZookeeperBackend {
    shared: Arc<Shared>,
}

/// A session to read over, opened by a task of its own for all who wait: none of them has to be polled for the others.
type Opening = futures::future::Shared<BoxFuture<'static, Result<Arc<Link>, BackendError>>>;

/// What the backend, its sessions and its observers share.
#[derive(Debug)]
struct Shared {
    config: ZookeeperConfig,
    terms: Arc<Terms>,
    servers: Arc<Servers>,
    ensemble: Ensemble,
    /// The sessions of electors; reads go over them.
    links: Mutex<Vec<Weak<Link>>>,
    /// The session opened to read while there is no other.
    reader: Mutex<Option<Opening>>,
    /// All sessions opened to read: an observer may have one still when there is another.
    readers: Mutex<Vec<Weak<Link>>>,
    strangers: AtomicU64,
    /// What was waited for and could not be read, and was told of.
    unread: Mutex<HashSet<String>>,
}

impl ZookeeperBackend {
    /// A backend for the ensemble that `config` describes. Connects to nothing yet.
    ///
    /// # Errors
    /// When `config` names no server, an illegal root, or a time out of bounds.
    pub fn new(config: ZookeeperConfig) -> Result<Self, Error> {
        config.check()?;
        if config.tls.is_none() {
            spi::warn_of_plain_text("ZooKeeper", &config.servers, config.login.is_some());
        }
        let terms = Terms {
            login: config.login.clone(),
            creator_only: config.creator_only.unwrap_or(config.login.is_some()),
            attempt_timeout: config.attempt_timeout,
            tls: config.tls.clone(),
            nowhere: format!("{}/~nowhere", config.root),
        };
        let shared = Shared {
            terms: Arc::new(terms),
            servers: Arc::new(Servers::new(config.servers.clone())),
            ensemble: Ensemble::default(),
            config,
            links: Mutex::default(),
            reader: Mutex::default(),
            readers: Mutex::default(),
            strangers: AtomicU64::new(0),
            unread: Mutex::default(),
        };
        Ok(Self { shared: Arc::new(shared) })
    }

    /// How often a znode was met in an election that no candidate can have made.
    pub fn foreign_entries_seen(&self) -> u64 {
        self.shared.strangers.load(Relaxed)
    }

    /// A transaction that ZooKeeper carries out only while `leadership` stands.
    pub fn fenced(&self, leadership: &LeadershipHandle) -> FencedWrite {
        FencedWrite::new(Arc::clone(&self.shared), leadership.entry())
    }
}

impl Shared {
    /// The znode of `election`.
    fn election(&self, election: &ElectionName) -> String {
        format!("{}/{election}", self.config.root)
    }

    /// The znode below which sessions have theirs. No election's name may have a `~`.
    fn sessions(&self) -> String {
        format!("{}/~sessions", self.config.root)
    }

    /// The number in the name at `path`; last when there is none.
    fn number(&self, path: &str) -> u64 {
        let name = path.rsplit_once('/').map_or(path, |(_, name)| name);
        self.config.layout.number(name).unwrap_or(u64::MAX)
    }

    /// The outcome for whoever asked: see [`Terms::not_permitted`].
    fn permitted<T>(&self, outcome: Result<T, BackendError>) -> Result<T, BackendError> {
        outcome.map_err(|error| self.terms.not_permitted(error))
    }

    /// Counts and logs what is no candidate's.
    fn note_strangers(&self, parent: &str, count: usize) {
        if count > 0 {
            let election = parent.rsplit_once('/').map_or(parent, |(_, election)| election);
            spi::note_foreign_entries(election, count as u64);
        }
        if count > 0 && self.strangers.fetch_add(count as u64, Relaxed) == 0 {
            warn!(parent, count, "znodes in this ZooKeeper election were made by no candidate");
        }
    }

    /// Says, once, that what stands at `path` is waited for and may be garbage: whoever may create znodes beside it can
    /// make one that outlives it, and forbid us to see that.
    fn note_unread(&self, path: &str, stat: &Stat) {
        const REMEMBERED: usize = 1000;
        if !is_unread(stat) {
            return;
        }
        let mut unread = lock(&self.unread);
        if unread.len() >= REMEMBERED {
            unread.clear();
        }
        if unread.insert(path.to_owned()) {
            warn!(
                path,
                "this user may not read this znode, which is named like an entry: it is waited for as if a candidate had made \
                 it; let somebody who may read it see whether it has an owner (zkCli.sh: stat), and who may create beside it"
            );
        }
    }

    /// Lets reads go over `link` too.
    fn share(&self, link: &Arc<Link>) {
        remember(&self.links, link);
    }

    /// A session to read over: an elector's where there is one.
    async fn reader(self: &Arc<Self>) -> Result<Arc<Link>, BackendError> {
        let shared = lock(&self.links).iter().rev().filter_map(Weak::upgrade).find(|link| !link.is_over());
        if let Some(link) = shared {
            // Whoever reads over the other one has it still.
            *lock(&self.reader) = None;
            return Ok(link);
        }
        let opening = {
            let mut reader = lock(&self.reader);
            let usable = reader.take().filter(|opening| match opening.peek() {
                None => true,
                Some(opened) => opened.as_ref().is_ok_and(|link| !link.is_over()),
            });
            reader.insert(usable.unwrap_or_else(|| self.open_reader())).clone()
        };
        opening.await
    }

    fn open_reader(self: &Arc<Self>) -> Opening {
        let shared = Arc::clone(self);
        let opened = tokio::spawn(async move {
            let (terms, servers) = (Arc::clone(&shared.terms), Arc::clone(&shared.servers));
            let link = Arc::new(Link::open(terms, servers, READER_TTL).await?);
            link.stays_bare();
            remember(&shared.readers, &link);
            ensemble::check(&shared, &*link.connection().await?, false).await?;
            Ok(link)
        });
        let opened = opened.map(|opened| {
            opened.unwrap_or_else(|error| Err(unknown(format!("opening a session to read: {error}"))))
        });
        opened.boxed().shared()
    }
}

/// Notes a session, and forgets those that have gone.
fn remember(links: &Mutex<Vec<Weak<Link>>>, link: &Arc<Link>) {
    let mut links = lock(links);
    links.retain(|link| link.strong_count() > 0);
    links.push(Arc::downgrade(link));
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

#[async_trait]
impl Backend for ZookeeperBackend {
    fn capabilities(&self) -> Capabilities {
        Capabilities::QUEUE
    }

    async fn open_session(&self, ttl: Duration) -> Result<Box<dyn BackendSession>, BackendError> {
        Ok(Box::new(ZookeeperSession::open(Arc::clone(&self.shared), ttl).await?))
    }

    async fn candidates(&self, election: &ElectionName) -> Result<Vec<Candidate>, BackendError> {
        self.shared.permitted(observe::candidates(&self.shared, election).await)
    }

    async fn leader(&self, election: &ElectionName) -> Result<Option<Candidate>, BackendError> {
        self.shared.permitted(observe::leader(&self.shared, election).await)
    }

    async fn observe(&self, election: &ElectionName) -> Result<Observation, BackendError> {
        let observed = observe::observe(Arc::clone(&self.shared), election).await;
        let shared = Arc::clone(&self.shared);
        let observed = self.shared.permitted(observed)?;
        Ok(observed.map(move |leader| shared.permitted(leader)).boxed())
    }

    async fn request_resign(&self, election: &ElectionName) -> Result<Option<Candidate>, BackendError> {
        self.shared.permitted(observe::request_resign(&self.shared, election).await)
    }

    async fn diagnose(&self) -> Vec<Diagnosis> {
        diagnose::diagnose(&self.shared).await
    }

    async fn close(&self) {
        // One that is being opened ends as soon as it is open: nobody has it.
        drop(lock(&self.shared.reader).take());
        let readers = std::mem::take(&mut *lock(&self.shared.readers));
        join_all(readers.iter().filter_map(Weak::upgrade).map(|reader| async move { reader.close().await }))
            .await;
    }
}

impl fmt::Debug for ZookeeperBackend {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ZookeeperBackend").field("config", &self.shared.config).finish_non_exhaustive()
    }
}
