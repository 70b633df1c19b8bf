//! Heartbeats, and what proves them.

use std::time::Duration;

/// What proves that an answered heartbeat has extended the session, so that it may extend the deadline.
///
/// An answer alone proves nothing: a member that is partitioned from its peers, or whose disk stalls, continues to
/// respond while the other members elect a new leader.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum HeartbeatProof {
    /// The answer itself: [`heartbeat`](super::BackendSession::heartbeat) returns only once a quorum has carried out the
    /// extension, or another request of the backend has shown that it has. A linearizable compare-and-swap of the session is such a heartbeat;
    /// for etcd it is a keepalive and a read.
    Answer,
    /// The answers to `count` later heartbeats, one after another, of which the first was sent at least `gap` after this one was
    /// answered. They prove an answered [`keep_alive`](super::BackendSession::keep_alive) as well. Used for ZooKeeper.
    LaterHeartbeats {
        /// The least time between the response to this heartbeat and the request of the first that counts, by the store's clock.
        gap: Duration,
        /// How many have to be answered.
        count: u32,
    },
    /// No heartbeat is needed: the session lives exactly as long as the process. There is no deadline, and no
    /// heartbeat is sent.
    Process,
}

/// An answered heartbeat.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Heartbeat {
    /// How long the store keeps the session, from some instant after the request was sent.
    pub ttl: Duration,
}

impl Heartbeat {
    /// A heartbeat after which the store keeps the session for `ttl`.
    pub const fn new(ttl: Duration) -> Self {
        Self { ttl }
    }
}
