//! Requests that only keep a session alive, sent while no candidate of the session leads or is next in line. They prove nothing.

use std::{
    sync::{Arc, Mutex, PoisonError, atomic::Ordering::SeqCst},
    time::Duration,
};

use tenure_core::{
    Clock as _, Elector,
    memory::{Delivery, Direction, MemoryStore, Op, Proof},
};

use crate::{
    faulty_backend::{self, Call},
    host::{Host, TTL, assert_nothing_left, endless_work, sleep, until, within},
};

/// After this time, everything has happened that needs no simulated time.
const INSTANT: Duration = Duration::from_millis(5);

/// A host that counts the heartbeats and keepalives of its backend.
fn counting_host(store: &MemoryStore, id: &str) -> (Host, impl Fn() -> (usize, usize) + use<>) {
    let calls = Arc::new(Mutex::new((0, 0)));
    let counted = Arc::clone(&calls);
    let host = faulty_backend::host(store, id, move |call| {
        let mut calls = counted.lock().unwrap_or_else(PoisonError::into_inner);
        calls.0 += usize::from(call == Call::Heartbeat);
        calls.1 += usize::from(call == Call::KeepAlive);
        Ok(())
    });
    (host, move || std::mem::take(&mut *calls.lock().unwrap_or_else(PoisonError::into_inner)))
}

#[tokio::test(start_paused = true)]
async fn only_candidates_that_may_lead_soon_send_heartbeats() {
    let store = MemoryStore::with_proof(Proof::Read);
    let (first, second) = (Host::new(&store, "first"), Host::new(&store, "second"));
    let (third, calls) = counting_host(&store, "third");
    let leads = first.lead().await;
    let next = second.enter_queue(&store).await;
    let last = third.enter_queue(&store).await;
    sleep(INSTANT).await;
    calls();
    sleep(TTL * 3).await;
    let (heartbeats, keepalives) = calls();
    assert_eq!(heartbeats, 0, "others than the leader are ahead");
    assert!((8..=10).contains(&keepalives), "{keepalives}");

    // It is next in line: a heartbeat is sent at once, and proves that it can lead.
    leads.resign().await.unwrap();
    let leads = next.await.unwrap();
    sleep(INSTANT).await;
    assert_eq!(calls(), (1, 0));
    sleep(TTL * 3).await;
    let (heartbeats, keepalives) = calls();
    assert!((8..=10).contains(&heartbeats) && keepalives == 0, "{heartbeats}, {keepalives}");
    third.link.set(&[Op::Heartbeat, Op::Confirm], Direction::Request, Delivery::Hold);
    leads.resign().await.unwrap();
    assert!(within(INSTANT, last).await.unwrap().is_leader(), "without another heartbeat");
}

/// Both candidates ahead leave at once: the guard is given once a heartbeat is proven, and not before.
#[tokio::test(start_paused = true)]
async fn a_candidate_that_was_not_next_in_line_leads_once_a_heartbeat_is_proven() {
    for proof in [Proof::Answer, Proof::Read, Proof::LaterHeartbeats { gap: TTL / 4 }] {
        let store = MemoryStore::with_proof(proof);
        let hosts = ["first", "second", "third"].map(|id| Host::new(&store, id));
        let leads = hosts[0].lead().await;
        let next = hosts[1].enter_queue(&store).await;
        let last = hosts[2].enter_queue(&store).await;
        sleep(TTL * 3).await;
        hosts[2].link.set(&[Op::Heartbeat], Direction::Response, Delivery::Delay(TTL / 20));
        next.abort();
        leads.resign().await.unwrap();
        sleep(TTL / 20 - INSTANT).await;
        assert!(!last.is_finished(), "{proof:?}");
        let allowed = if matches!(proof, Proof::LaterHeartbeats { .. }) { TTL / 2 } else { INSTANT * 3 };
        let leads = within(allowed, last).await.unwrap();
        assert!(leads.is_leader() && leads.remaining() < TTL * 9 / 10, "{proof:?}");
        hosts[2].link.heal();
        sleep(TTL * 3).await;
        assert!(leads.is_leader(), "{proof:?}");
    }
}

/// Hazard E1: a member that was deposed and does not know it answers the keepalives of a candidate. When that candidate's entry
/// comes to lead, no heartbeat is proven, and it does not lead.
#[tokio::test(start_paused = true)]
async fn keepalives_give_no_leadership() {
    assert!(!leads_by_keepalives().await);
}

/// Whether a candidate ever leads whose keepalives, but not whose heartbeats, are answered by a deposed member.
pub(crate) async fn leads_by_keepalives() -> bool {
    for millis in (0..10_000).step_by(500) {
        let store = MemoryStore::with_proof(Proof::Read);
        let hosts = ["a", "b", "c", "d"].map(|id| Host::new(&store, id));
        let leads = hosts[0].lead().await;
        let b = hosts[1].enter_queue(&store).await;
        let c = hosts[2].enter_queue(&store).await;
        let d = hosts[3].enter_queue(&store).await;
        sleep(TTL * 3).await;
        hosts[2].link.isolate_member(true);
        sleep(Duration::from_millis(millis)).await;
        b.abort();
        leads.resign().await.unwrap();
        let d = within(TTL * 2, d).await.unwrap();
        sleep(TTL).await;
        if c.is_finished() || !d.is_leader() {
            return true;
        }
        // It enters again once it has a connection.
        hosts[2].link.isolate_member(false);
        until("c has entered again", || store.entries("e").len() == 2).await;
        d.resign().await.unwrap();
        assert!(within(TTL, c).await.unwrap().is_leader());
    }
    false
}

