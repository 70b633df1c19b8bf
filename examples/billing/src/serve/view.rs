//! Who leads, as this server sees it.

use futures::StreamExt;
use serde::Serialize;
use tenure::{Candidate, Elector};
use tokio::sync::watch;
use tracing::{info, warn};

/// The leader, for `/leader`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub(crate) struct Leader {
    pub(crate) id: String,
    /// Where it answers.
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

/// What is known of the leader.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) enum View {
    /// The store has not answered yet, or does not any more.
    #[default]
    Unknown,
    Vacant,
    Led(Leader),
}

/// Follows the election for as long as anybody reads the view.
pub(crate) fn watch_leader(elector: &dyn Elector, election: &str) -> watch::Receiver<View> {
    let (view, reader) = watch::channel(View::Unknown);
    let mut leaders = elector.observe(election);
    tokio::spawn(async move {
        loop {
            let next = tokio::select! {
                () = view.closed() => return,
                next = leaders.next() => next,
            };
            let seen = match next {
                Some(Ok(Some(candidate))) => View::Led(candidate.into()),
                Some(Ok(None)) => View::Vacant,
                Some(Err(error)) => {
                    warn!(%error, "cannot watch the election");
                    View::Unknown
                }
                None => {
                    view.send_replace(View::Unknown);
                    return;
                }
            };
            info!(leader = ?seen, "the view of the election");
            view.send_replace(seen);
        }
    });
    reader
}
