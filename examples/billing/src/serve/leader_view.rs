//! The leader, as this server has last seen it.

use futures::StreamExt;
use serde::Serialize;
use tenure::{Candidate, Elector};
use tokio::sync::watch;
use tracing::{info, warn};

/// The leader in the answer of `/leader`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub(crate) struct Leader {
    pub(crate) id: String,
    /// The URL of its HTTP API.
    pub(crate) address: String,
    pub(crate) token: Option<u64>,
}

impl From<Candidate> for Leader {
    fn from(candidate: Candidate) -> Self {
        Self {
            address: candidate.value_lossy().into_owned(),
            token: candidate.token.map(tenure::FencingToken::get),
            id: candidate.id,
        }
    }
}

/// What is known about the leader.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) enum LeaderView {
    /// The store has not answered yet, or does not answer any more.
    #[default]
    Unknown,
    NoLeader,
    Leader(Leader),
}

/// Observes the election until all receivers are dropped.
pub(crate) fn watch_leader(elector: &dyn Elector, election: &str) -> watch::Receiver<LeaderView> {
    let (sender, receiver) = watch::channel(LeaderView::Unknown);
    let mut leaders = elector.observe(election);
    tokio::spawn(async move {
        loop {
            let next = tokio::select! {
                () = sender.closed() => return,
                next = leaders.next() => next,
            };
            let view = match next {
                Some(Ok(Some(candidate))) => LeaderView::Leader(candidate.into()),
                Some(Ok(None)) => LeaderView::NoLeader,
                Some(Err(error)) => {
                    warn!(error = &error as &dyn std::error::Error, "cannot observe the election");
                    LeaderView::Unknown
                }
                None => {
                    sender.send_replace(LeaderView::Unknown);
                    return;
                }
            };
            info!(leader = ?view, "the leader changed");
            sender.send_replace(view);
        }
    });
    receiver
}
