//! What other processes read: candidates, values and leaders.

use futures::StreamExt;
use tenure_core::{Elector, Error, Leaders, MAX_VALUE_BYTES};

use super::context::{CaseContext, TestCandidate, within};

pub(super) async fn candidates_are_seen_with_their_values(context: &CaseContext<'_>) {
    let a = context.candidate_with("a", |config| config.with_value("10.0.0.1:80")).await;
    let b = context.candidate_with("b", |config| config.with_value(vec![0, 255, b'\n', 7])).await;
    let leadership = a.lead().await;
    let _next = b.start_campaign().await;
    let candidates = b.elector.candidates("e").await.unwrap();
    let candidates: Vec<_> = candidates.iter().map(|c| (c.id.as_str(), c.value.as_slice())).collect();
    assert_eq!(candidates, b.shown(&[("a", &b"10.0.0.1:80"[..]), ("b", &[0, 255, b'\n', 7][..])]));
    let leader = b.elector.leader("e").await.unwrap().unwrap();
    assert_eq!(leader.id, "a");
    assert!(leader.token.is_none_or(|token| token == leadership.fencing_token()));
    assert_eq!(a.elector.status().session.as_deref(), Some(leader.session.as_str()));
    _next.abort();
}

pub(super) async fn a_value_can_be_changed(context: &CaseContext<'_>) {
    let (a, b) = (context.candidate("a").await, context.candidate("b").await);
    let leadership = a.lead().await;
    let token = leadership.fencing_token();
    for value in ["one", "", "three"] {
        within("setting the value", leadership.set_value(value)).await.unwrap();
        let leader = b.elector.leader("e").await.unwrap().unwrap();
        assert_eq!((leader.id.as_str(), leader.value_lossy().as_ref()), ("a", value));
    }
    assert!(leadership.is_leader());
    assert_eq!(leadership.fencing_token(), token);
    leadership.resign().await.unwrap();
    assert_eq!(b.elector.leader("e").await.unwrap(), None);
}

/// The value of a candidate that waits, of one behind it, and of the same one when it leads. An update wakes nobody up too early,
/// and the candidates behind are notified as before.
pub(super) async fn a_waiting_candidates_value_can_be_changed(context: &CaseContext<'_>) {
    let (a, b, c) =
        (context.candidate("a").await, context.candidate("b").await, context.candidate("c").await);
    let set = async |candidate: &TestCandidate, value: &str| {
        within("setting the value", candidate.elector.set_value("e", value.into())).await.unwrap();
    };
    let values = async || -> Vec<String> {
        let candidates = within("reading", a.elector.candidates("e")).await.unwrap();
        candidates.iter().map(|c| format!("{}={}", c.id, c.value_lossy())).collect()
    };
    set(&b, "before").await;
    let leadership = a.lead().await;
    let second = b.start_campaign().await;
    let third = c.start_campaign().await;
    assert_eq!(values().await, ["a=", "b=before", "c="]);
    for value in ["one", "", "three"] {
        set(&b, value).await;
        set(&c, value).await;
        assert_eq!(values().await, ["a=".to_owned(), format!("b={value}"), format!("c={value}")]);
    }
    set(&a, "leads").await;
    assert_eq!(values().await, ["a=leads", "b=three", "c=three"]);
    assert!(leadership.is_leader() && !second.is_finished() && !third.is_finished());
    leadership.resign().await.unwrap();
    let leadership = within("the handover", second).await.unwrap();
    assert_eq!(values().await, ["b=three", "c=three"]);
    set(&c, "waits").await;
    set(&b, "leads").await;
    assert_eq!(values().await, ["b=leads", "c=waits"]);
    assert!(leadership.is_leader());
    let token = leadership.fencing_token();
    leadership.resign().await.unwrap();
    let leadership = within("the handover", third).await.unwrap();
    assert!(leadership.fencing_token() > token);
    assert_eq!(values().await, ["c=waits"]);
}

