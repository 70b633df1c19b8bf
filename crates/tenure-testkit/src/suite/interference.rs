//! Entries and sessions that are deleted in the store without their candidates.

use std::{sync::Arc, time::Duration};

use tenure_core::{
    BootClock, CandidateId, ElectionName, Elector, LossReason,
    spi::{BackendError, BackendErrorKind, EntryRequest, SessionOptions, SessionRecord},
};
use tokio::time::sleep;

use super::context::{CaseContext, TestCandidate, until, within};

/// The session and the token of the last candidate in the queue.
async fn last_in_queue(candidate: &TestCandidate) -> (String, u64) {
    let candidates = candidate.elector.candidates("e").await.unwrap();
    let last = candidates.last().expect("there is a candidate");
    (last.session.clone(), last.token.map_or(0, |token| token.get()))
}

/// Hazards G12, E1, E2.
pub(super) async fn a_leader_whose_entry_was_deleted_leads_no_more(context: &CaseContext<'_>) {
    let (a, b) = (context.candidate("a").await, context.candidate("b").await);
    let first = a.lead().await;
    let (session, token) = last_in_queue(&a).await;
    let next = b.start_campaign().await;
    context.harness.delete_entry("e", &session, token).await;
    assert_eq!(within("the loss", first.lost()).await, LossReason::EntryGone);
    assert!(!first.is_leader());
    let second = within("the next leader", next).await.unwrap();
    assert!(second.is_leader() && second.fencing_token() > first.fencing_token());
    drop(first);
    second.resign().await.unwrap();
    assert!(a.lead().await.is_leader());
}

/// Hazards G13, Z4, Z5.
pub(super) async fn a_waiter_whose_entry_was_deleted_enters_again(context: &CaseContext<'_>) {
    let (a, b) = (context.candidate("a").await, context.candidate("b").await);
    let first = a.lead().await;
    let next = b.start_campaign().await;
    let (session, token) = last_in_queue(&a).await;
    context.harness.delete_entry("e", &session, token).await;
    until("it has entered again", async || {
        let candidates = a.elector.candidates("e").await.unwrap();
        // Without early tokens the entry looks as before; that there are two again shows that it is another one.
        let is_another = token == 0 || last_in_queue(&a).await != (session.clone(), token);
        candidates.len() == 2 && is_another
    })
    .await;
    assert!(!next.is_finished());
    first.resign().await.unwrap();
    let second = within("the handover", next).await.unwrap();
    assert!(second.fencing_token().get() > token);
    assert_eq!(a.candidates().await, ["b"]);
}

/// Hazards E12, E13, Z2, Z3.
pub(super) async fn a_leader_whose_session_was_ended_leads_no_more(context: &CaseContext<'_>) {
    let (a, b) = (context.candidate("a").await, context.candidate("b").await);
    let first = a.lead().await;
    let (session, _) = last_in_queue(&a).await;
    let next = b.start_campaign().await;
    context.harness.expire_session(&session).await;
    let reason = within("the loss", first.lost()).await;
    assert!(matches!(reason, LossReason::EntryGone | LossReason::SessionExpired), "{reason}");
    let second = within("the next leader", next).await.unwrap();
    assert!(!first.is_leader() && second.is_leader());
    drop(first);
    let third = a.start_campaign().await;
    assert!(a.elector.status().session.is_some_and(|now| now != session));
    second.resign().await.unwrap();
    assert!(within("the handover", third).await.unwrap().is_leader());
}

/// Hazard G13: another client was measured to win without an entry, with two leaders for 1.4 s.
pub(super) async fn a_waiter_whose_session_was_ended_wins_no_phantom(context: &CaseContext<'_>) {
    let (a, b) = (context.candidate("a").await, context.candidate("b").await);
    for _ in 0..5 {
        let first = a.lead().await;
        let next = b.start_campaign().await;
        let (session, _) = last_in_queue(&a).await;
        context.harness.expire_session(&session).await;
        first.resign().await.unwrap();
        let second = within("the handover", next).await.unwrap();
        assert!(second.is_leader());
        let leader = a.elector.leader("e").await.unwrap().expect("the leader has an entry");
        assert_eq!(leader.id, "b");
        assert_ne!(leader.session, session);
        second.resign().await.unwrap();
    }
}

/// Hazard G39: another process can remove the entries of a session, in all elections, if it knows the cluster and the nonce.
pub(super) async fn the_session_of_a_dead_process_can_be_ended(context: &CaseContext<'_>) {
    const NONCE: u64 = 0x0123_4567_89ab_cdef;
    let (dead, other) = (context.harness.client().await, context.harness.client().await);
    let options = SessionOptions::new(context.harness.ttl(), Arc::new(BootClock), 0.1);
    // The store may lose an answer.
    let session =
        repeated("opening a session", async || dead.backend.open_session(&options).await).await.unwrap();
    let cluster = repeated("identifying the store", async || session.cluster().await).await.unwrap();
    let elections = ["e", "f"].map(|name| ElectionName::new(name).unwrap());
    for (number, election) in elections.iter().enumerate() {
        let request = EntryRequest {
            election: election.clone(),
            candidate: CandidateId::new("dead").unwrap(),
            value: b"value".as_slice().into(),
            nonce: u128::from(NONCE) << 64 | number as u128,
        };
        repeated("entering", async || session.enter(&request).await).await.unwrap();
    }
    let waiting = context.candidate("b").await;
    let campaign = waiting.start_campaign().await;
    let end = async |cluster: &str, nonce| {
        let record = SessionRecord::new(session.id(), cluster, nonce);
        repeated("ending a session", async || other.backend.end_session(&record).await).await
    };
    let _ = end(&cluster, NONCE + 1).await;
    assert_eq!(waiting.candidates().await, ["dead", "b"], "of another process");
    end("another", NONCE).await.unwrap_err();
    assert_eq!(waiting.candidates().await, ["dead", "b"], "in another store");
    end(&cluster, NONCE).await.unwrap();
    for election in &elections {
        let left = repeated("reading the candidates", async || other.backend.candidates(election).await)
            .await
            .unwrap();
        assert!(left.iter().all(|candidate| candidate.id != "dead"), "{left:?}");
    }
    assert!(within("the handover", campaign).await.unwrap().is_leader());
    end(&cluster, NONCE).await.unwrap();
    let _ = within("closing a session", session.close()).await;
    drop(session);
    for client in [dead, other] {
        within("closing", client.backend.close()).await;
    }
}

/// Repeats a request while it fails for a passing reason.
async fn repeated<T>(
    what: &str,
    request: impl AsyncFn() -> Result<T, BackendError>,
) -> Result<T, BackendError> {
    within(what, async {
        loop {
            match request().await {
                Err(error) if error.kind() == BackendErrorKind::Unavailable => {
                    sleep(Duration::from_millis(10)).await
                }
                outcome => return outcome,
            }
        }
    })
    .await
}
