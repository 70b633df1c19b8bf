//! The scenarios, each of which returns whether a promise was broken.

use std::sync::Arc;

use tenure_core::{
    SimClock,
    spi::{BackendErrorKind, BackendSession as _, Entered, SessionOptions},
};

use super::host::{DRIFT, Host, TTL, request, seconds, sleep, stored};
use crate::{
    CasBackend,
    garbage::collect,
    memory::{MemoryCas, MemoryCasOptions, MemoryEpochs, Network, Request},
    session::CasSession,
};

/// Lets `challenger` wait behind `owner`, which is silent from now on. Whether the owner's window is open when the challenger
/// leads.
async fn is_taken_over_early(owner: &Host, challenger: &Host) -> bool {
    challenger.queue("e", 2).await;
    let _alive = challenger.keep_alive();
    challenger.wait("e", 2).await.unwrap().unwrap();
    owner.is_open()
}

/// Hazard C14: the owner's clock is slow, the challenger's fast, both within the drift bound.
pub(super) async fn both_clocks_drift() -> bool {
    let store = MemoryCas::new();
    let owner = Host::with_rate(&store, 1.005 - DRIFT).await;
    let challenger = Host::with_rate(&store, 0.995 + DRIFT).await;
    owner.lead("e", 1).await;
    owner.beat().await.unwrap();
    is_taken_over_early(&owner, &challenger).await
}

/// Hazard C14: a heartbeat with another TTL, whose answer is lost.
pub(super) async fn the_ttl_is_immutable() -> bool {
    let store = MemoryCas::new();
    let (owner, challenger) = (Host::new(&store).await, Host::new(&store).await);
    owner.lead("e", 1).await;
    owner.client.lose_next_answer(Request::Swap, "s/");
    owner.beat().await.unwrap_err();
    is_taken_over_early(&owner, &challenger).await
}

/// Hazard C1: the owner beats just before the timer of its earlier beat has run.
pub(super) async fn a_beat_restarts_the_timer() -> bool {
    let store = MemoryCas::new();
    let (owner, challenger) = (Host::new(&store).await, Host::new(&store).await);
    owner.lead("e", 1).await;
    challenger.queue("e", 2).await;
    let waiting = challenger.wait("e", 2);
    let _alive = challenger.keep_alive();
    sleep(8.0).await;
    owner.beat().await.unwrap();
    waiting.await.unwrap().unwrap();
    owner.is_open()
}

/// Hazard C16: nobody waits, and one-shot campaigns come and go.
pub(super) async fn one_shot_campaigns_take_over() -> bool {
    let store = MemoryCas::new();
    let (owner, challenger) = (Host::new(&store).await, Host::new(&store).await);
    owner.lead("e", 1).await;
    let _alive = challenger.keep_alive();
    for nonce in 2..12 {
        if let Entered::Leads(_) = challenger.enter("e", nonce).await.unwrap() {
            assert!(!owner.is_open());
            return false;
        }
        challenger.leave("e", nonce).await;
        sleep(2.0).await;
    }
    true
}

/// Hazard C11: a replica lags, and has no record of the leader's session yet.
pub(super) async fn an_absent_session_has_not_ended() -> bool {
    let store = MemoryCas::new();
    sleep(5.0).await;
    let (owner, challenger) = (Host::new(&store).await, Host::new(&store).await);
    owner.lead("e", 1).await;
    sleep(1.0).await;
    challenger.client.lag_next_read("s/", seconds(3.0));
    let entered = challenger.enter("e", 2).await.unwrap();
    matches!(entered, Entered::Leads(_)) && owner.is_open()
}

/// Rule 3: the head recovers while its challenger removes it.
pub(super) async fn a_session_is_ended_before_its_slot_goes() -> bool {
    let store = MemoryCas::new();
    let (first, owner, challenger) =
        (Host::new(&store).await, Host::new(&store).await, Host::new(&store).await);
    first.lead("e", 1).await;
    owner.queue("e", 2).await;
    challenger.queue("e", 3).await;
    let _alive = challenger.keep_alive();
    first.leave("e", 1).await;
    // The owner is at the head now, and does not know it: it is cut off.
    let waiting = challenger.wait("e", 3);
    sleep(10.5).await;
    let ending = challenger.client.hold_next(Request::Swap, "s/");
    let removing = challenger.client.hold_next(Request::Swap, "e/");
    tokio::select! {
        () = ending.arrived() => {}
        () = removing.arrived() => {}
    }
    owner.beat().await.unwrap();
    owner.wait("e", 2).await.unwrap().unwrap();
    ending.execute();
    removing.execute();
    let _alive = owner.keep_alive();
    let won = tokio::time::timeout(TTL / 2, waiting).await;
    won.is_ok_and(|won| won.unwrap().is_ok()) && owner.is_open()
}