pub(super) async fn a_value_has_a_largest_size(context: &CaseContext<'_>) {
    let a = context.candidate_with("a", |config| config.with_value(vec![7; MAX_VALUE_BYTES])).await;
    let leadership = a.lead().await;
    let leader = a.elector.leader("e").await.unwrap().unwrap();
    assert_eq!(leader.value.len(), MAX_VALUE_BYTES);
    let error = leadership.set_value(vec![7; 65 * 1024]).await.unwrap_err();
    assert!(matches!(error, Error::ValueTooLarge { .. }), "{error}");
    assert!(error.to_string().contains("at most 65536 bytes (64 KiB) are allowed"), "{error}");
    assert!(leadership.is_leader());
}

/// The id of the next leader.
pub(super) async fn next_leader(leaders: &mut Leaders) -> Option<String> {
    let leader = within("the next leader", leaders.next()).await;
    leader.expect("the observation continues").expect("the observation does not fail").map(|leader| leader.id)
}

/// Hazards G19, E9.
pub(super) async fn observers_hear_of_leaders_and_vacancies(context: &CaseContext<'_>) {
    let (a, b, observer) =
        (context.candidate("a").await, context.candidate("b").await, context.candidate("w").await);
    let mut leaders = observer.elector.observe("e");
    assert_eq!(next_leader(&mut leaders).await, None);
    let first = a.lead().await;
    assert_eq!(next_leader(&mut leaders).await.as_deref(), Some("a"));
    first.resign().await.unwrap();
    assert_eq!(next_leader(&mut leaders).await, None);
    let second = b.lead().await;
    assert_eq!(next_leader(&mut leaders).await.as_deref(), Some("b"));
    let third = a.start_campaign().await;
    second.resign().await.unwrap();
    let _third = within("the handover", third).await.unwrap();
    let mut leader = next_leader(&mut leaders).await;
    if leader.is_none() {
        leader = next_leader(&mut leaders).await;
    }
    assert_eq!(leader.as_deref(), Some("a"));
}

/// An election exists while it has a candidate. What it leaves in the store, and foreign entries, are no elections.
pub(super) async fn elections_are_listed_while_they_have_candidates(context: &CaseContext<'_>) {
    let (a, b, observer) =
        (context.candidate("a").await, context.candidate("b").await, context.candidate("w").await);
    let list = async || -> Vec<String> {
        let listed = within("listing the elections", observer.elector.elections()).await.unwrap();
        listed.iter().map(ToString::to_string).collect()
    };
    if context.harness.capabilities().foreign_entries {
        context.harness.add_foreign_entries("e").await;
    }
    assert_eq!(list().await, [""; 0]);
    // In the order of the keys of some stores, "e-1" is ahead of "e" and "e.1" is not.
    let first = a.lead().await;
    let second = within("leading", b.elector.campaign("e-1")).await.unwrap();
    let third = within("leading", b.elector.campaign("e.1")).await.unwrap();
    let next = b.start_campaign().await;
    assert_eq!(list().await, ["e", "e-1", "e.1"]);
    second.resign().await.unwrap();
    assert_eq!(list().await, ["e", "e.1"]);
    first.resign().await.unwrap();
    let fourth = within("the handover", next).await.unwrap();
    assert_eq!(list().await, ["e", "e.1"]);
    third.resign().await.unwrap();
    fourth.resign().await.unwrap();
    assert_eq!(list().await, [""; 0]);
}

/// Entries that no candidate created are ignored, and never deleted.
pub(super) async fn foreign_entries_are_ignored_and_left_alone(context: &CaseContext<'_>) {
    let (a, b) = (context.candidate("a").await, context.candidate("b").await);
    context.harness.add_foreign_entries("e").await;
    let leadership = a.lead().await;
    let next = b.start_campaign().await;
    assert_eq!(a.candidates().await, a.shown(&["a", "b"]));
    leadership.resign().await.unwrap();
    assert!(within("the handover", next).await.unwrap().is_leader());
    assert!(context.harness.foreign_entries_untouched("e").await);
}
