//! The service provider interface: the traits that a store's backend implements.
//!
//! A backend knows the requests and the election recipe of its store. It knows nothing of deadlines or guards. It does not
//! repeat calls of the engine; it does its own failover.
//! The [engine](crate::engine) calls the backend. It bounds every call in time, except [`BackendSession::wait_turn`] and
//! [`EntryWatcher::poll_next`]; it repeats the calls that may be repeated; and it derives from the responses how long leadership may
//! be assumed. Users of the library call an [`Elector`](crate::Elector) and never a backend.
//!
//! | Trait | Implemented for |
//! |---|---|
//! | [`Backend`] | a client of the store: opens sessions, reads and observes elections |
//! | [`BackendSession`] | a session: heartbeats, entries, waiting for leadership |
//! | [`EntryWatcher`] | the watch on the leading entries of a session; [`PerEntryWatcher`] is one for simple stores |
//!
//! # Rules for implementers
//!
//! - No call blocks the thread of the runtime.
//! - Every future may be dropped at any time. The outcome of its request in the store is then unknown; the engine resolves
//!   it with [`leave`](BackendSession::leave), which it also calls when a future was dropped before its first poll.
//! - An error that leaves the outcome in the store unknown is [`Unavailable`](BackendErrorKind::Unavailable).
//! - Sessions and backends can be dropped on any thread, outside a runtime too.
//! - Foreign entries (entries of other libraries) are ignored or shown, never changed or deleted.

mod entry;
mod error;
mod heartbeat;
mod per_entry_watcher;
mod session;
mod session_options;
mod session_record;
mod stamp;
mod turn;

use std::fmt;

use async_trait::async_trait;
use futures::stream::BoxStream;

use crate::{Candidate, Diagnosis, ElectionName};
pub use entry::{
    Entry, EntryEvent, EntryRequest, foreign_leader_error, is_resign_requested, mark_resign_requested,
    replacement_payload,
};
pub use error::{BackendError, BackendErrorKind};
pub use heartbeat::{Heartbeat, HeartbeatProof};
pub use per_entry_watcher::PerEntryWatcher;
pub use session::{BackendSession, EntryWatcher};
pub use session_options::{SessionOptions, SessionScope};
pub use session_record::SessionRecord;
pub use stamp::Stamp;
pub(crate) use stamp::wall_offset;
pub use turn::{Entered, QueuePosition, Won};

/// A client of a store, used by one elector.
#[async_trait]
pub trait Backend: Send + Sync + fmt::Debug + 'static {
    /// What this store can do. The conformance suite selects its cases by it.
    fn capabilities(&self) -> Capabilities;

    /// The store for people who read the log, such as `etcd 10.0.0.1:2379, 10.0.0.2:2379`: its kind, and its hosts or
    /// directory. `the store` by default.
    ///
    /// # Behavior
    /// Contains neither a login nor settings, and does not change. Neither blocks nor sends a request.
    fn store_name(&self) -> String {
        "the store".to_owned()
    }

    /// Opens a new session. Its entries expire once the session was silent for about the TTL.
    ///
    /// # Behavior
    /// - The store keeps the session as one object (a lease, a session, a record), and all entries of the session live
    ///   and expire with it; or a session serves [one election](SessionScope::Election), and its entry expires. Entries that
    ///   expire individually, under one session that only the backend knows, break the rule of
    ///   [`heartbeat`](BackendSession::heartbeat).
    /// - Never returns a session that an earlier call opened.
    /// - The session began no earlier than this call, and a quorum has confirmed it where the store has one.
    /// - A call that fails or is dropped leaves at most a session that expires by itself.
    ///
    /// # Errors
    /// [`Unavailable`](BackendErrorKind::Unavailable) is retried. Permanent errors (refused credentials, an unsupported
    /// TTL) are returned to the user.
    async fn open_session(&self, options: &SessionOptions) -> Result<Box<dyn BackendSession>, BackendError>;

    /// The candidates of `election` in order of succession, the leader first.
    async fn candidates(&self, election: &ElectionName) -> Result<Vec<Candidate>, BackendError>;

    /// The leader of `election`, or `None` when there is none.
    async fn leader(&self, election: &ElectionName) -> Result<Option<Candidate>, BackendError> {
        Ok(self.candidates(election).await?.into_iter().next())
    }

    /// The names of the elections that have at least one candidate, each once, in any order.
    ///
    /// # Behavior
    /// - Leaves out names that are no [`ElectionName`], and elections that have foreign entries only.
    /// - Bounds the time of each of its requests, and their number. The engine bounds the whole call by ten request
    ///   timeouts.
    ///
    /// # Errors
    /// [`Invalid`](BackendErrorKind::Invalid) when there are too many, or when the store cannot list them, as by default.
    async fn elections(&self) -> Result<Vec<ElectionName>, BackendError> {
        Err(BackendError::new(
            BackendErrorKind::Invalid,
            "cannot list the elections: this store does not support it; name the election",
        ))
    }

    /// The current leader of `election`, and then every change of leader; `None` while there is no leader.
    ///
    /// # Behavior
    /// - Yields the current state first.
    /// - May skip a state that was already over. The last state is always yielded.
    /// - May yield the same state twice.
    /// - Ends with an error when the connection to the store is lost. The engine then observes again.
    async fn observe(&self, election: &ElectionName) -> Result<Observation, BackendError>;

    /// Asks the leader of `election` to resign: the [`EntryWatcher`] of its session reports
    /// [`EntryEvent::ResignRequested`]. Returns the leader that was asked, or `None` when there is no leader.
    ///
    /// A store that keeps payloads replaces the payload of the entry by [`mark_resign_requested`].
    ///
    /// # Errors
    /// [`Invalid`](BackendErrorKind::Invalid) when the leader is a foreign entry, or when the store does not support resign
    /// requests.
    async fn request_resign(&self, election: &ElectionName) -> Result<Option<Candidate>, BackendError> {
        Err(BackendError::new(
            BackendErrorKind::Invalid,
            format!(
                "cannot ask the leader of {election} to resign: this store does not support resign requests"
            ),
        ))
    }

    /// Ends a session of another process, and with it all of its entries. The process is dead, and so is everything that relied on
    /// the session: the engine holds the lock of the [resume file](crate::Config::with_resume_file) that it held, or the caller of
    /// [`Elector::end_session`](crate::Elector::end_session) has made sure. Only stores that support it
    /// ([`Capabilities::ends_sessions`]) implement this.
    ///
    /// # Behavior
    /// - `Ok` means that no entry is found any more that the process has created under the session. Succeeds when the
    ///   session has ended already.
    /// - Checks before that the store is the one in which the session was opened
    ///   ([`BackendSession::cluster`]), and that an entry is one of the process that saved the record
    ///   ([`SessionRecord::is_nonce_of_session`]): the session's identifier alone is no proof. Other entries stay.
    /// - A request of the dead process that the store executes later may create an entry once more. It expires with the session.
    ///
    /// # Errors
    /// [`Invalid`](BackendErrorKind::Invalid) when the session is not the one that the record means, when no entry of it was found
    /// and the store shows that it lives, or when the store does not support this; nothing was changed then.
    /// After other errors the session may have ended.
    async fn end_session(&self, record: &SessionRecord) -> Result<(), BackendError> {
        let _ = record;
        let text = "this store does not support ending a session of another process";
        Err(BackendError::new(BackendErrorKind::Invalid, text))
    }

    /// Checks the store for an operator: its members, their versions, and known defects of those versions. The engine
    /// itself checks sessions and entries.
    ///
    /// # Behavior
    /// Bounds every request in time. A request that fails is reported as a diagnosis.
    async fn diagnose(&self) -> Vec<Diagnosis> {
        Vec::new()
    }

    /// Releases connections, tasks and threads. Called after the sessions were closed, when the elector is closed and
    /// again when it is dropped: other electors may share its engine's thread.
    async fn close(&self) {}
}