/// Rule 4: the head is silent, and its window still open.
pub(super) async fn a_silent_session_is_not_removed() -> bool {
    let store = MemoryCas::new();
    let (owner, challenger) = (Host::new(&store).await, Host::new(&store).await);
    owner.lead("e", 1).await;
    is_taken_over_early(&owner, &challenger).await
}

/// Whether an enter that is carried out after its withdrawal leaves a slot under a session that lives on.
async fn leaves_a_late_slot(store: &MemoryCas) -> bool {
    let host = Host::new(store).await;
    let held = host.client.hold_next(Request::Swap, "e/");
    let entering = tokio::time::timeout(seconds(1.0), host.enter("e", 2));
    let given_up = entering.await;
    assert!(given_up.is_err(), "{given_up:?}");
    host.leave("e", 2).await;
    held.execute();
    host.beat().await.unwrap();
    stored(store, "e").queue.iter().any(|slot| slot.nonce.0 == 2)
}

/// Hazards C6, C12: an enter is carried out after its withdrawal.
pub(super) async fn a_withdrawal_fences_a_late_enter() -> bool {
    let store = MemoryCas::new();
    Host::new(&store).await.lead("e", 1).await;
    leaves_a_late_slot(&store).await
}

/// Hazards C6, C12: the same in an election that has no record yet.
pub(super) async fn a_withdrawal_creates_an_absent_record() -> bool {
    leaves_a_late_slot(&MemoryCas::new()).await
}

/// Hazard C12: a replica that lags does not show the slot that an enter has made, whose answer was lost.
pub(super) async fn a_read_concludes_no_withdrawal() -> bool {
    let store = MemoryCas::new();
    let (other, host) = (Host::new(&store).await, Host::new(&store).await);
    other.lead("e", 1).await;
    sleep(5.0).await;
    host.client.lose_next_answer(Request::Swap, "e/");
    host.enter("e", 2).await.unwrap_err();
    host.client.lag_next_read("e/", seconds(3.0));
    host.leave("e", 2).await;
    stored(&store, "e").queue.iter().any(|slot| slot.nonce.0 == 2)
}

fn store_with_epochs() -> MemoryCas {
    let epochs = MemoryEpochs::Known;
    MemoryCas::with_options(MemoryCasOptions { epochs, hints: true, ..MemoryCasOptions::default() })
}

/// Hazard C5: a failover loses a takeover.
pub(super) async fn a_new_epoch_ends_sessions() -> bool {
    let store = store_with_epochs();
    let (owner, challenger) = (Host::new(&store).await, Host::new(&store).await);
    owner.lead("e", 1).await;
    challenger.queue("e", 2).await;
    let waiting = challenger.wait("e", 2);
    sleep(10.0).await;
    challenger.beat().await.unwrap();
    // Two writes: the session is ended, and its slot removed.
    waiting.await.unwrap().unwrap();
    store.fail_over(2);
    assert_eq!(stored(&store, "e").queue.len(), 2, "the takeover is lost");
    let beaten = owner.beat().await;
    if let Err(error) = beaten {
        assert_eq!(error.kind(), BackendErrorKind::SessionGone);
        return false;
    }
    // Both sessions go on.
    let waiting = owner.wait("e", 1);
    while !waiting.is_finished() {
        sleep(2.0).await;
        let _ = (owner.beat().await, challenger.beat().await);
    }
    waiting.await.unwrap().unwrap();
    owner.is_open() && challenger.is_open()
}

