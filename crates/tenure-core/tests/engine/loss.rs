//! The loss of leadership: promises S1 and S3.

use std::time::Duration;

use tenure_core::{
    Clock as _, Config, Connection, Elector, LossReason, OnClockJump, OnDisconnect, SimClock,
    memory::{Delivery, Direction, MemoryStore, Op, Proof},
};

use crate::host::{Host, TTL, UNTIL_DEADLINE, UNTIL_STOP, sleep, until, within};

/// Hazards G1, G25: in a process that was stopped for longer than its TTL, the first check denies leadership.
#[tokio::test(start_paused = true)]
async fn the_first_check_after_a_pause_denies_leadership() {
    let store = MemoryStore::new();
    let host = Host::new(&store, "a");
    let leadership = host.lead().await;
    assert!(leadership.is_leader());
    host.clock.jump(TTL + Duration::from_secs(3));
    assert!(!leadership.is_leader());
    assert_eq!(leadership.ensure().unwrap_err().reason, LossReason::Deadline);
}

/// Hazards G1, G25: also within the grace period, before the engine has noticed: no new side effect may begin.
#[tokio::test(start_paused = true)]
async fn the_first_check_within_the_grace_period_denies_leadership() {
    let store = MemoryStore::new();
    let host = Host::new(&store, "a");
    let leadership = host.lead().await;
    host.clock.jump(UNTIL_STOP + Duration::from_millis(500));
    assert!(!leadership.remaining().is_zero(), "the deadline is yet to come");
    assert_eq!(leadership.ensure().unwrap_err().reason, LossReason::Deadline);
}

/// Hazard G21: a leadership that was lost stays lost, whatever its elector does next.
#[tokio::test(start_paused = true)]
async fn an_old_guard_never_affirms_leadership_again() {
    let store = MemoryStore::new();
    let host = Host::new(&store, "a");
    let old = host.lead().await;
    host.clock.jump(TTL);
    assert!(!old.is_leader());
    let old = old.handle();
    let new = host.lead().await;
    assert!(new.is_leader() && !old.is_leader());
    assert!(new.fencing_token() > old.fencing_token());
    sleep(TTL * 3).await;
    assert!(new.is_leader() && !old.is_leader());
}

/// Hazard G23: the time of day runs ahead of the clock after a virtual machine was paused.
#[tokio::test(start_paused = true)]
async fn a_jump_of_the_time_of_day_ends_the_leadership() {
    let store = MemoryStore::new();
    let host = Host::new(&store, "a");
    let leadership = host.lead().await;
    host.clock.jump_wall(Duration::from_secs(2));
    assert_eq!(leadership.ensure().unwrap_err().reason, LossReason::ClockJump);
}

/// Hazard G23: work that cannot be dropped at once has until the deadline, and the entry stays until then.
#[tokio::test(start_paused = true)]
async fn after_a_jump_the_entry_can_stay_until_the_deadline() {
    for drops_guard in [true, false] {
        let store = MemoryStore::new();
        let keeps_entry = |config: Config| config.with_on_clock_jump(OnClockJump::StopByDeadline);
        let a = Host::with(&store, "a", SimClock::new(), keeps_entry);
        let b = Host::new(&store, "b");
        let first = a.lead().await;
        let next = b.enter_queue(&store).await;
        let left = first.deadline().since(a.clock.now());
        a.clock.jump_wall(Duration::from_secs(2));
        assert_eq!(first.ensure().unwrap_err().reason, LossReason::ClockJump);
        sleep(left - Duration::from_millis(100)).await;
        assert!(!next.is_finished(), "another candidate leads before the deadline");
        if drops_guard {
            drop(first);
        }
        // The session is closed then, and does not have to expire.
        assert!(within(Duration::from_millis(200), next).await.unwrap().is_leader());
    }
}

