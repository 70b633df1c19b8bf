//! What a store provides: the trait that a backend implements.
//!
//! A backend knows its store's requests and recipes, and nothing of deadlines,
//! guards or retries. The engine calls it, bounds every call in time (all but the
//! three waits and [`EntryWatcher::next`]), repeats what may be repeated, and derives from the answers how
//! long leadership may be assumed. A user of the library never calls it.
//!
//! # Rules for an implementer
//!
//! - No call blocks the runtime's thread.
//! - Every future may be dropped at any time. What its request then does in the
//!   store counts as unknown; the engine resolves it with [`leave`](BackendSession::leave).
//! - An error that does not say for certain what the store did is
//!   [`Unavailable`](BackendErrorKind::Unavailable).
//! - Dropping a session or a backend works on any thread, outside a runtime too.
//! - Entries of strangers are ignored or shown, never changed or deleted.

use std::{error::Error as StdError, fmt, os::fd::OwnedFd, sync::Arc, time::Duration};

use async_trait::async_trait;
use futures::stream::BoxStream;
use thiserror::Error;

use crate::{Candidate, CandidateId, Diagnosis, ElectionName, FencingToken, candidate};
pub use crate::{
    plain_text::{is_loopback, warn_of_plain_text},
    printable::printable,
};

/// A store, as one elector uses it.
#[async_trait]
pub trait Backend: Send + Sync + fmt::Debug + 'static {
    /// What this store can do; the conformance suite chooses its cases by it.
    fn capabilities(&self) -> Capabilities;

    /// Opens a new session whose entries vanish once it was silent for about `ttl`.
    ///
    /// # Behavior
    /// - The store keeps the session as one thing (a lease, a session, a record), with which all its entries live
    ///   and expire. Entries that expire each by itself, under a session that only the backend knows, break the
    ///   rule of [`heartbeat`](BackendSession::heartbeat) unless each heartbeat extends all of them.
    /// - Never hands out a session that an earlier call opened.
    /// - The session is alive from a moment after this call began, on the word of a
    ///   quorum where the store has one.
    /// - A call that fails or is dropped leaves at most a session that expires by itself.
    ///
    /// # Errors
    /// [`Unavailable`](BackendErrorKind::Unavailable) is tried again; anything
    /// permanent (refused credentials, an impossible `ttl`) reaches the user.
    async fn open_session(&self, ttl: Duration) -> Result<Box<dyn BackendSession>, BackendError>;

    /// The candidates of `election` in order of succession, the leader first.
    async fn candidates(&self, election: &ElectionName) -> Result<Vec<Candidate>, BackendError>;

    /// The leader of `election`, or `None` when nobody leads.
    async fn leader(&self, election: &ElectionName) -> Result<Option<Candidate>, BackendError> {
        Ok(self.candidates(election).await?.into_iter().next())
    }

    /// The leader of `election` now, and then at every change; `None` while nobody leads.
    ///
    /// # Behavior
    /// - Yields the present state first.
    /// - May leave out a state that was over at once; the last state is always yielded.
    /// - May yield the same state twice.
    /// - Ends with an error when the store is lost; the engine observes again.
    async fn observe(&self, election: &ElectionName) -> Result<Observation, BackendError>;

    /// Asks the leader of `election` to resign: its [`wait_entry_event`](BackendSession::wait_entry_event) returns
    /// [`EntryEvent::ResignRequested`]. Whom it asked; `None` when nobody leads.
    ///
    /// By [`mark_resign_requested`] in place of the entry's payload, where the store keeps payloads.
    ///
    /// # Errors
    /// [`Invalid`](BackendErrorKind::Invalid) when the leader is another library's, or the store has no way to ask.
    async fn request_resign(&self, election: &ElectionName) -> Result<Option<Candidate>, BackendError> {
        Err(BackendError::new(
            BackendErrorKind::Invalid,
            format!("this store has no way to ask the leader of {election} to resign"),
        ))
    }

    /// What an operator is told of the store: of each of its members, their versions, what is known to go wrong with
    /// those. The engine looks at sessions and entries itself.
    ///
    /// # Behavior
    /// Bounds every question in time; whatever fails is a diagnosis.
    async fn diagnose(&self) -> Vec<Diagnosis> {
        Vec::new()
    }

    /// Lets go of connections, tasks and threads, when the elector is closed (not when it is merely
    /// dropped). Sessions have been closed before.
    async fn close(&self) {}
}