/// Hazard G4: the deadline of a window that was not open before is enforced, although nothing polls the work.
#[tokio::test(start_paused = true)]
async fn quiet_work_is_dropped_by_the_deadline_of_a_window_that_was_suspended() {
    assert!(!works_on_after_its_deadline().await);
}

/// Whether quiet work of a candidate that was not next in line for long is still running at its deadline.
pub(crate) async fn works_on_after_its_deadline() -> bool {
    let store = MemoryStore::with_proof(Proof::Read);
    let hosts = ["first", "second", "third"].map(|id| Host::new(&store, id));
    let leads = hosts[0].lead().await;
    let next = hosts[1].enter_queue(&store).await;
    let last = hosts[2].enter_queue(&store).await;
    sleep(TTL * 6).await;
    next.abort();
    leads.resign().await.unwrap();
    let leads = within(TTL, last).await.unwrap();
    let (is_working, work) = endless_work(&leads);
    sleep(TTL / 10).await;
    hosts[2].link.cut();
    let deadline = leads.deadline();
    hosts[2].clock.sleep_until(deadline).await;
    let works_on = is_working.load(SeqCst);
    hosts[2].link.heal();
    drop(leads);
    within(TTL * 2, work).await.unwrap().unwrap_err();
    works_on
}

/// Hazard G12: the entry is deleted while its candidate waits for a proven heartbeat: it enters again, and leads only in its turn.
#[tokio::test(start_paused = true)]
async fn a_candidate_whose_entry_was_deleted_before_the_proof_does_not_lead() {
    assert!(!leads_without_an_entry().await);
}

/// Whether a candidate leads whose entry was deleted after it came to lead, and before a heartbeat was proven.
pub(crate) async fn leads_without_an_entry() -> bool {
    let store = MemoryStore::with_proof(Proof::Read);
    let hosts = ["a", "b", "c", "d"].map(|id| Host::new(&store, id));
    let leads = hosts[0].lead().await;
    let b = hosts[1].enter_queue(&store).await;
    let c = hosts[2].enter_queue(&store).await;
    let d = hosts[3].enter_queue(&store).await;
    sleep(TTL * 3).await;
    hosts[2].link.set(&[Op::Heartbeat], Direction::Response, Delivery::Delay(TTL / 10));
    b.abort();
    leads.resign().await.unwrap();
    sleep(INSTANT).await;
    let first = store.entries("e")[0].clone();
    store.delete_entry("e", first.revision);
    let d = within(INSTANT * 3, d).await.unwrap();
    sleep(TTL).await;
    assert!(d.is_leader());
    c.is_finished()
}

/// Promise L1: an outage that outlasts the session of a candidate which is not next in line ends with a new entry.
#[tokio::test(start_paused = true)]
async fn a_waiting_candidate_enters_again_after_a_long_outage() {
    let store = MemoryStore::with_proof(Proof::Read);
    let hosts = ["first", "second", "third"].map(|id| Host::new(&store, id));
    let leads = hosts[0].lead().await;
    let next = hosts[1].enter_queue(&store).await;
    let last = hosts[2].enter_queue(&store).await;
    sleep(TTL).await;
    hosts[2].link.cut();
    until("its session has expired", || store.entries("e").len() == 2).await;
    sleep(TTL * 3).await;
    hosts[2].link.heal();
    until("it has entered again", || store.entries("e").len() == 3).await;
    leads.resign().await.unwrap();
    let leads = next.await.unwrap();
    leads.resign().await.unwrap();
    let leads = within(TTL, last).await.unwrap();
    assert!(leads.is_leader());
    leads.resign().await.unwrap();
    for host in &hosts {
        host.elector.close().await;
    }
    assert_nothing_left(&store).await;
}

/// Promise L2: an elector that is dropped in an outage leaves nothing running, although its candidate was not next in line and no
/// deadline ended its session.
#[tokio::test(start_paused = true)]
async fn a_session_without_a_deadline_ends_in_an_outage() {
    let store = MemoryStore::with_proof(Proof::Read);
    let (first, second) = (Host::new(&store, "first"), Host::new(&store, "second"));
    let (third, calls) = counting_host(&store, "third");
    let _leads = first.lead().await;
    let _next = second.enter_queue(&store).await;
    let last = third.enter_queue(&store).await;
    sleep(TTL).await;
    third.link.cut();
    last.abort();
    calls();
    sleep(TTL * 3).await;
    assert_eq!(third.elector.status().session, None, "its session has ended");
    assert_ne!(calls(), (0, 0));
    sleep(TTL * 3).await;
    assert_eq!(calls(), (0, 0));
}