/// Hazards G2, Z1: a leader that is cut off stops before the store can elect another; the deadline
/// is counted from the sending of the last confirmed heartbeat.
#[tokio::test(start_paused = true)]
async fn a_leader_that_is_cut_off_stops_before_the_next_one_leads() {
    let store = MemoryStore::new();
    let (a, b) = (Host::new(&store, "a"), Host::new(&store, "b"));
    let first = a.lead().await;
    let next = b.enter_queue(&store).await;
    sleep(TTL * 5).await;
    assert!(first.is_leader() && !next.is_finished());

    let cut = tokio::time::Instant::now();
    a.link.cut();
    assert_eq!(within(TTL, first.lost()).await, LossReason::Deadline);
    assert!(cut.elapsed() <= UNTIL_STOP);
    assert!(!next.is_finished(), "another candidate leads already");
    let second = within(TTL * 2, next).await.unwrap();
    assert!(!first.is_leader() && second.is_leader());
    assert!(second.fencing_token() > first.fencing_token());
}

/// Hazard G2: a late answer to a heartbeat extends the deadline from the request, not from the answer.
#[tokio::test(start_paused = true)]
async fn a_late_answer_counts_from_its_request() {
    let store = MemoryStore::new();
    let host = Host::new(&store, "a");
    let leadership = host.lead().await;
    host.link.set(&[Op::Heartbeat], Direction::Response, Delivery::Delay(Duration::from_secs(3)));
    let before = leadership.remaining();
    until("the deadline has moved", || leadership.remaining() > before - Duration::from_secs(6)).await;
    for _ in 0..100 {
        assert!(leadership.remaining() <= UNTIL_DEADLINE);
        sleep(Duration::from_millis(100)).await;
    }
    let mut most = Duration::ZERO;
    for _ in 0..2_000 {
        most = most.max(leadership.remaining());
        sleep(Duration::from_millis(10)).await;
    }
    assert!(
        most <= UNTIL_DEADLINE - Duration::from_millis(2_900),
        "{most:?} of {UNTIL_DEADLINE:?} left after 3 s in transit"
    );
}

/// Hazards E14, Z18: a member that is partitioned from its peers answers. Without confirmation its answers do not extend the
/// deadline.
#[tokio::test(start_paused = true)]
async fn an_unconfirmed_heartbeat_moves_no_deadline() {
    let store = MemoryStore::with_proof(Proof::Read);
    let (a, b) = (Host::new(&store, "a"), Host::new(&store, "b"));
    let first = a.lead().await;
    let next = b.enter_queue(&store).await;
    sleep(TTL).await;
    a.link.isolate_member(true);
    let from = tokio::time::Instant::now();
    assert_eq!(within(TTL, first.lost()).await, LossReason::Deadline);
    assert!(from.elapsed() <= UNTIL_STOP && !next.is_finished());
    drop(within(TTL * 2, next).await.unwrap());
}

/// Hazard Z18: if a later heartbeat is the confirmation, the deadline is counted from the one before.
#[tokio::test(start_paused = true)]
async fn a_heartbeat_confirmed_by_the_next_one_is_credited_from_its_own_sending() {
    let gap = TTL / 4;
    let store = MemoryStore::with_proof(Proof::LaterHeartbeats { gap });
    let host = Host::new(&store, "a");
    let leadership = host.lead().await;
    for _ in 0..500 {
        sleep(Duration::from_millis(100)).await;
        assert!(leadership.is_leader());
    }
    let mut most = Duration::ZERO;
    for _ in 0..500 {
        sleep(Duration::from_millis(10)).await;
        most = most.max(leadership.remaining());
    }
    assert!(most <= UNTIL_DEADLINE - gap, "{most:?}");
}

/// Hazard Z18: a single write was answered just before the member was partitioned, and its extension of the session was never
/// relayed.
#[tokio::test(start_paused = true)]
async fn the_answer_to_a_single_write_moves_no_deadline() {
    for millis in (0..10_000).step_by(250) {
        let store = MemoryStore::with_proof(Proof::LaterHeartbeats { gap: TTL / 4 });
        let (a, b) = (Host::new(&store, "a"), Host::new(&store, "b"));
        let first = a.lead().await;
        let next = b.enter_queue(&store).await;
        sleep(TTL + Duration::from_millis(millis)).await;
        a.link.isolate_member(true);
        within(TTL, first.lost()).await;
        assert!(!next.is_finished(), "partitioned {millis} ms after 10 s");
        drop(within(TTL * 2, next).await.unwrap());
    }
}

