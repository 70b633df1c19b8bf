//! Heartbeats, and what confirms them.

use std::time::Duration;

/// What confirms an answered heartbeat, so that it may extend the deadline.
///
/// A response alone proves nothing: a member that is partitioned from its peers, or whose disk stalls, continues to
/// respond while the other members elect a new leader.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum HeartbeatProof {
    /// The response itself: a quorum has carried out the heartbeat. It is a linearizable compare-and-swap that extends the
    /// session with all its entries, as [`BackendSession::heartbeat`](super::BackendSession::heartbeat) requires. A
    /// compare-and-swap that renews the row of a single election proves nothing for the others.
    Answer,
    /// A linearizable read ([`BackendSession::confirm`](super::BackendSession::confirm)), sent after the response, that finds the
    /// same epoch. Used for etcd.
    Read,
    /// A later heartbeat, sent at least `gap` after this one was answered, that is answered too. Used for ZooKeeper.
    NextHeartbeat {
        /// The least time between the response to this heartbeat and the request of the next.
        gap: Duration,
    },
    /// No heartbeat is needed: the session lives exactly as long as the process. There is no deadline, and no
    /// heartbeat is sent.
    Process,
}

/// An answered heartbeat.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Heartbeat {
    /// How long the store keeps the session, from some instant after the request was sent.
    pub ttl: Duration,
    /// The store's epoch (etcd: the raft term) in which the response was sent. Zero if the store has none.
    pub epoch: u64,
}

/// The outcome of [`BackendSession::confirm`](super::BackendSession::confirm).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Confirmation {
    /// The heartbeat is confirmed.
    Confirmed,
    /// The epoch has changed: the heartbeat proves nothing.
    Unconfirmed,
    /// The probe entry no longer exists, or another entry has its key.
    ProbeEntryGone,
}