/// Hazard Z24: wherever in its interval the last keepalive was, a candidate that comes to lead two places at once keeps leading, also
/// when the store is slow.
#[tokio::test(start_paused = true)]
async fn a_leadership_that_begins_with_an_old_keepalive_is_kept() {
    for delay in [INSTANT, TTL / 40] {
        for millis in (0..5_000).step_by(250) {
            let store = MemoryStore::with_proof(Proof::LaterHeartbeats { gap: TTL / 4 });
            let hosts = ["first", "second", "third"].map(|id| Host::new(&store, id));
            let leads = hosts[0].lead().await;
            let next = hosts[1].enter_queue(&store).await;
            let last = hosts[2].enter_queue(&store).await;
            hosts[2].link.set(&[Op::Heartbeat], Direction::Response, Delivery::Delay(delay));
            sleep(TTL * 3 + Duration::from_millis(millis)).await;
            next.abort();
            leads.resign().await.unwrap();
            let leads = within(TTL / 2, last).await.unwrap();
            sleep(TTL * 3).await;
            assert!(leads.is_leader(), "{millis} ms, answers {delay:?} late");
        }
    }
}

/// Promise L1: the next in line keeps its session and its place through an outage that outlasts its window.
#[tokio::test(start_paused = true)]
async fn the_next_in_line_keeps_its_place_in_an_outage() {
    for proof in [Proof::Answer, Proof::Read, Proof::LaterHeartbeats { gap: TTL / 4 }] {
        for millis in (0..4_000).step_by(250) {
            let store = MemoryStore::with_proof(proof);
            let (first, second) = (Host::new(&store, "first"), Host::new(&store, "second"));
            let leads = first.lead().await;
            let next = second.enter_queue(&store).await;
            sleep(TTL + Duration::from_millis(millis)).await;
            let place = store.entries("e")[1].revision;
            second.link.set(&Op::ALL, Direction::Request, Delivery::Fail);
            // A candidate that cannot enter another election meanwhile changes nothing.
            let elector = Arc::clone(&second.elector);
            let entering = tokio::spawn(async move { elector.campaign("f").await });
            sleep(TTL * 3 / 5).await;
            entering.abort();
            second.link.heal();
            sleep(TTL).await;
            assert_eq!(store.entries("e")[1].revision, place, "{proof:?}, {millis} ms");
            leads.resign().await.unwrap();
            assert!(within(TTL, next).await.unwrap().is_leader(), "{proof:?}, {millis} ms");
        }
    }
}

/// While the store does not answer, campaigns that try to enter cause no heartbeats beyond those that are retried anyway.
#[tokio::test(start_paused = true)]
async fn entering_in_an_outage_sends_no_additional_heartbeats() {
    let sent_by = async |campaigns: usize| {
        let store = MemoryStore::with_proof(Proof::Answer);
        let first = Host::new(&store, "first");
        let (second, calls) = counting_host(&store, "second");
        let _leads = first.lead().await;
        let _next = second.enter_queue(&store).await;
        second.link.set(&Op::ALL, Direction::Request, Delivery::Fail);
        // Its window is suspended by then.
        sleep(TTL).await;
        calls();
        let campaigns: Vec<_> = (0..campaigns)
            .map(|n| {
                let elector = Arc::clone(&second.elector);
                tokio::spawn(async move { elector.campaign(&format!("e{n}")).await })
            })
            .collect();
        sleep(TTL / 5).await;
        campaigns.iter().for_each(|campaign| campaign.abort());
        calls().0
    };
    let (without, with) = (sent_by(0).await, sent_by(100).await);
    assert!(without > 0 && with <= without + 2, "{without}, {with}");
}

/// A candidate whose store refuses its requests asks seldom once a TTL has passed.
#[tokio::test(start_paused = true)]
async fn heartbeats_in_a_long_outage_are_rare() {
    let store = MemoryStore::with_proof(Proof::Answer);
    let first = Host::new(&store, "first");
    let (second, calls) = counting_host(&store, "second");
    let _leads = first.lead().await;
    let _next = second.enter_queue(&store).await;
    sleep(TTL).await;
    second.link.set(&Op::ALL, Direction::Request, Delivery::Fail);
    calls();
    sleep(TTL).await;
    let soon = calls().0 + calls().1;
    sleep(TTL).await;
    let later = calls().0 + calls().1;
    assert!(soon > 20, "{soon}");
    assert!(later <= 12, "{later} in {TTL:?}");
}

/// Hazard G4: quiet work of a leader whose store does not answer is dropped by its deadline.
#[tokio::test(start_paused = true)]
async fn quiet_work_is_dropped_by_its_deadline_in_an_outage() {
    let store = MemoryStore::with_proof(Proof::Answer);
    let host = Host::new(&store, "a");
    let leads = host.lead().await;
    let (is_working, work) = endless_work(&leads);
    host.link.set(&Op::ALL, Direction::Request, Delivery::Fail);
    sleep(INSTANT).await;
    host.clock.sleep_until(leads.deadline()).await;
    assert!(!is_working.load(SeqCst));
    host.link.heal();
    drop(leads);
    within(TTL * 2, work).await.unwrap().unwrap_err();
}