/// Hazard C5: a failover loses a heartbeat.
pub(super) async fn a_new_epoch_restarts_timers() -> bool {
    let store = store_with_epochs();
    let (owner, mut challenger) = (Host::new(&store).await, Host::new(&store).await);
    owner.lead("e", 1).await;
    challenger.queue("e", 2).await;
    let waiting = challenger.wait("e", 2);
    // Between two looks of the challenger.
    sleep(3.0).await;
    challenger.client.set_network(Network::Partitioned);
    owner.beat().await.unwrap();
    store.fail_over(1);
    challenger.client.set_network(Network::Healthy);
    // The swap that would end the owner's session is refused; the challenger learns of the epoch, and its own session has ended.
    let mut outcome = waiting.await.unwrap();
    while outcome.as_ref().is_err_and(|error| error.is_retryable()) {
        outcome = challenger.wait("e", 2).await.unwrap();
    }
    assert_eq!(outcome.unwrap_err().kind(), BackendErrorKind::SessionGone);
    challenger.session.close().await.unwrap();
    challenger.reopen().await;
    challenger.queue("e", 3).await;
    let is_removed = stored(&store, "e").queue.iter().all(|slot| slot.nonce.0 != 1);
    is_removed && owner.is_open()
}

/// Hazard C5: a failover loses the entry of a leader, so that its election looks empty.
pub(super) async fn a_lost_enter_keeps_its_window() -> bool {
    let store = store_with_epochs();
    let owner = Host::new(&store).await;
    let lost = owner.lead("e", 1).await;
    store.fail_over(1);
    let other = Host::new(&store).await;
    let _alive = other.keep_alive();
    let token = match other.enter("e", 2).await.unwrap() {
        Entered::Leads(won) => won.token,
        // A campaign that does not wait is answered at once.
        _ => other.wait("e", 2).await.unwrap().unwrap().token,
    };
    assert!(token.get() > lost);
    let is_broken = owner.is_open();
    // It has settled for all elections, and for processes that start later.
    let later = Host::new(&store).await;
    assert!(later.lead("f", 3).await > lost);
    other.leave("e", 2).await;
    assert!(later.lead("e", 4).await > token.get());
    is_broken
}

/// Hazard C5: a failover loses the entry of a leader whose TTL is longer than the challenger's. Its session's record is left.
pub(super) async fn the_longest_ttl_is_waited_for() -> bool {
    let store = store_with_epochs();
    let owner = Host::with_ttl(&store, TTL * 3).await;
    owner.lead("e", 1).await;
    store.fail_over(1);
    let other = Host::new(&store).await;
    let _alive = other.keep_alive();
    other.queue("e", 2).await;
    other.wait("e", 2).await.unwrap().unwrap();
    owner.is_open()
}

/// Hazard C5: a database is upgraded by a dump, keeps its records and counts its failovers anew. The next failover has a number that was
/// used before.
pub(super) async fn an_epoch_that_begins_again_is_refused() -> bool {
    let store = store_with_epochs();
    (0..3).for_each(|_| store.fail_over(0));
    let first = Host::new(&store).await;
    let _alive = first.keep_alive();
    first.queue("e", 1).await;
    first.wait("e", 1).await.unwrap().unwrap();
    first.leave("e", 1).await;
    store.set_epoch(1);
    let before = store.records("");
    let owner = match Host::try_new(&store).await {
        Ok(owner) => owner,
        Err(error) => {
            let remedy = "epoch is 1, but candidates have led in its epoch 3: it was restored or upgraded, and counts failovers anew; \
                          stop all candidates, and raise its epoch above 3";
            assert!(error.is_permanent() && error.to_string().contains(remedy), "{error}");
            assert_eq!(store.records(""), before, "nothing was written");
            store.set_epoch(3);
            Host::new(&store).await;
            return false;
        }
    };
    let lost = owner.lead("e", 2).await;
    store.fail_over(1);
    let other = Host::new(&store).await;
    let token = other.lead("e", 3).await;
    owner.is_open() && token == lost
}

/// Hazard C15: a failover between the check of the epoch and the swap gives a token twice.
pub(super) async fn the_epoch_is_checked_inside_the_swap() -> bool {
    let store = store_with_epochs();
    let (one, other) = (Host::new(&store).await, Host::new(&store).await);
    assert_eq!(one.lead("e", 1).await, 1);
    one.leave("e", 1).await;
    let held = other.client.hold_next(Request::Swap, "e/");
    let session = std::sync::Arc::clone(&other.session);
    let entering = tokio::spawn(async move { session.enter(&request("e", 2)).await });
    held.arrived().await;
    let token = one.lead("e", 3).await;
    store.fail_over(1);
    held.execute();
    match entering.await.unwrap() {
        Ok(entered) => entered.token().unwrap().get() == token,
        Err(error) => {
            assert_eq!(error.kind(), BackendErrorKind::SessionGone);
            false
        }
    }
}

