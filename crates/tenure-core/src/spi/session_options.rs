//! What a session is opened with, and what it serves.

use std::{sync::Arc, time::Duration};

use crate::{Clock, ElectionName};

/// What a session serves; see [`Capabilities::session_scope`](super::Capabilities::session_scope).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub enum SessionScope {
    /// All elections of an elector: the store has one object per session (a lease, a session, a record), and all entries end with
    /// it.
    #[default]
    Elector,
    /// One candidacy in one election: what the store lets expire is the entry itself, as with a Kubernetes Lease. The engine opens
    /// a session for each campaign, and sends heartbeats only once the campaign has won. Opening one may need no request, and does not
    /// count as an answer of the store.
    Election,
}

/// What a session is opened with.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct SessionOptions {
    /// The requested TTL.
    pub ttl: Duration,
    /// The engine's clock, for [stamps](super::Stamp), and for stores where a candidate measures for how long the record of another
    /// has not changed.
    pub clock: Arc<dyn Clock>,
    /// The largest assumed difference between the rates of two clocks, as a fraction: 0.01 is one percent.
    pub drift: f64,
    /// The election, if a session serves [one election](SessionScope::Election).
    pub election: Option<ElectionName>,
}

impl SessionOptions {
    /// Options for a session that serves all elections.
    pub fn new(ttl: Duration, clock: Arc<dyn Clock>, drift: f64) -> Self {
        Self { ttl, clock, drift, election: None }
    }

    /// Options for a session that serves one election.
    #[must_use]
    pub fn for_election(self, election: ElectionName) -> Self {
        Self { election: Some(election), ..self }
    }
}