/// A stream of leaders, from [`Backend::observe`].
pub type Observation = BoxStream<'static, Result<Option<Candidate>, BackendError>>;

/// The bond with the store under which entries are made.
#[async_trait]
pub trait BackendSession: Send + Sync + fmt::Debug + 'static {
    /// The session's name in the store's own words, for people.
    fn id(&self) -> String;

    /// The TTL as the store granted it, which is what deadlines are computed from.
    fn granted_ttl(&self) -> Duration;

    /// What makes an answered heartbeat count.
    fn proof(&self) -> HeartbeatProof;

    /// Asks the store to keep the session alive for another TTL.
    ///
    /// The engine reads the clock before it calls this; a request that the backend
    /// repeats on another connection is credited from that reading, and an answer
    /// to an *earlier* call must never be returned.
    ///
    /// # Behavior
    /// - `Ok` means that the store gives no entry of this session to anybody else for the TTL that is returned,
    ///   counted from some moment after this call began. That includes entries which [`enter`](Self::enter) or
    ///   [`wait_turn`](Self::wait_turn) has made in the store without having been answered yet.
    /// - The engine has one deadline for all entries of a session, and sends heartbeats while those calls are under
    ///   way. A heartbeat that extends only the entries the backend knows of makes two leaders.
    ///
    /// # Errors
    /// [`SessionGone`](BackendErrorKind::SessionGone) when the store says that the
    /// session has ended.
    async fn heartbeat(&self) -> Result<Heartbeat, BackendError>;

    /// Whether `heartbeat` was answered by a store that still spoke for its quorum:
    /// only for sessions whose proof is [`HeartbeatProof::Read`].
    ///
    /// `probe_entry` is an entry of this session, when it has one, that the read has to find.
    async fn confirm(
        &self,
        heartbeat: &Heartbeat,
        probe_entry: Option<&Entry>,
    ) -> Result<Confirmation, BackendError> {
        let _ = (heartbeat, probe_entry);
        Ok(Confirmation::Confirmed)
    }

    /// Enters a candidate into an election.
    ///
    /// # Behavior
    /// - The entry expires with the session from the moment the store makes it: a [`heartbeat`](Self::heartbeat)
    ///   that is carried out later extends it, also before this call is answered.
    /// - Called again with the same request, finds the entry that an earlier call
    ///   made, and makes no second one.
    /// - Where a session can have one entry only in an election, the entry of an *earlier*
    ///   request, made after that had been withdrawn, is removed first and not taken over.
    /// - At most one call for an election is under way in one session.
    ///
    /// # Errors
    /// [`SessionGone`](BackendErrorKind::SessionGone) when the session has ended.
    async fn enter(&self, request: &EntryRequest) -> Result<Entered, BackendError>;

    /// Waits until `entry` leads, and returns its token. Not bounded in time.
    ///
    /// # Behavior
    /// - Returns only after the store has shown that `entry` existed and belonged to this session
    ///   when the last one ahead departed, or later.
    /// - Wakes for the departure of the candidate just ahead, and at most of one other; not of every one.
    /// - Bounds every request of its own.
    /// - Where only this call makes the entry in the store, the first rule of [`enter`](Self::enter) holds for it.
    ///
    /// # Errors
    /// [`EntryGone`](BackendErrorKind::EntryGone) promptly when `entry` vanishes.
    async fn wait_turn(&self, entry: &Entry) -> Result<FencingToken, BackendError>;

    /// Waits until `entry` no longer exists or no longer belongs to this session.
    /// Not bounded in time.
    async fn wait_deleted(&self, entry: &Entry) -> Result<(), BackendError>;

    /// The same, but returns as well when the candidate has been asked to resign
    /// ([`Backend::request_resign`]), also before the call.
    async fn wait_entry_event(&self, entry: &Entry) -> Result<EntryEvent, BackendError> {
        self.wait_deleted(entry).await.map(|()| EntryEvent::Deleted)
    }

    /// One watch for all entries that lead, for a backend with a cheaper way than [`wait_entry_event`](Self::wait_entry_event)
    /// of each; `None`, the default, without one. Called once.
    fn entry_watcher(&self) -> Option<Box<dyn EntryWatcher>> {
        None
    }

    /// Replaces the value that others read. `request` is the one that made the entry, with the new value.
    ///
    /// # Errors
    /// [`EntryGone`](BackendErrorKind::EntryGone) when `entry` no longer exists.
    async fn update(&self, entry: &Entry, request: &EntryRequest) -> Result<(), BackendError>;

    /// Removes whatever entry an earlier [`enter`](Self::enter) of `request` made or
    /// is about to make; `entry` when its answer came.
    ///
    /// # Behavior
    /// - Returns `Ok` only when the store has confirmed that the entry is gone.
    /// - Succeeds when there is none.
    /// - Never removes an entry of another request, not even under the same key: without
    ///   `entry`, it is known by its payload. It may be called while a later request stands.
    async fn leave(&self, request: &EntryRequest, entry: Option<&Entry>) -> Result<(), BackendError>;

    /// A duplicate of the open file by whose lock the kernel keeps an entry: the entry lives until all its duplicates
    /// are closed, in whatever process, or the lock is given up. `None`, the default, where no file keeps it.
    ///
    /// # Errors
    /// When the entry is not there, or the file cannot be duplicated.
    fn lock_file(&self, entry: &Entry) -> Result<Option<OwnedFd>, BackendError> {
        let _ = entry;
        Ok(None)
    }

    /// Ends the session in the store; all its entries go with it.
    async fn close(&self) -> Result<(), BackendError>;
}

