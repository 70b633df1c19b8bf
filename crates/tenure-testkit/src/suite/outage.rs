//! Connections to the store that are cut, partitioned, or lose responses.

use std::{
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use tenure_core::{Connection, Elector, LeadershipHandle};
use tokio::time::Instant;

use super::{
    context::{CaseContext, until, within},
    watching::next_leader,
};
use crate::harness::FaultInjector;

/// How late the store may end a session, and show that, on a machine that is busy with other tests.
const BUSY_STORE: Duration = Duration::from_secs(2);

/// Hazards G2, Z1, E7; guarantees S1, L1.
pub(super) async fn a_leader_cut_off_stops_before_the_next_one_leads(context: &CaseContext<'_>) {
    stops_in_time(context, |faults| faults.cut()).await;
}

/// Hazards E5, E7, Z1: a network partition, in which no request fails.
pub(super) async fn a_leader_on_a_dead_line_stops_before_the_next_one_leads(context: &CaseContext<'_>) {
    stops_in_time(context, |faults| faults.partition()).await;
}

async fn stops_in_time(context: &CaseContext<'_>, inject_fault: impl Fn(&dyn FaultInjector)) {
    let (a, b) = (context.candidate("a").await, context.candidate("b").await);
    let first = a.lead().await;
    let next = b.start_campaign().await;
    let won = tokio::spawn(async move {
        let leadership = next.await.unwrap();
        (Instant::now(), leadership)
    });
    inject_fault(a.faults());
    let worked = first.run(async {
        // The work runs until it is dropped.
        std::future::pending::<()>().await;
    });
    assert!(within("the loss", worked).await.is_err());
    let stopped = Instant::now();
    assert!(!first.is_leader());
    let (won, second) = within("the next leader", won).await.unwrap();
    assert!(stopped < won, "the next leader led {:?} before the work had stopped", stopped - won);
    assert!(second.is_leader() && second.fencing_token() > first.fencing_token());
}

/// Hazards E4, Z7: a lost connection does not end the leadership.
pub(super) async fn a_short_outage_is_ridden_out(context: &CaseContext<'_>) {
    let a = context.candidate("a").await;
    let leadership = a.lead().await;
    let deadline = leadership.deadline();
    until("a heartbeat was confirmed", async || leadership.deadline() > deadline).await;
    for _ in 0..3 {
        a.faults().cut();
        until("a request failed", async || a.elector.status().connection == Connection::Retrying).await;
        a.faults().heal();
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
    let (a, b) = (context.candidate("a").await, context.candidate("b").await);
    let leadership = a.lead().await;
    let next = b.start_campaign().await;
    a.faults().cut();
    let resigning = tokio::spawn(leadership.resign());
    until("a request failed", async || a.elector.status().connection == Connection::Retrying).await;
    a.faults().heal();
    let second = within("the handover", next).await.unwrap();
    // Whether it was lost or resigned, the leadership is over in the store too.
    let _ = within("the resignation", resigning).await.unwrap();
    assert!(second.is_leader());
    assert_eq!(b.candidates().await, ["b"]);
}

/// Hazard G30: a shutdown in an outage is not confirmed, and the entry that it leaves is gone within the time that it reports.
pub(super) async fn an_entry_left_by_a_shutdown_is_gone_in_time(context: &CaseContext<'_>) {
    let (a, observer) = (context.candidate("a").await, context.candidate("w").await);
    let leadership = a.lead().await;
    let deadline = leadership.deadline();
    until("a heartbeat was confirmed", async || leadership.deadline() > deadline).await;
    a.faults().partition();
    let shutdown = within("closing", a.elector.close_within(Duration::from_millis(100))).await;
    let expires_at = Instant::now() + shutdown.expires_in;
    assert!(!shutdown.confirmed, "{shutdown:?}");
    drop(leadership);
    assert_eq!(observer.candidates().await, ["a"]);
    until("the entry has expired", async || observer.candidates().await.is_empty()).await;
    let late = Instant::now().saturating_duration_since(expires_at);
    assert!(late < BUSY_STORE, "{late:?} later than reported: {shutdown:?}");
}

/// Hazards G10, Z10: responses are lost just after the request to enter, repeatedly.
pub(super) async fn connections_lost_while_entering_leave_nothing(context: &CaseContext<'_>) {
    let (a, observer) = (context.candidate("a").await, context.candidate("w").await);
    a.lead().await.resign().await.unwrap();
    for n in 0..10u32 {
        let elector = Arc::clone(&a.elector);
        let campaign = tokio::spawn(async move { elector.campaign("e").await });
        for _ in 0..n * 3 {
            tokio::task::yield_now().await;
        }
        if n % 2 == 0 {
            a.faults().drop_responses()
        } else {
            a.faults().cut()
        }
        tokio::task::yield_now().await;
        campaign.abort();
        a.faults().heal();
        let _ = campaign.await;
    }
    until("no entry remains", async || observer.candidates().await.is_empty()).await;
    assert!(a.lead().await.is_leader());
}

/// A campaign that starts without a store leads once the store is reachable.
pub(super) async fn a_campaign_waits_for_its_store(context: &CaseContext<'_>) {
    let a = context.candidate("a").await;
    a.faults().cut();
    let elector = Arc::clone(&a.elector);
    let campaign = tokio::spawn(async move { elector.campaign("e").await });
    until("a request failed", async || a.elector.status().connection == Connection::Retrying).await;
    assert!(!campaign.is_finished() && a.elector.status().last_error.is_some());
    a.faults().heal();
    assert!(within("leading", campaign).await.unwrap().unwrap().is_leader());
}

pub(super) async fn an_observer_survives_an_outage(context: &CaseContext<'_>) {
    let (a, observer) = (context.candidate("a").await, context.candidate("w").await);
    let mut leaders = observer.elector.observe("e");
    assert_eq!(next_leader(&mut leaders).await, None);
    observer.faults().cut();
    let leadership = a.lead().await;
    observer.faults().heal();
    assert_eq!(next_leader(&mut leaders).await.as_deref(), Some("a"));
    observer.faults().partition();
    leadership.resign().await.unwrap();
    observer.faults().heal();
    assert_eq!(next_leader(&mut leaders).await, None);
}

/// While none of five candidates reaches the store, none leads. After that exactly one leads, and each candidate has one entry.
pub(super) async fn after_an_outage_exactly_one_leads(context: &CaseContext<'_>) {
    let terms: Arc<Mutex<Vec<LeadershipHandle>>> = Arc::default();
    let leading = |terms: &Mutex<Vec<LeadershipHandle>>| {
        let terms = terms.lock().unwrap_or_else(PoisonError::into_inner);
        terms.iter().filter(|term| term.is_leader()).count()
    };
    let mut candidates = Vec::new();
    let mut campaigns = Vec::new();
    for n in 0..5 {
        let candidate = context.candidate(&format!("c{n}")).await;
        let (elector, terms) = (Arc::clone(&candidate.elector), Arc::clone(&terms));
        campaigns.push(tokio::spawn(async move {
            // A candidate that wins just before it is disconnected loses the leadership, and campaigns again.
            while let Ok(leadership) = elector.campaign("e").await {
                terms.lock().unwrap_or_else(PoisonError::into_inner).push(leadership.handle());
                leadership.lost().await;
            }
        }));
        candidates.push(candidate);
    }
    let observer = context.candidate("w").await;
    let shown = observer.shown(&[(); 5]).len();
    until("all candidates have entered", async || observer.candidates().await.len() == shown).await;
    until("a candidate leads", async || leading(&terms) == 1).await;
    for candidate in &candidates {
        candidate.faults().partition();
    }
    until("no candidate leads", async || leading(&terms) == 0).await;
    for candidate in &candidates {
        candidate.faults().heal();
    }
    until("a candidate leads again", async || leading(&terms) == 1).await;
    until("all candidates have entered again", async || {
        assert!(leading(&terms) <= 1, "two candidates lead at the same time");
        observer.candidates().await.len() == shown
    })
    .await;
    until("exactly one candidate leads", async || leading(&terms) == 1).await;
    for candidate in &candidates {
        within("closing", candidate.elector.close()).await;
    }
    for campaign in campaigns {
        within("the end of a campaign", campaign).await.unwrap();
    }
}
