//! Which heartbeats extend the deadline, by how much, and the effect of a missing one.

use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use tenure_core::{
    Connection, Elector, LossReason, SimClock,
    memory::{Delivery, Direction, MemoryStore, Op, Proof},
    spi::{BackendError, BackendErrorKind, Heartbeat},
};

use crate::{
    faulty_backend::{self, Call},
    host::{Host, TTL, UNTIL_DEADLINE, sleep, within},
};

/// Hazard G2: a heartbeat that a read confirms counts from its own request, not from the answer to the read.
#[tokio::test(start_paused = true)]
async fn a_heartbeat_confirmed_late_counts_from_its_request() {
    let store = MemoryStore::with_proof(Proof::Read);
    let host = Host::new(&store, "a");
    let leadership = host.lead().await;
    host.link.set(
        &[Op::Heartbeat, Op::Confirm],
        Direction::Response,
        Delivery::Delay(Duration::from_secs(1)),
    );
    sleep(TTL).await;
    let mut most = Duration::ZERO;
    for _ in 0..2_000 {
        most = most.max(leadership.remaining());
        sleep(Duration::from_millis(10)).await;
    }
    assert!(most > Duration::ZERO && most <= UNTIL_DEADLINE - Duration::from_millis(1_900), "{most:?}");
}

/// Hazards E4, E16: one lost heartbeat costs no leadership, with every proof, at whatever time the link was down.
#[tokio::test(start_paused = true)]
async fn leadership_survives_one_lost_heartbeat() {
    for proof in [Proof::Answer, Proof::Read, Proof::LaterHeartbeats { gap: TTL / 4 }] {
        let outage =
            Duration::from_millis(if matches!(proof, Proof::LaterHeartbeats { .. }) { 1_500 } else { 2_500 });
        for millis in (0..4_000).step_by(100) {
            let store = MemoryStore::with_proof(proof);
            let host = Host::new(&store, "a");
            let leadership = host.lead().await;
            sleep(TTL + Duration::from_millis(millis)).await;
            host.link.set(&[Op::Heartbeat], Direction::Response, Delivery::Drop);
            sleep(outage).await;
            host.link.heal();
            sleep(TTL * 2).await;
            assert!(leadership.is_leader(), "{proof:?}, {millis} ms after 10 s");
        }
    }
}

/// The store grants a shorter TTL from now on: no deadline is later than that.
#[tokio::test(start_paused = true)]
async fn a_shorter_ttl_in_an_answer_brings_the_deadline_nearer() {
    let shorter = Arc::new(AtomicBool::new(false));
    let is_shorter = Arc::clone(&shorter);
    let store = MemoryStore::new();
    let host = faulty_backend::host_with_answers(&store, "a", move |answer| {
        match is_shorter.load(Ordering::SeqCst) {
            true => Heartbeat::new(TTL / 5),
            false => answer,
        }
    });
    let leadership = host.lead().await;
    sleep(TTL).await;
    assert!(leadership.remaining() > TTL / 2);
    shorter.store(true, Ordering::SeqCst);
    sleep(TTL / 3 + Duration::from_millis(100)).await;
    assert!(leadership.remaining() <= TTL / 5, "{:?} left", leadership.remaining());
    assert_eq!(within(TTL / 5, leadership.lost()).await, LossReason::Deadline);
}

/// Hazard E12: an answer with a TTL of zero means that the session has ended.
#[tokio::test(start_paused = true)]
async fn an_answer_without_a_ttl_says_that_the_session_has_ended() {
    let store = MemoryStore::new();
    let host = faulty_backend::host_with_answers(&store, "a", |_| Heartbeat::new(Duration::ZERO));
    let leadership = host.lead().await;
    let reason = within(TTL / 3 + Duration::from_millis(10), leadership.lost()).await;
    assert_eq!(reason, LossReason::SessionExpired);
}

/// Hazards G22, Z18: a gap measured by a fast clock within the drift bound is long enough by the clock of the store.
#[tokio::test(start_paused = true)]
async fn a_fast_clock_confirms_no_heartbeat_too_early() {
    for millis in (0..10_000).step_by(50) {
        let store = MemoryStore::with_proof(Proof::LaterHeartbeats { gap: TTL / 4 });
        let fast = Host::with(&store, "fast", SimClock::with_rate(1.09), |c| c);
        let other = Host::new(&store, "other");
        let first = fast.lead().await;
        let next = other.enter_queue(&store).await;
        sleep(TTL + Duration::from_millis(millis)).await;
        fast.link.isolate_member(true);
        within(TTL, first.lost()).await;
        assert!(!next.is_finished(), "partitioned {millis} ms after 10 s");
    }
}

/// A single failed watch does not change the connection status: only heartbeats do.
#[tokio::test(start_paused = true)]
async fn a_failed_watch_does_not_show_in_the_status() {
    let store = MemoryStore::new();
    let armed = AtomicBool::new(true);
    let host = faulty_backend::host(&store, "a", move |call| {
        match call == Call::Watch && armed.swap(false, Ordering::SeqCst) {
            true => Err(BackendError::new(BackendErrorKind::Unavailable, "the stream was reset")),
            false => Ok(()),
        }
    });
    let leadership = host.lead().await;
    sleep(Duration::from_secs(2)).await;
    assert_eq!(host.elector.status().connection, Connection::Connected);
    store.delete_entry("e", leadership.fencing_token().get());
    assert_eq!(within(Duration::from_millis(10), leadership.lost()).await, LossReason::EntryGone);
}
