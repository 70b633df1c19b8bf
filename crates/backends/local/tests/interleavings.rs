//! Random interleavings of entering, leaving and dying, against a model of a queue.
#![allow(missing_docs)]

mod common;

use common::{election, request, session};
use proptest::prelude::*;
use tenure_core::spi::{Backend, BackendSession, EntryRequest};
use tenure_local::LocalBackend;

const SESSIONS: usize = 3;

#[derive(Clone, Debug)]
enum Step {
    /// A session enters one more candidate.
    Enter(usize),
    /// The living candidate at this place leaves.
    Leave(usize),
    /// A session ends as in a crash: its locks go, its files stay.
    Die(usize),
    /// A session ends in order.
    Close(usize),
    /// An operator deletes the file of the candidate at this place.
    Delete(usize),
    /// The whole backend is opened anew.
    Reopen,
}

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        5 => (0..SESSIONS).prop_map(Step::Enter),
        3 => (0..8_usize).prop_map(Step::Leave),
        1 => (0..SESSIONS).prop_map(Step::Die),
        1 => (0..SESSIONS).prop_map(Step::Close),
        1 => (0..8_usize).prop_map(Step::Delete),
        1 => Just(Step::Reopen),
    ]
}

/// The model: living candidates in order of arrival.
struct Living {
    session: usize,
    request: EntryRequest,
    version: u64,
}

async fn play(steps: Vec<Step>) {
    let dir = tempfile::tempdir().unwrap();
    let mut backend = LocalBackend::open(dir.path()).unwrap();
    let mut sessions: Vec<Box<dyn BackendSession>> = Vec::new();
    for _ in 0..SESSIONS {
        sessions.push(session(&backend).await);
    }
    let mut queue: Vec<Living> = Vec::new();
    let mut highest = 0;
    for (n, step) in steps.iter().enumerate() {
        match *step {
            Step::Enter(s) => {
                let request = request("e", &format!("c{n}"));
                let entered = sessions[s].enter(&request).await.unwrap();
                assert!(entered.entry.version > highest, "tokens increase");
                highest = entered.entry.version;
                assert_eq!(entered.leads.is_some(), queue.is_empty());
                queue.push(Living { session: s, request, version: highest });
            }
            Step::Leave(at) if at < queue.len() => {
                let gone = queue.remove(at);
                sessions[gone.session].leave(&gone.request, None).await.unwrap();
            }
            Step::Die(s) => {
                sessions[s] = session(&backend).await;
                queue.retain(|c| c.session != s);
            }
            Step::Close(s) => {
                sessions[s].close().await.unwrap();
                sessions[s] = session(&backend).await;
                queue.retain(|c| c.session != s);
            }
            Step::Delete(at) if at < queue.len() => {
                let gone = queue.remove(at);
                std::fs::remove_file(dir.path().join(format!("elections/e/entry-{:020}", gone.version)))
                    .unwrap();
            }
            Step::Reopen => backend = LocalBackend::open(dir.path()).unwrap(),
            _ => {}
        }
        let shown = backend.candidates(&election("e")).await.unwrap();
        let shown: Vec<_> = shown.iter().map(|c| c.token.unwrap().get()).collect();
        assert_eq!(shown, queue.iter().map(|c| c.version).collect::<Vec<_>>());
        let mut leaders = 0;
        for (place, living) in queue.iter().enumerate() {
            let entered = sessions[living.session].enter(&living.request).await.unwrap();
            assert_eq!(entered.entry.version, living.version);
            assert_eq!(entered.leads.is_some(), place == 0);
            leaders += usize::from(entered.leads.is_some());
        }
        assert!(leaders <= 1);
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 48, ..ProptestConfig::default() })]

    #[test]
    fn a_queue_of_candidates_is_what_the_directory_shows(steps in prop::collection::vec(step(), 1..40)) {
        tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap().block_on(play(steps));
    }
}