/// Hazards E4, E16: a restart, a leader election or a short stall of the store costs no leadership.
#[tokio::test(start_paused = true)]
async fn leadership_survives_an_outage_shorter_than_the_deadline() {
    for proof in [Proof::Answer, Proof::Read, Proof::LaterHeartbeats { gap: TTL / 4 }] {
        let store = MemoryStore::with_proof(proof);
        let host = Host::new(&store, "a");
        let leadership = host.lead().await;
        sleep(TTL * 2).await;
        host.link.set(&Op::ALL, Direction::Request, Delivery::Fail);
        sleep(Duration::from_millis(2_400)).await;
        assert_eq!(host.elector.status().connection, Connection::Retrying, "{proof:?}");
        assert!(leadership.is_leader());
        store.begin_epoch();
        host.link.heal();
        sleep(TTL * 3).await;
        assert!(leadership.is_leader(), "{proof:?}");
        assert_eq!(host.elector.status().connection, Connection::Connected);
        assert!(host.elector.status().last_error.is_some_and(|error| error.contains("connection was reset")));
    }
}

/// `OnDisconnect::StepDown`: the first failed heartbeat ends the leadership.
#[tokio::test(start_paused = true)]
async fn a_strict_leader_gives_up_with_the_first_failed_heartbeat() {
    let store = MemoryStore::new();
    let host = Host::with(&store, "a", SimClock::new(), |c| c.with_on_disconnect(OnDisconnect::StepDown));
    let leadership = host.lead().await;
    host.link.set(&[Op::Heartbeat], Direction::Request, Delivery::Fail);
    assert_eq!(
        within(TTL / 3 + Duration::from_millis(10), leadership.lost()).await,
        LossReason::Disconnected
    );
}

/// Hazards G12, E1, E2: the entry of the leader was deleted by an operator or another program.
#[tokio::test(start_paused = true)]
async fn a_leader_whose_entry_was_deleted_leads_no_more() {
    let store = MemoryStore::new();
    let host = Host::new(&store, "a");
    let leadership = host.lead().await;
    assert!(store.delete_entry("e", leadership.fencing_token().get()));
    assert_eq!(within(Duration::from_millis(10), leadership.lost()).await, LossReason::EntryGone);
    assert!(!leadership.is_leader());
}

/// Hazards E12, E13, Z3: the store says that the session has ended.
#[tokio::test(start_paused = true)]
async fn a_session_that_the_store_has_ended_ends_its_leaderships() {
    let store = MemoryStore::new();
    let host = Host::new(&store, "a");
    let one = host.lead().await;
    let two = host.elector.campaign("another").await.unwrap();
    host.link.set(&[Op::Watch], Direction::Response, Delivery::Drop);
    store.expire_session(store.sessions()[0]);
    assert_eq!(within(TTL / 2, one.lost()).await, LossReason::SessionExpired);
    assert_eq!(two.loss(), Some(LossReason::SessionExpired));
    host.link.heal();
    drop(one);
    let again = host.lead().await;
    assert!(again.is_leader());
}

/// Hazard G22: hosts whose clocks run up to the drift bound slow still stop in time.
#[tokio::test(start_paused = true)]
async fn a_slow_clock_within_the_bound_never_overlaps() {
    let store = MemoryStore::new();
    let slow = Host::with(&store, "slow", SimClock::with_rate(0.91), |c| c);
    let other = Host::new(&store, "other");
    let first = slow.lead().await;
    let next = other.enter_queue(&store).await;
    sleep(TTL * 3).await;
    slow.link.cut();
    first.lost().await;
    assert!(!next.is_finished() && store.entries("e").len() == 2);
    drop(next.await.unwrap());
}

/// Promise L1: after a crash, the next in the queue leads within the TTL.
#[tokio::test(start_paused = true)]
async fn a_candidate_leads_within_the_ttl_of_a_crash() {
    let store = MemoryStore::new();
    let (a, b) = (Host::new(&store, "a"), Host::new(&store, "b"));
    let _first = a.lead().await;
    let next = b.enter_queue(&store).await;
    sleep(TTL * 2).await;
    a.link.cut();
    let leadership = within(TTL + Duration::from_millis(10), next).await.unwrap();
    assert!(leadership.is_leader());
}
