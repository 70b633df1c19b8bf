//! Single candidates: campaigns, leaderships, resignations and shutdown.

use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicUsize, Ordering},
    },
    time::Duration,
};

use tenure_core::{Config, Elector, ElectorExt, Error, LossReason, StoreElector};
use tokio::sync::oneshot;

use super::context::{CaseContext, until, within};

pub(super) async fn a_candidate_leads_and_hands_over(context: &CaseContext<'_>) {
    let (a, b) = (context.candidate("a").await, context.candidate("b").await);
    assert_eq!(a.elector.leader("e").await.unwrap(), None);
    let first = a.lead().await;
    assert!(first.is_leader() && first.ensure().is_ok());
    let next = b.start_campaign().await;
    assert!(!next.is_finished());
    let handle = first.handle();
    first.resign().await.unwrap();
    assert_eq!(handle.loss(), Some(LossReason::Resigned));
    let second = within("the handover", next).await.unwrap();
    assert!(second.is_leader() && second.fencing_token() > handle.fencing_token());
    assert_eq!(b.candidates().await, ["b"]);
}

/// Guarantee S2.
pub(super) async fn tokens_rise_from_term_to_term(context: &CaseContext<'_>) {
    let (a, b) = (context.candidate("a").await, context.candidate("b").await);
    let mut tokens = Vec::new();
    for n in 0..10 {
        let leadership = if n % 3 == 0 { &b } else { &a }.lead().await;
        tokens.push(leadership.fencing_token());
        leadership.resign().await.unwrap();
    }
    assert!(tokens.is_sorted_by(|a, b| a < b), "{tokens:?}");
}

pub(super) async fn trying_does_not_wait(context: &CaseContext<'_>) {
    let (a, b) = (context.candidate("a").await, context.candidate("b").await);
    let leadership = within("trying", a.elector.try_campaign("e")).await.unwrap().unwrap();
    assert!(within("trying", b.elector.try_campaign("e")).await.unwrap().is_none());
    assert_eq!(b.candidates().await, ["a"]);
    leadership.resign().await.unwrap();
    assert!(within("trying", b.elector.try_campaign("e")).await.unwrap().is_some());
}

/// Hazard G10.
pub(super) async fn a_waiting_campaign_that_is_dropped_leaves_nothing(context: &CaseContext<'_>) {
    let (a, b) = (context.candidate("a").await, context.candidate("b").await);
    let leadership = a.lead().await;
    b.start_campaign().await.abort();
    until("the entry is gone", async || a.candidates().await == ["a"]).await;
    assert!(leadership.is_leader());
}

/// Hazard G10: campaigns are dropped before, between and after their requests.
pub(super) async fn a_campaign_dropped_at_any_moment_leaves_nothing(context: &CaseContext<'_>) {
    let (a, observer) = (context.candidate("a").await, context.candidate("w").await);
    for n in 0..40u64 {
        let timeout = Duration::from_micros(n * n * 20);
        let _ = tokio::time::timeout(timeout, a.elector.campaign("e")).await;
    }
    until("no entry remains", async || observer.candidates().await.is_empty()).await;
    assert!(a.lead().await.is_leader());
}

/// Hazards G16, G20.
pub(super) async fn a_dropped_guard_hands_over(context: &CaseContext<'_>) {
    let (a, b) = (context.candidate("a").await, context.candidate("b").await);
    let first = a.lead().await;
    let next = b.start_campaign().await;
    let dropping = std::thread::spawn(move || drop(first));
    assert!(within("the handover", next).await.unwrap().is_leader());
    dropping.join().unwrap();
}

