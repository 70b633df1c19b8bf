//! Candidates that flood an election: hundreds with large values, and one that enters and leaves repeatedly.

use std::sync::Arc;

use futures::StreamExt as _;
use tenure::{Candidate, Elector, Leaders};
use tenure_testkit::suite::until;

use crate::{assert_peak_memory_mib, elector, etcd, ids, postgres, promptly, zookeeper};

const CANDIDATES: usize = 300;
const TERMS: usize = 200;
static LARGE_VALUE: [u8; 64 * 1024] = [b'x'; 64 * 1024];

/// Polls an observer until it yields this leader. Returns the number of states that it yielded.
async fn wait_for_leader(leaders: &mut Leaders, id: &str) -> usize {
    let mut states = 0;
    loop {
        let state = leaders.next().await.unwrap().unwrap();
        states += 1;
        if state.is_some_and(|Candidate { id: leader, .. }| leader == id) {
            return states;
        }
    }
}

/// A candidate leads once all others have left. An observer that was not polled meanwhile yields only the latest states.
async fn candidate_outlasts_flood(
    candidate: Arc<dyn Elector>,
    observer: Arc<dyn Elector>,
    flooding: Arc<dyn Elector>,
    remove_all: impl AsyncFnOnce(),
) {
    let mut leaders = observer.observe("e");
    promptly("the first state", leaders.next()).await.unwrap().unwrap();
    let waiting = {
        let candidate = Arc::clone(&candidate);
        tokio::spawn(async move { candidate.campaign("e").await })
    };
    until("the candidate waits", async || ids(&*candidate).await.len() == CANDIDATES + 1).await;
    remove_all().await;
    let leadership = promptly("leading", waiting).await.unwrap().unwrap();
    let states = promptly("the observer", wait_for_leader(&mut leaders, "candidate")).await;
    assert!(states <= 3, "{states} states were buffered");
    promptly("resigning", leadership.resign()).await.unwrap();
    // Another candidate enters and leaves repeatedly.
    for _ in 0..TERMS {
        let term = promptly("leading for a moment", flooding.campaign("e")).await.unwrap();
        promptly("resigning", term.resign()).await.unwrap();
    }
    let leadership = promptly("leading once more", candidate.campaign("e")).await.unwrap();
    let states = promptly("the observer", wait_for_leader(&mut leaders, "candidate")).await;
    assert!(states <= 4, "{states} states were buffered");
    promptly("resigning", leadership.resign()).await.unwrap();
    for elector in [candidate, observer, flooding] {
        promptly("closing", elector.close()).await;
    }
    assert_peak_memory_mib(128);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_flood_of_candidates_on_etcd_is_outlasted() {
    let election = etcd::TestElection::new().await;
    let mut leases = Vec::new();
    for _ in 0..CANDIDATES {
        leases.push(election.enter(&LARGE_VALUE).await);
    }
    let electors = ["candidate", "observer", "flooding"].map(|id| elector(election.backend(), id));
    let [candidate, observer, flooding] = electors;
    candidate_outlasts_flood(candidate, observer, flooding, async || {
        for lease in leases {
            election.leave(lease).await;
        }
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_flood_of_candidates_on_zookeeper_is_outlasted() {
    let election = zookeeper::TestElection::new().await;
    let mut sessions = Vec::new();
    for _ in 0..CANDIDATES / 10 {
        let mut session = election.session().await;
        for _ in 0..10 {
            election.enter(&mut session, &LARGE_VALUE).await;
        }
        sessions.push(session);
    }
    let electors =
        ["candidate", "observer", "flooding"].map(|id| elector(Arc::new(election.0.backend()), id));
    let [candidate, observer, flooding] = electors;
    candidate_outlasts_flood(candidate, observer, flooding, async || {
        for session in sessions {
            session.close().await.unwrap();
        }
    })
    .await;
}

/// All are of one session that lives. A record of an election has at most 384 KiB, so that their values are smaller here.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_flood_of_candidates_on_postgres_is_outlasted() {
    let election = postgres::TestElection::new().await;
    let electors = ["candidate", "observer", "flooding", "crowd"].map(|id| elector(election.backend(), id));
    let [candidate, observer, flooding, crowd] = electors;
    promptly("making the record", candidate.campaign("e")).await.unwrap().resign().await.unwrap();
    let alive = promptly("leading elsewhere", crowd.campaign("other")).await.unwrap();
    election.append_slots("crowd", CANDIDATES, &"x".repeat(900)).await;
    candidate_outlasts_flood(candidate, observer, flooding, async || election.remove_slots().await).await;
    promptly("resigning", alive.resign()).await.unwrap();
    promptly("closing", crowd.close()).await;
}
