//! Many candidates, many elections.

use std::sync::{
    Arc,
    atomic::{AtomicUsize, Ordering},
};

use futures::future::try_join_all;
use tenure_core::{Elector, LossReason};

use super::{CaseContext, until, within};

pub(super) async fn leadership_follows_the_order_of_arrival(context: &CaseContext<'_>) {
    let mut players = Vec::new();
    let mut line = Vec::new();
    for n in 0..6 {
        let player = context.player(&format!("c{n}")).await;
        line.push(player.wait_in_line().await);
        players.push(player);
    }
    let names: Vec<_> = (0..6).map(|n| format!("c{n}")).collect();
    assert_eq!(players[0].candidates().await, names);
    let mut last = None;
    for (campaign, name) in line.into_iter().zip(names) {
        let leadership = within("the hand-over", campaign).await.unwrap();
        assert_eq!(leadership.candidate().as_str(), name);
        assert!(last < Some(leadership.fencing_token()));
        last = Some(leadership.fencing_token());
        leadership.resign().await.unwrap();
    }
}

/// Hazard Z16: the neighbour of one who leaves is not promoted, and nobody else is woken.
pub(super) async fn a_departure_in_the_middle_promotes_nobody(context: &CaseContext<'_>) {
    let (a, b, c) = (context.player("a").await, context.player("b").await, context.player("c").await);
    let first = a.lead().await;
    let middle = b.wait_in_line().await;
    let last = c.wait_in_line().await;
    middle.abort();
    until("the middle one has left", async || a.candidates().await == ["a", "c"]).await;
    assert!(first.is_leader() && !last.is_finished());
    first.resign().await.unwrap();
    assert!(within("the hand-over", last).await.unwrap().is_leader());
}

/// Hazard G11: what looks after an entry may be in the middle of a request when leadership is given back, and takes nothing
/// with it that the departure needs: as many at once as no backend has room for.
pub(super) async fn very_many_are_given_back_as_soon_as_won(context: &CaseContext<'_>) {
    let (a, b) = (context.player("a").await, context.player("b").await);
    let names: Vec<_> = (0..600).map(|n| format!("many-{n}")).collect();
    for elector in [&a.elector, &b.elector] {
        let campaigns = names.iter().map(|name| elector.campaign(name));
        let won = within("leading", try_join_all(campaigns)).await.unwrap();
        let resigned = try_join_all(won.into_iter().map(|leadership| leadership.resign()));
        within("giving back", resigned).await.unwrap();
    }
}

/// Who asks need not stand in the election; the leader's work stops before the next one leads, and a wish
/// concerns one term only.
pub(super) async fn a_leader_that_is_asked_to_resign_hands_over(context: &CaseContext<'_>) {
    let (a, b) = (context.player("a").await, context.player("b").await);
    let asker = context.player("asker").await;
    assert_eq!(asker.request_resign().await, None, "nobody leads");
    let first = a.lead().await;
    let second = b.wait_in_line().await;
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
    assert_eq!(asker.request_resign().await.as_deref(), Some("a"));
    assert_eq!(within("the leader is told", first.lost()).await, LossReason::ResignRequested);
    let second = within("the hand-over", second).await.unwrap();
    assert_eq!(stopped.load(Ordering::SeqCst), 1, "its work has stopped");
    within("the end of the work", work).await.unwrap().unwrap();
    drop(first);

    let first = a.wait_in_line().await;
    assert_eq!(asker.request_resign().await.as_deref(), Some("b"));
    assert_eq!(within("the leader is told", second.lost()).await, LossReason::ResignRequested);
    drop(second);
    let first = within("the hand-over", first).await.unwrap();
    assert!(first.is_leader() && first.loss().is_none(), "it has not been asked");
    assert_eq!(asker.candidates().await, ["a"]);
}

/// Promises S1, S2: candidates that come and go all the time.
pub(super) async fn many_candidates_never_lead_together(context: &CaseContext<'_>) {
    let leading = Arc::new(AtomicUsize::new(0));
    let highest = Arc::new(std::sync::atomic::AtomicU64::new(0));
    let mut runs = Vec::new();
    for n in 0..5 {
        let player = context.player(&format!("c{n}")).await;
        let (leading, highest) = (Arc::clone(&leading), Arc::clone(&highest));
        runs.push(tokio::spawn(async move {
            for round in 0..6 {
                let leadership = player.lead().await;
                assert_eq!(leading.fetch_add(1, Ordering::SeqCst), 0, "two lead at once");
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
    let (a, b) = (context.player("a").await, context.player("b").await);
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
    let a = context.player("a").await;
    let b = context.player("b").await;
    let names = ["a", "ab", "a.b", "a-b", "a_b", "A", "0", "...", "-"];
    let mut held = Vec::new();
    for (n, name) in names.iter().enumerate() {
        let player = if n % 2 == 0 { &a } else { &b };
        held.push(within(name, player.elector.campaign(name)).await.unwrap());
    }
    assert!(held.iter().all(|leadership| leadership.is_leader()));
    for name in names {
        assert_eq!(a.elector.candidates(name).await.unwrap().len(), 1, "{name}");
    }
    let long = "x".repeat(255);
    assert!(within("a long name", a.elector.campaign(&long)).await.unwrap().is_leader());
}