/// Hazard C2: versions are hashes of bodies, and a withdrawal restores an earlier body.
pub(super) async fn equal_bodies_are_an_aba() -> bool {
    let store = MemoryCas::with_options(MemoryCasOptions { etags: true, ..MemoryCasOptions::default() });
    Host::new(&store).await.lead("e", 1).await;
    leaves_a_late_slot(&store).await
}

/// Rule 10: a collection of garbage meets a living session.
pub(super) async fn garbage_is_timed() -> bool {
    let store = MemoryCas::new();
    let (owner, other) = (Host::new(&store).await, Host::new(&store).await);
    owner.lead("e", 1).await;
    for _ in 0..20 {
        sleep(1.0).await;
        owner.beat().await.unwrap_or_default();
        collect(&other.backend.shared, &other.clock).await.unwrap();
    }
    other.beat().await.unwrap_or_default();
    stored(&store, "e").queue.is_empty()
}

/// Hazard C10: a candidate that is being timed out wins by an election swap.
pub(super) async fn an_election_swap_extends_nothing() -> bool {
    let store = MemoryCas::new();
    let (owner, challenger) = (Host::new(&store).await, Host::new(&store).await);
    owner.lead("f", 1).await;
    challenger.queue("f", 2).await;
    let waiting = challenger.wait("f", 2);
    let _alive = challenger.keep_alive();
    // The last chance before the challenger ends the session.
    sleep(10.5).await;
    assert!(!owner.is_open());
    owner.lead("e", 3).await;
    assert!(!owner.is_open(), "it has won, and does not lead");
    owner.beat().await.unwrap();
    let won = tokio::time::timeout(TTL / 2, waiting).await;
    if won.is_err() {
        // The heartbeat was a swap of the session, and restarted the timer.
        return false;
    }
    let entered = challenger.enter("e", 4).await.unwrap();
    matches!(entered, Entered::Leads(_)) && owner.is_open()
}

/// Hazard C13: an earlier heartbeat, whose answer was lost, is found after a conflict.
pub(super) async fn an_earlier_beat_is_not_credited_later() -> bool {
    let store = MemoryCas::new();
    let (owner, challenger) = (Host::new(&store).await, Host::new(&store).await);
    owner.lead("e", 1).await;
    challenger.queue("e", 2).await;
    let waiting = challenger.wait("e", 2);
    let _alive = challenger.keep_alive();
    sleep(1.0).await;
    owner.client.lose_next_answer(Request::Swap, "s/");
    owner.beat().await.unwrap_err();
    sleep(7.0).await;
    owner.beat().await.unwrap();
    waiting.await.unwrap().unwrap();
    owner.is_open()
}

/// A virtual machine is resumed twice: two processes have the same session, and know the same version of it. The first heartbeat of one
/// ends the other.
pub(super) async fn two_copies_of_a_process_do_not_both_lead_on() -> bool {
    let backend = CasBackend::new(MemoryCas::new().client(1));
    let options = SessionOptions::new(TTL, Arc::new(SimClock::new()), DRIFT);
    let original = CasSession::open(&backend.shared, &options).await.unwrap();
    original.heartbeat().await.unwrap();
    let copies = [original.copy().await, original];
    let mut beats = [0; 2];
    for _ in 0..5 {
        for (copy, beats) in copies.iter().zip(&mut beats) {
            sleep(TTL.as_secs_f64() / 3.0).await;
            match copy.heartbeat().await {
                Ok(_) => *beats += 1,
                Err(error) => assert_eq!(error.kind(), BackendErrorKind::SessionGone, "{error}"),
            }
        }
    }
    beats != [5, 0]
}

/// Rule 4: a leader resigns.
pub(super) async fn a_new_head_has_a_new_token() -> bool {
    let store = MemoryCas::new();
    let (owner, next) = (Host::new(&store).await, Host::new(&store).await);
    let first = owner.lead("e", 1).await;
    next.queue("e", 2).await;
    owner.leave("e", 1).await;
    next.wait("e", 2).await.unwrap().unwrap().token.get() <= first
}

/// Rule 4: two slots of a session that has ended go at once.
pub(super) async fn the_token_rises_once() -> bool {
    let store = MemoryCas::new();
    let (owner, next) = (Host::new(&store).await, Host::new(&store).await);
    let first = owner.lead("e", 1).await;
    owner.queue("e", 2).await;
    next.queue("e", 3).await;
    let _alive = next.keep_alive();
    next.wait("e", 3).await.unwrap().unwrap().token.get() != first + 1
}
