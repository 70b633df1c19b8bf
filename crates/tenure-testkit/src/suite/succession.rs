//! Many candidates, many elections.

use std::sync::{
    Arc,
    atomic::{AtomicUsize, Ordering},
};

use futures::future::try_join_all;
use tenure_core::{Elector, LossReason};

use super::context::{CaseContext, until, within};

pub(super) async fn leadership_follows_the_order_of_arrival(context: &CaseContext<'_>) {
    let mut candidates = Vec::new();
    let mut campaigns = Vec::new();
    for n in 0..6 {
        let candidate = context.candidate(&format!("c{n}")).await;
        campaigns.push(candidate.start_campaign().await);
        candidates.push(candidate);
    }
    let names: Vec<_> = (0..6).map(|n| format!("c{n}")).collect();
    assert_eq!(candidates[0].candidates().await, names);
    let mut last = None;
    for (campaign, name) in campaigns.into_iter().zip(names) {
        let leadership = within("the handover", campaign).await.unwrap();
        assert_eq!(leadership.candidate_id().as_str(), name);
        assert!(last < Some(leadership.fencing_token()));
        last = Some(leadership.fencing_token());
        leadership.resign().await.unwrap();
    }
}

/// Hazard Z16: when a waiting candidate leaves, the candidate behind it does not become leader.
pub(super) async fn a_departure_in_the_middle_promotes_nobody(context: &CaseContext<'_>) {
    let (a, b, c) =
        (context.candidate("a").await, context.candidate("b").await, context.candidate("c").await);
    let first = a.lead().await;
    let middle = b.start_campaign().await;
    let last = c.start_campaign().await;
    middle.abort();
    until("the middle candidate has left", async || a.candidates().await == ["a", "c"]).await;
    assert!(first.is_leader() && !last.is_finished());
    first.resign().await.unwrap();
    assert!(within("the handover", last).await.unwrap().is_leader());
}

/// Hazard G11: the backend can be in the middle of a request that watches an entry when the leadership is resigned, and the
/// resignation still succeeds. The number of elections exceeds every limit of a backend on concurrent requests.
pub(super) async fn very_many_are_resigned_as_soon_as_won(context: &CaseContext<'_>) {
    let (a, b) = (context.candidate("a").await, context.candidate("b").await);
    let names: Vec<_> = (0..600).map(|n| format!("many-{n}")).collect();
    for elector in [&a.elector, &b.elector] {
        let campaigns = names.iter().map(|name| elector.campaign(name));
        let won = within("leading", try_join_all(campaigns)).await.unwrap();
        let resigned = try_join_all(won.into_iter().map(|leadership| leadership.resign()));
        within("resigning", resigned).await.unwrap();
    }
}

/// A resign request can come from a process that is not a candidate. The leader's work stops before the next candidate
/// leads, and the request affects one term only.
pub(super) async fn a_leader_that_is_asked_to_resign_hands_over(context: &CaseContext<'_>) {
    let (a, b) = (context.candidate("a").await, context.candidate("b").await);
    let requester = context.candidate("requester").await;
    assert_eq!(requester.request_resign().await, None, "there is no leader");
    let first = a.lead().await;
    let second = b.start_campaign().await;
    let (stopped, begun) = (Arc::new(AtomicUsize::new(0)), Arc::new(tokio::sync::Notify::new()));
    let work = {
        let (handle, stopped, begun) = (first.handle(), Arc::clone(&stopped), Arc::clone(&begun));
        tokio::spawn(async move {
            let stop = handle.cancellation_token();
            handle
                .run(async move {
                    begun.notify_one();
                    stop.cancelled().await;
                    tokio::task::yield_now().await;
                    stopped.store(1, Ordering::SeqCst);
                })
                .await
        })
    };
    within("the work", begun.notified()).await;
    assert_eq!(requester.request_resign().await.as_deref(), Some("a"));
    assert_eq!(within("the resign request", first.lost()).await, LossReason::ResignRequested);
    let second = within("the handover", second).await.unwrap();
    assert_eq!(stopped.load(Ordering::SeqCst), 1, "the work has not stopped");
    within("the end of the work", work).await.unwrap().unwrap();
    drop(first);

    let first = a.start_campaign().await;
    assert_eq!(requester.request_resign().await.as_deref(), Some("b"));
    assert_eq!(within("the resign request", second.lost()).await, LossReason::ResignRequested);
    drop(second);
    let first = within("the handover", first).await.unwrap();
    assert!(first.is_leader() && first.loss().is_none(), "the request affected a later term");
    assert_eq!(requester.candidates().await, ["a"]);
}

/// Guarantees S1, S2: candidates enter and leave all the time.
pub(super) async fn many_candidates_never_lead_together(context: &CaseContext<'_>) {
    let leading = Arc::new(AtomicUsize::new(0));
    let highest = Arc::new(std::sync::atomic::AtomicU64::new(0));
    let mut runs = Vec::new();
    for n in 0..5 {
        let candidate = context.candidate(&format!("c{n}")).await;
        let (leading, highest) = (Arc::clone(&leading), Arc::clone(&highest));
        runs.push(tokio::spawn(async move {
            for round in 0..6 {
                let leadership = candidate.lead().await;
                assert_eq!(leading.fetch_add(1, Ordering::SeqCst), 0, "two candidates lead at the same time");
                let token = leadership.fencing_token().get();
                assert!(highest.swap(token, Ordering::SeqCst) < token, "token {token} is not the highest");
                tokio::task::yield_now().await;
                assert!(leadership.is_leader());
                leading.fetch_sub(1, Ordering::SeqCst);
                if (n + round) % 2 == 0 {
                    leadership.resign().await.unwrap();
                }
            }
        }));
    }
    for run in runs {
        within("every candidate's turn", run).await.unwrap();
    }
}

pub(super) async fn many_elections_share_one_session(context: &CaseContext<'_>) {
    let (a, b) = (context.candidate("a").await, context.candidate("b").await);
    let mut held = Vec::new();
    for n in 0..30 {
        held.push(within("leading", a.elector.campaign(&format!("many-{n}"))).await.unwrap());
    }
    let leader = b.elector.leader("many-0").await.unwrap().unwrap();
    for n in 1..30 {
        let other = b.elector.leader(&format!("many-{n}")).await.unwrap().unwrap();
        assert_eq!(leader.session, other.session);
    }
    assert!(held.iter().all(|leadership| leadership.is_leader()));
    let second = within("leading", a.elector.campaign("many-more")).await.unwrap();
    drop(held);
    assert!(second.is_leader());
}

/// Hazard G18.
pub(super) async fn elections_with_like_names_are_apart(context: &CaseContext<'_>) {
    let a = context.candidate("a").await;
    let b = context.candidate("b").await;
    let names = ["a", "ab", "a.b", "a-b", "a_b", "A", "0", "...", "-"];
    let mut held = Vec::new();
    for (n, name) in names.iter().enumerate() {
        let candidate = if n % 2 == 0 { &a } else { &b };
        held.push(within(name, candidate.elector.campaign(name)).await.unwrap());
    }
    assert!(held.iter().all(|leadership| leadership.is_leader()));
    for name in names {
        assert_eq!(a.elector.candidates(name).await.unwrap().len(), 1, "{name}");
    }
    let long = "x".repeat(255);
    assert!(within("a long name", a.elector.campaign(&long)).await.unwrap().is_leader());
}