/// What becomes of those entries of one session that lead: [`BackendSession::entry_watcher`].
#[async_trait]
pub trait EntryWatcher: Send {
    /// Watches `entry` from now on, under this number.
    fn add(&mut self, number: u64, entry: &Entry);

    /// Watches it no more. Nothing happens when it is not watched.
    fn remove(&mut self, number: u64);

    /// What becomes of one of them: as [`wait_entry_event`](BackendSession::wait_entry_event) returns, for each
    /// [`Gone`](EntryEvent::Deleted) once and [`Asked`](EntryEvent::ResignRequested) once. Not bounded in time.
    ///
    /// # Behavior
    /// Asks the store again for as long as that can help, and bounds every request.
    ///
    /// # Errors
    /// Nothing is watched any more: [`SessionGone`](BackendErrorKind::SessionGone) when the session has ended. The engine ends it
    /// in any case.
    ///
    /// # Cancellation safety
    /// Nothing is lost when the future is dropped; it is at every notice that the engine hears.
    async fn next(&mut self) -> Result<(u64, EntryEvent), BackendError>;
}

/// What a store can do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Capabilities {
    /// Candidates lead in the order in which they entered.
    pub ordered: bool,
    /// Sessions live by heartbeats and expire without them. Where they do not, the
    /// kernel ends them with the process.
    pub expiring: bool,
    /// The token is known on entering rather than on winning.
    pub early_token: bool,
}

impl Capabilities {
    /// A queue of expiring sessions with tokens given on entering, as etcd and ZooKeeper are.
    pub const QUEUE: Self = Self { ordered: true, expiring: true, early_token: true };

    /// The same, with the sessions' expiry as given.
    pub const fn expiring(mut self, yes: bool) -> Self {
        self.expiring = yes;
        self
    }

    /// The same, with the order of succession as given.
    pub const fn ordered(mut self, yes: bool) -> Self {
        self.ordered = yes;
        self
    }