/// A stream of leaders, returned by [`Backend::observe`].
pub type Observation = BoxStream<'static, Result<Option<Candidate>, BackendError>>;

/// What a store can do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Capabilities {
    /// Candidates lead in the order in which they entered.
    pub ordered: bool,
    /// Sessions are kept alive by heartbeats and expire without them. Otherwise the kernel ends them with the process.
    pub expiring: bool,
    /// The fencing token is known when a candidate enters, not only when it wins.
    pub early_token: bool,
    /// Candidates that wait are among those that [`Backend::candidates`] returns. A store without a queue shows the leader only.
    pub shows_waiting: bool,
    /// A session of a dead process can be ended ([`Backend::end_session`]).
    pub ends_sessions: bool,
    /// What a session serves.
    pub session_scope: SessionScope,
    /// How many entries the engine creates under one session at most. It opens further sessions for more. For stores in which a
    /// session with many entries is slow. `usize::MAX` by default.
    pub entries_per_session: usize,
}

impl Capabilities {
    /// A queue of expiring sessions whose tokens are known on entering, such as etcd and ZooKeeper.
    pub const QUEUE: Self = Self {
        ordered: true,
        expiring: true,
        early_token: true,
        shows_waiting: true,
        ends_sessions: false,
        session_scope: SessionScope::Elector,
        entries_per_session: usize::MAX,
    };

    /// Sets whether sessions expire.
    pub const fn expiring(mut self, yes: bool) -> Self {
        self.expiring = yes;
        self
    }

    /// Sets whether candidates lead in the order in which they entered.
    pub const fn ordered(mut self, yes: bool) -> Self {
        self.ordered = yes;
        self
    }

    /// Sets whether the fencing token is known on entering.
    pub const fn early_token(mut self, yes: bool) -> Self {
        self.early_token = yes;
        self
    }

    /// Sets whether candidates that wait are shown.
    pub const fn shows_waiting(mut self, yes: bool) -> Self {
        self.shows_waiting = yes;
        self
    }

    /// Sets what a session serves.
    pub const fn session_scope(mut self, scope: SessionScope) -> Self {
        self.session_scope = scope;
        self
    }

    /// Sets how many entries a session has at most.
    pub const fn entries_per_session(mut self, count: usize) -> Self {
        self.entries_per_session = count;
        self
    }

    /// Sets whether a session of a dead process can be ended.
    pub const fn ends_sessions(mut self, yes: bool) -> Self {
        self.ends_sessions = yes;
        self
    }
}

/// Adds `count` foreign entries, which no candidate can have written, to the metrics of `election`.
pub fn note_foreign_entries(election: &str, count: u64) {
    crate::telemetry::foreign_entries(election, count);
}
