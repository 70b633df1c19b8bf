//! Random sequences of entering, leaving and crashing, compared with a model of a queue.
#![allow(missing_docs)]

mod common;

use common::{election, request, session};
use proptest::prelude::*;
use tenure_core::spi::{Backend, BackendSession, EntryRequest};
use tenure_local::LocalBackend;

const SESSIONS: usize = 3;

#[derive(Clone, Debug)]
enum Step {
    /// Another candidate enters in this session.
    Enter(usize),
    /// The live candidate at this position leaves.
    Leave(usize),
    /// A session ends as in a crash: its locks are released, and its files remain.
    Crash(usize),
    /// A session is closed.
    Close(usize),
    /// An operator deletes the file of the candidate at this position.
    Delete(usize),
    /// The backend is opened again.
    Reopen,
}

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        5 => (0..SESSIONS).prop_map(Step::Enter),
        3 => (0..8_usize).prop_map(Step::Leave),
        1 => (0..SESSIONS).prop_map(Step::Crash),
        1 => (0..SESSIONS).prop_map(Step::Close),
        1 => (0..8_usize).prop_map(Step::Delete),
        1 => Just(Step::Reopen),
    ]
}

/// An entry of the model, which is a list of live candidates in the order in which they entered.
struct LiveCandidate {
    session: usize,
    request: EntryRequest,
    version: u64,
}

async fn run_steps(steps: Vec<Step>) {
    let dir = tempfile::tempdir().unwrap();
    let mut backend = LocalBackend::open(dir.path()).unwrap();
    let mut sessions: Vec<Box<dyn BackendSession>> = Vec::new();
    for _ in 0..SESSIONS {
        sessions.push(session(&backend).await);
    }
    let mut queue: Vec<LiveCandidate> = Vec::new();
    let mut highest = 0;
    for (n, step) in steps.iter().enumerate() {
        match *step {
            Step::Enter(s) => {
                let request = request("e", &format!("c{n}"));
                let entered = sessions[s].enter(&request).await.unwrap();
                assert!(entered.entry().unwrap().version > highest, "tokens increase");
                highest = entered.entry().unwrap().version;
                assert_eq!(entered.token().is_some(), queue.is_empty());
                queue.push(LiveCandidate { session: s, request, version: highest });
            }
            Step::Leave(index) if index < queue.len() => {
                let gone = queue.remove(index);
                sessions[gone.session].leave(&gone.request, None).await.unwrap();
            }
            Step::Crash(s) => {
                sessions[s] = session(&backend).await;
                queue.retain(|c| c.session != s);
            }
            Step::Close(s) => {
                sessions[s].close().await.unwrap();
                sessions[s] = session(&backend).await;
                queue.retain(|c| c.session != s);
            }
            Step::Delete(index) if index < queue.len() => {
                let gone = queue.remove(index);
                std::fs::remove_file(dir.path().join(format!("elections/e/entry-{:020}", gone.version)))
                    .unwrap();
            }
            Step::Reopen => backend = LocalBackend::open(dir.path()).unwrap(),
            _ => {}
        }
        let candidates = backend.candidates(&election("e")).await.unwrap();
        let tokens: Vec<_> = candidates.iter().map(|c| c.token.unwrap().get()).collect();
        assert_eq!(tokens, queue.iter().map(|c| c.version).collect::<Vec<_>>());
        let mut leaders = 0;
        for (position, candidate) in queue.iter().enumerate() {
            let entered = sessions[candidate.session].enter(&candidate.request).await.unwrap();
            assert_eq!(entered.entry().unwrap().version, candidate.version);
            assert_eq!(entered.token().is_some(), position == 0);
            leaders += usize::from(entered.token().is_some());
        }
        assert!(leaders <= 1);
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 48, ..ProptestConfig::default() })]

    #[test]
    fn the_directory_shows_the_queue_of_candidates(steps in prop::collection::vec(step(), 1..40)) {
        tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap().block_on(run_steps(steps));
    }
}