    /// The same, with the time at which tokens are given.
    pub const fn early_token(mut self, yes: bool) -> Self {
        self.early_token = yes;
        self
    }
}

/// What makes an answered heartbeat count towards the deadline.
///
/// An answer alone proves nothing: a member that was cut off from its peers, or
/// whose disk stalls, goes on answering while the others elect anew.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum HeartbeatProof {
    /// The answer itself is a quorum's word: the heartbeat is a linearizable compare-and-swap that extends the session
    /// with all its entries, as [`BackendSession::heartbeat`] demands. One that renews the row of a single election
    /// proves nothing for the others.
    Answer,
    /// A linearizable read sent after the answer finds the same epoch
    /// ([`BackendSession::confirm`]): etcd.
    Read,
    /// A later heartbeat, sent at least `gap` after this one was answered, is answered too: ZooKeeper.
    NextHeartbeat {
        /// The least time from the one's answer to the other's request.
        gap: Duration,
    },
    /// None is needed: the session lives exactly as long as the process. The
    /// deadline never comes and no heartbeat is sent.
    Process,
}

/// An answered heartbeat.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Heartbeat {
    /// How long the store keeps the session from some moment after the request was sent.
    pub ttl: Duration,
    /// The store's epoch (etcd's raft term) in which the answer was given; zero where there is none.
    pub epoch: u64,
}

/// The outcome of [`BackendSession::confirm`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Confirmation {
    /// The heartbeat counts.
    Confirmed,
    /// The epoch has changed; the heartbeat proves nothing.
    Unconfirmed,
    /// The probe_entry no longer exists, or is another one under the same name.
    ProbeEntryGone,
}

/// A candidate's wish to enter an election.
#[derive(Clone, Debug)]
pub struct EntryRequest {
    /// Which election.
    pub election: ElectionName,
    /// Who enters.
    pub candidate: CandidateId,
    /// What others can read; at most 64 KiB.
    pub value: Arc<[u8]>,
    /// Names this attempt; a new one for every entry, never used again.
    pub nonce: u128,
}

impl EntryRequest {
    /// The bytes to store in the entry; [`Candidate::decode`] reads them back. They hold the
    /// nonce, so that no two requests have the same.
    pub fn payload(&self) -> Vec<u8> {
        candidate::encode(&self.candidate, self.nonce, &self.value)
    }
}

/// A candidate's entry in the store.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Entry {
    /// Which election.
    pub election: ElectionName,
    /// The entry's key, path or file name, in the backend's own form.
    pub key: Arc<str>,
    /// The number that tells this entry from an earlier one under the same key:
    /// create revision, czxid, counter.
    pub version: u64,
}

/// The outcome of [`BackendSession::enter`].
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Entered {
    /// The entry, made now or by an earlier call with the same request.
    pub entry: Entry,
    /// The token, when the entry already leads.
    pub leads: Option<FencingToken>,
}

/// The outcome of [`BackendSession::wait_entry_event`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum EntryEvent {
    /// The entry no longer exists, or no longer belongs to this session.
    Deleted,
    /// Somebody wants the candidate to resign.
    ResignRequested,
}

/// The payload of an entry whose candidate is asked to resign, made of what stands there; `None` when that is not
/// [`EntryRequest::payload`]'s, but another library's.
pub fn mark_resign_requested(payload: &[u8]) -> Option<Vec<u8>> {
    candidate::mark_resign_requested(payload)
}

/// Whether this payload is one that [`mark_resign_requested`] has made.
pub fn is_resign_requested(payload: &[u8]) -> bool {
    candidate::is_resign_requested(payload)
}

/// The payload with which [`BackendSession::update`] takes the place of what it `found`: somebody may have asked the candidate to resign
/// just before.
pub fn replacement_payload(found: &[u8], request: &EntryRequest) -> Vec<u8> {
    let payload = request.payload();
    if is_resign_requested(found) { mark_resign_requested(&payload).unwrap_or(payload) } else { payload }
}

