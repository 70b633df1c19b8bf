//! The line to the store is cut, silent, or loses answers.

use std::sync::{Arc, Mutex, PoisonError};

use tenure_core::{Connection, Elector, LeadershipHandle};
use tokio::time::Instant;

use super::{CaseContext, until, watching::next, within};
use crate::harness::FaultInjector;

/// Hazards G2, Z1, E7; promises S1, L1.
pub(super) async fn a_leader_cut_off_stops_before_the_next_one_leads(context: &CaseContext<'_>) {
    stops_in_time(context, |line| line.cut()).await;
}

/// Hazards E5, E7, Z1: a pulled cable, on which nothing fails.
pub(super) async fn a_leader_on_a_dead_line_stops_before_the_next_one_leads(context: &CaseContext<'_>) {
    stops_in_time(context, |line| line.partition()).await;
}

async fn stops_in_time(context: &CaseContext<'_>, disturb: impl Fn(&dyn FaultInjector)) {
    let (a, b) = (context.player("a").await, context.player("b").await);
    let first = a.lead().await;
    let next = b.wait_in_line().await;
    let won = tokio::spawn(async move {
        let leadership = next.await.unwrap();
        (Instant::now(), leadership)
    });
    disturb(a.line());
    let worked = first.run(async {
        // Works until it is dropped.
        std::future::pending::<()>().await;
    });
    assert!(within("the loss", worked).await.is_err());
    let stopped = Instant::now();
    assert!(!first.is_leader());
    let (won, second) = within("the next leader", won).await.unwrap();
    assert!(stopped < won, "the next one led {:?} before the work had stopped", stopped - won);
    assert!(second.is_leader() && second.fencing_token() > first.fencing_token());
}

/// Hazards E4, Z7: losing the connection is not losing leadership.
pub(super) async fn a_short_outage_is_ridden_out(context: &CaseContext<'_>) {
    let a = context.player("a").await;
    let leadership = a.lead().await;
    let deadline = leadership.deadline();
    until("a heartbeat was confirmed", async || leadership.deadline() > deadline).await;
    for _ in 0..3 {
        a.line().cut();
        until("a request failed", async || a.elector.status().connection == Connection::Retrying).await;
        a.line().heal();
        let deadline = leadership.deadline();
        until("a heartbeat was confirmed", async || {
            leadership.deadline() > deadline || !leadership.is_leader()
        })
        .await;
        assert!(leadership.is_leader(), "{:?}", leadership.loss());
    }
}

/// Hazard G11.
pub(super) async fn a_resignation_during_an_outage_is_carried_out(context: &CaseContext<'_>) {
    let (a, b) = (context.player("a").await, context.player("b").await);
    let leadership = a.lead().await;
    let next = b.wait_in_line().await;
    a.line().cut();
    let resigning = tokio::spawn(leadership.resign());
    until("a request failed", async || a.elector.status().connection == Connection::Retrying).await;
    a.line().heal();
    let second = within("the hand-over", next).await.unwrap();
    // Lost or resigned: it is over, and the store knows.
    let _ = within("the resignation", resigning).await.unwrap();
    assert!(second.is_leader());
    assert_eq!(b.candidates().await, ["b"]);
}

/// Hazards G10, Z10: answers swallowed just after the request to enter, again and again.
pub(super) async fn connections_lost_while_entering_leave_nothing(context: &CaseContext<'_>) {
    let (a, watcher) = (context.player("a").await, context.player("w").await);
    a.lead().await.resign().await.unwrap();
    for n in 0..10u32 {
        let elector = Arc::clone(&a.elector);
        let campaign = tokio::spawn(async move { elector.campaign("e").await });
        for _ in 0..n * 3 {
            tokio::task::yield_now().await;
        }
        if n % 2 == 0 {
            a.line().drop_responses()
        } else {
            a.line().cut()
        }
        tokio::task::yield_now().await;
        campaign.abort();
        a.line().heal();
        let _ = campaign.await;
    }
    until("no entry is left", async || watcher.candidates().await.is_empty()).await;
    assert!(a.lead().await.is_leader());
}

/// No store at the start: elected once it comes.
pub(super) async fn a_campaign_waits_for_its_store(context: &CaseContext<'_>) {
    let a = context.player("a").await;
    a.line().cut();
    let elector = Arc::clone(&a.elector);
    let campaign = tokio::spawn(async move { elector.campaign("e").await });
    until("a request failed", async || a.elector.status().connection == Connection::Retrying).await;
    assert!(!campaign.is_finished() && a.elector.status().last_error.is_some());
    a.line().heal();
    assert!(within("leading", campaign).await.unwrap().unwrap().is_leader());
}

pub(super) async fn an_observer_survives_an_outage(context: &CaseContext<'_>) {
    let (a, watcher) = (context.player("a").await, context.player("w").await);
    let mut leaders = watcher.elector.observe("e");
    assert_eq!(next(&mut leaders).await, None);
    watcher.line().cut();
    let leadership = a.lead().await;
    watcher.line().heal();
    assert_eq!(next(&mut leaders).await.as_deref(), Some("a"));
    watcher.line().partition();
    leadership.resign().await.unwrap();
    watcher.line().heal();
    assert_eq!(next(&mut leaders).await, None);
}

/// Five candidates, nobody reaches the store, nobody leads; then exactly one does, and everybody
/// stands with one entry.
pub(super) async fn after_an_outage_exactly_one_leads(context: &CaseContext<'_>) {
    let terms: Arc<Mutex<Vec<LeadershipHandle>>> = Arc::default();
    let leading = |terms: &Mutex<Vec<LeadershipHandle>>| {
        let terms = terms.lock().unwrap_or_else(PoisonError::into_inner);
        terms.iter().filter(|term| term.is_leader()).count()
    };
    let mut players = Vec::new();
    let mut candidates = Vec::new();
    for n in 0..5 {
        let player = context.player(&format!("c{n}")).await;
        let (elector, terms) = (Arc::clone(&player.elector), Arc::clone(&terms));
        candidates.push(tokio::spawn(async move {
            // One that wins on its last breath loses again, and stands again.
            while let Ok(leadership) = elector.campaign("e").await {
                terms.lock().unwrap_or_else(PoisonError::into_inner).push(leadership.handle());
                leadership.lost().await;
            }
        }));
        players.push(player);
    }
    let watcher = context.player("w").await;
    until("everybody stands", async || watcher.candidates().await.len() == 5).await;
    until("somebody leads", async || leading(&terms) == 1).await;
    for player in &players {
        player.line().partition();
    }
    until("nobody leads", async || leading(&terms) == 0).await;
    for player in &players {
        player.line().heal();
    }
    until("somebody leads again", async || leading(&terms) == 1).await;
    until("everybody stands again", async || {
        assert!(leading(&terms) <= 1, "two lead at once");
        watcher.candidates().await.len() == 5
    })
    .await;
    until("exactly one leads", async || leading(&terms) == 1).await;
    for player in &players {
        within("closing", player.elector.close()).await;
    }
    for candidate in candidates {
        within("a candidate's end", candidate).await.unwrap();
    }
}
