//! Candidates that flood an election: hundreds with large values, and one that comes and goes without end.

use std::sync::Arc;

use futures::StreamExt as _;
use tenure::{Candidate, Elector, Leaders};
use tenure_testkit::suite::until;

use crate::{elector, etcd, ids, never_held_more_than, soon, zookeeper};

const CANDIDATES: usize = 300;
const TERMS: usize = 200;
static LARGE: [u8; 64 * 1024] = [b'x'; 64 * 1024];

/// Polls an observer until it shows this leader; how many states it showed.
async fn until_shown(leaders: &mut Leaders, id: &str) -> usize {
    let mut states = 0;
    loop {
        let state = leaders.next().await.unwrap().unwrap();
        states += 1;
        if state.is_some_and(|Candidate { id: shown, .. }| shown == id) {
            return states;
        }
    }
}

/// A candidate leads when all others have gone, and an observer that slept meanwhile is told of the last of them only.
async fn outlasted(
    ours: Arc<dyn Elector>,
    observer: Arc<dyn Elector>,
    flooding: Arc<dyn Elector>,
    depart: impl AsyncFnOnce(),
) {
    let mut leaders = observer.observe("e");
    soon("the first state", leaders.next()).await.unwrap().unwrap();
    let waiting = {
        let ours = Arc::clone(&ours);
        tokio::spawn(async move { ours.campaign("e").await })
    };
    until("ours waits", async || ids(&*ours).await.len() == CANDIDATES + 1).await;
    depart().await;
    let leadership = soon("leading", waiting).await.unwrap().unwrap();
    let states = soon("the observer", until_shown(&mut leaders, "ours")).await;
    assert!(states <= 3, "{states} states were kept for it");
    soon("resigning", leadership.resign()).await.unwrap();
    // Another comes and goes all the time.
    for _ in 0..TERMS {
        let term = soon("leading for a moment", flooding.campaign("e")).await.unwrap();
        soon("resigning", term.resign()).await.unwrap();
    }
    let leadership = soon("leading once more", ours.campaign("e")).await.unwrap();
    let states = soon("the observer", until_shown(&mut leaders, "ours")).await;
    assert!(states <= 4, "{states} states were kept for it");
    soon("resigning", leadership.resign()).await.unwrap();
    for elector in [ours, observer, flooding] {
        soon("closing", elector.close()).await;
    }
    never_held_more_than(128);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_flood_of_candidates_on_etcd_is_outlasted() {
    let ground = etcd::Ground::new().await;
    let mut leases = Vec::new();
    for _ in 0..CANDIDATES {
        leases.push(ground.stand(&LARGE).await);
    }
    let electors = ["ours", "observer", "flooding"].map(|id| elector(ground.backend(), id));
    let [ours, observer, flooding] = electors;
    outlasted(ours, observer, flooding, async || {
        for lease in leases {
            ground.leave(lease).await;
        }
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_flood_of_candidates_on_zookeeper_is_outlasted() {
    let ground = zookeeper::Ground::new().await;
    let mut sessions = Vec::new();
    for _ in 0..CANDIDATES / 10 {
        let mut session = ground.session().await;
        for _ in 0..10 {
            ground.stand(&mut session, &LARGE).await;
        }
        sessions.push(session);
    }
    let electors = ["ours", "observer", "flooding"].map(|id| elector(Arc::new(ground.0.backend()), id));
    let [ours, observer, flooding] = electors;
    outlasted(ours, observer, flooding, async || {
        for session in sessions {
            session.close().await.unwrap();
        }
    })
    .await;
}