/// The error of [`Backend::request_resign`] when the leader is another library's.
pub fn foreign_leader_error(leader: &Candidate) -> BackendError {
    BackendError::new(
        BackendErrorKind::Invalid,
        format!("the leader, {}, is not tenure's, and listens to no wish to resign", leader.id),
    )
}

/// Checks that each of these is a host, or a host and a port, for a store whose name is `store`.
///
/// # Errors
/// Says what is wrong with one, and does not repeat it: there may be a password in it.
pub fn check_hosts(store: &str, hosts: &[String]) -> Result<(), BackendError> {
    let wrong = hosts.iter().find_map(|host| crate::url::check_host(host).err());
    match wrong {
        None if hosts.is_empty() => Err(BackendError::new(
            BackendErrorKind::Invalid,
            format!("no host of {store} is given; at least one host or host:port is needed"),
        )),
        None => Ok(()),
        Some(reason) => Err(BackendError::new(
            BackendErrorKind::Invalid,
            format!(
                "a host of {store} is not allowed: {reason}; it is one host or host:port, such as 10.0.0.1:2379"
            ),
        )),
    }
}

/// Counts entries that no candidate can have made, for the metrics.
pub fn note_foreign_entries(election: &str, count: u64) {
    crate::telemetry::foreign_entries(election, count);
}

/// What kind of failure a [`BackendError`] is; it decides what the engine does.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum BackendErrorKind {
    /// The store did not answer, or not usefully; the outcome is unknown. Tried again.
    Unavailable,
    /// The session has ended in the store.
    SessionGone,
    /// The entry does not exist.
    EntryGone,
    /// Credentials or permissions were refused. Permanent.
    Unauthorized,
    /// The store refuses the request as such. Permanent.
    Invalid,
}

/// The most that an error repeats of what a store said.
const MOST_SAID: usize = 1024;

/// A failure of a store, classified. Its text is on one line and of bounded length, whatever the store said.
#[derive(Clone, Debug, Error)]
#[error("{message}")]
pub struct BackendError {
    kind: BackendErrorKind,
    message: String,
    #[source]
    source: Option<Arc<dyn StdError + Send + Sync>>,
}

impl BackendError {
    /// A failure without an underlying error.
    pub fn new(kind: BackendErrorKind, message: impl Into<String>) -> Self {
        Self { kind, message: printable(&message.into(), MOST_SAID), source: None }
    }

    /// A failure caused by `source`. Neither text may hold a secret.
    pub fn with_source(
        kind: BackendErrorKind,
        message: impl Into<String>,
        source: impl Into<Box<dyn StdError + Send + Sync>>,
    ) -> Self {
        let message = printable(&message.into(), MOST_SAID);
        Self { kind, message, source: Some(Arc::from(source.into())) }
    }

    /// What to do about it.
    pub fn kind(&self) -> BackendErrorKind {
        self.kind
    }

    /// Whether asking again can help: the store did not answer.
    pub fn is_retryable(&self) -> bool {
        self.kind == BackendErrorKind::Unavailable
    }

    /// Whether asking again cannot help, with this session or another.
    pub fn is_permanent(&self) -> bool {
        matches!(self.kind, BackendErrorKind::Unauthorized | BackendErrorKind::Invalid)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_error_is_on_one_line_whatever_the_store_said() {
        let said = format!("no\r\nERROR forged\u{1b}[2J{}", "x".repeat(1 << 20));
        let kind = BackendErrorKind::Unavailable;
        let io = std::io::Error::other("cause");
        for error in
            [BackendError::new(kind, said.as_str()), BackendError::with_source(kind, said.as_str(), io)]
        {
            let text = error.to_string();
            assert!(text.starts_with("no\\r\\nERROR forged\\u{1b}[2J") && text.len() < 2000, "{text}");
            assert_eq!(BackendError::new(kind, text.as_str()).to_string(), text, "not escaped twice");
        }
    }
}