/// Hazards G7, G15: after failed work the next candidate leads, and the first one campaigns again.
pub(super) async fn a_failing_leader_hands_over(context: &CaseContext<'_>) {
    let (a, b) = (context.candidate("a").await, context.candidate("b").await);
    let terms = Arc::new(AtomicUsize::new(0));
    let (elector, counted) = (Arc::clone(&a.elector), Arc::clone(&terms));
    let failing = tokio::spawn(async move {
        elector
            .run_while_leader("e", std::future::pending(), |_| {
                counted.fetch_add(1, Ordering::SeqCst);
                async { Err("broken".into()) }
            })
            .await
    });
    until("it has led", async || terms.load(Ordering::SeqCst) > 0).await;
    let leadership = b.lead().await;
    let before = terms.load(Ordering::SeqCst);
    leadership.resign().await.unwrap();
    until("it leads again", async || terms.load(Ordering::SeqCst) > before).await;
    failing.abort();
    let _ = failing.await;
    until("it has withdrawn", async || b.candidates().await.is_empty()).await;
}

/// Hazard G5, guarantee S3.
pub(super) async fn work_has_stopped_before_the_next_leader_begins(context: &CaseContext<'_>) {
    let (a, b) = (context.candidate("a").await, context.candidate("b").await);
    let working = Arc::new(AtomicBool::new(false));
    let (stop, stopped) = oneshot::channel::<()>();
    let (elector, flag) = (Arc::clone(&a.elector), Arc::clone(&working));
    let runner = tokio::spawn(async move {
        let shutdown = async { stopped.await.unwrap_or_default() };
        elector
            .run_while_leader("e", shutdown, |leadership| {
                let flag = Arc::clone(&flag);
                async move {
                    flag.store(true, Ordering::SeqCst);
                    leadership.lost().await;
                    // The work does not stop at once.
                    for _ in 0..1_000 {
                        tokio::task::yield_now().await;
                    }
                    flag.store(false, Ordering::SeqCst);
                    Ok(())
                }
            })
            .await
    });
    until("it works", async || working.load(Ordering::SeqCst)).await;
    let next = b.start_campaign().await;
    stop.send(()).unwrap();
    let leadership = within("the handover", next).await.unwrap();
    assert!(!working.load(Ordering::SeqCst), "the work of the previous leader still runs");
    assert!(leadership.is_leader());
    within("the shutdown", runner).await.unwrap().unwrap();
}

pub(super) async fn a_shutdown_leaves_nothing(context: &CaseContext<'_>) {
    let (a, b) = (context.candidate("a").await, context.candidate("b").await);
    let leading = a.elector.run_while_leader("e", tokio::task::yield_now(), |leadership| async move {
        leadership.lost().await;
        Ok(())
    });
    within("the shutdown", leading).await.unwrap();
    let leadership = b.lead().await;
    let waiting = a.elector.run_while_leader("e", tokio::task::yield_now(), |_| async { Ok(()) });
    within("the shutdown", waiting).await.unwrap();
    until("the waiting candidate has withdrawn", async || b.candidates().await == ["b"]).await;
    assert!(leadership.is_leader());
}

pub(super) async fn closing_ends_everything(context: &CaseContext<'_>) {
    let (a, b) = (context.candidate("a").await, context.candidate("b").await);
    let leadership = a.lead().await;
    let (elector, entered) = (Arc::clone(&b.elector), b.entered().await);
    let waiting = tokio::spawn(async move { elector.campaign("e").await });
    until("both have entered", entered).await;
    within("closing", b.elector.close()).await;
    assert!(matches!(waiting.await.unwrap(), Err(Error::Closed)));
    assert_eq!(a.candidates().await, ["a"]);
    within("closing", a.elector.close()).await;
    assert_eq!(leadership.loss(), Some(LossReason::Closed));
    assert!(matches!(a.elector.campaign("e").await, Err(Error::Closed)));
}

pub(super) async fn a_guard_outlives_its_elector(context: &CaseContext<'_>) {
    let observer = context.candidate("w").await;
    let client = context.harness.client().await;
    let leadership = {
        let config = Config::new().with_ttl(context.harness.ttl());
        let elector = StoreElector::new(client.backend.clone(), config).unwrap();
        within("leading", elector.campaign("e")).await.unwrap()
    };
    assert!(leadership.is_leader());
    assert_eq!(observer.candidates().await.len(), 1);
    within("resigning", leadership.resign()).await.unwrap();
    assert_eq!(observer.candidates().await.len(), 0);
}
