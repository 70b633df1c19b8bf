//! What others see.

use futures::StreamExt;
use tenure_core::{Elector, Error, Leaders, MAX_VALUE_BYTES};

use super::{CaseContext, within};

pub(super) async fn candidates_are_seen_with_their_values(context: &CaseContext<'_>) {
    let a = context.player_with("a", |config| config.with_value("10.0.0.1:80")).await;
    let b = context.player_with("b", |config| config.with_value(vec![0, 255, b'\n', 7])).await;
    let leadership = a.lead().await;
    let _next = b.wait_in_line().await;
    let seen = b.elector.candidates("e").await.unwrap();
    let seen: Vec<_> = seen.iter().map(|c| (c.id.as_str(), c.value.as_slice())).collect();
    assert_eq!(seen, [("a", &b"10.0.0.1:80"[..]), ("b", &[0, 255, b'\n', 7][..])]);
    let leader = b.elector.leader("e").await.unwrap().unwrap();
    assert_eq!(leader.id, "a");
    assert!(leader.token.is_none_or(|token| token == leadership.fencing_token()));
    assert_eq!(a.elector.status().session.as_deref(), Some(leader.session.as_str()));
    _next.abort();
}

pub(super) async fn a_value_can_be_changed(context: &CaseContext<'_>) {
    let (a, b) = (context.player("a").await, context.player("b").await);
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

pub(super) async fn a_value_has_a_largest_size(context: &CaseContext<'_>) {
    let a = context.player_with("a", |config| config.with_value(vec![7; MAX_VALUE_BYTES])).await;
    let leadership = a.lead().await;
    let leader = a.elector.leader("e").await.unwrap().unwrap();
    assert_eq!(leader.value.len(), MAX_VALUE_BYTES);
    let error = leadership.set_value(vec![7; 65 * 1024]).await.unwrap_err();
    assert!(matches!(error, Error::ValueTooLarge { .. }), "{error}");
    assert!(error.to_string().contains("at most 65536 bytes (64 KiB) are allowed"), "{error}");
    assert!(leadership.is_leader());
}

/// The next leader, by id.
pub(super) async fn next(leaders: &mut Leaders) -> Option<String> {
    let leader = within("the next leader", leaders.next()).await;
    leader.expect("the observation goes on").expect("the observation does not fail").map(|leader| leader.id)
}

/// Hazards G19, E9.
pub(super) async fn observers_hear_of_leaders_and_vacancies(context: &CaseContext<'_>) {
    let (a, b, watcher) = (context.player("a").await, context.player("b").await, context.player("w").await);
    let mut leaders = watcher.elector.observe("e");
    assert_eq!(next(&mut leaders).await, None);
    let first = a.lead().await;
    assert_eq!(next(&mut leaders).await.as_deref(), Some("a"));
    first.resign().await.unwrap();
    assert_eq!(next(&mut leaders).await, None);
    let second = b.lead().await;
    assert_eq!(next(&mut leaders).await.as_deref(), Some("b"));
    let third = a.wait_in_line().await;
    second.resign().await.unwrap();
    let _third = within("the hand-over", third).await.unwrap();
    let mut seen = next(&mut leaders).await;
    if seen.is_none() {
        seen = next(&mut leaders).await;
    }
    assert_eq!(seen.as_deref(), Some("a"));
}

/// What no candidate made is ignored, and never deleted.
pub(super) async fn foreign_entries_are_ignored_and_left_alone(context: &CaseContext<'_>) {
    let (a, b) = (context.player("a").await, context.player("b").await);
    context.harness.add_foreign_entries("e").await;
    let leadership = a.lead().await;
    let next = b.wait_in_line().await;
    assert_eq!(a.candidates().await, ["a", "b"]);
    leadership.resign().await.unwrap();
    assert!(within("the hand-over", next).await.unwrap().is_leader());
    assert!(context.harness.foreign_entries_untouched("e").await);
}
