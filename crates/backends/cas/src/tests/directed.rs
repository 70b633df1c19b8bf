//! Hazards that no rule by itself prevents.

use std::time::Duration;

use tenure_core::spi::BackendErrorKind;

use crate::{
    directed::host::{DRIFT, Host, TTL, election, seconds, sleep, stored},
    garbage::collect,
    memory::{MemoryCas, MemoryCasOptions},
    record::{Session, State},
};

/// Hazard C1: a time of day that is wrong, or is set, takes nothing from a leader and keeps nothing for a dead one.
#[tokio::test(start_paused = true)]
async fn the_time_of_day_decides_nothing() {
    let store = MemoryCas::new();
    let (owner, challenger) = (Host::new(&store).await, Host::new(&store).await);
    owner.clock.jump_wall(Duration::from_secs(86_400));
    owner.lead("e", 1).await;
    challenger.queue("e", 2).await;
    let waiting = challenger.wait("e", 2);
    let _alive = (owner.keep_alive(), challenger.keep_alive());
    challenger.clock.jump_wall(Duration::from_secs(3_600));
    sleep(60.0).await;
    assert!(!waiting.is_finished());
    _alive.0.abort();
    sleep(TTL.as_secs_f64() * 1.5).await;
    assert!(waiting.is_finished());
}

/// Hazard C4: a client library repeats a swap, so that one's own success comes back as a conflict.
#[tokio::test(start_paused = true)]
async fn ones_own_success_comes_back_as_a_conflict() {
    let store = MemoryCas::new();
    let host = Host::new(&store).await;
    host.client.repeat_next_swap("s/");
    host.beat().await.unwrap();
    host.client.repeat_next_swap("e/");
    host.lead("e", 1).await;
    assert_eq!(stored(&store, "e").queue.len(), 1);
    host.client.repeat_next_swap("e/");
    host.leave("e", 1).await;
    assert!(stored(&store, "e").queue.is_empty());
    // Opening a session.
    host.client.repeat_next_swap("s/");
    let mut again = host;
    again.reopen().await;
    again.beat().await.unwrap();
    again.client.repeat_next_swap("s/");
    again.session.close().await.unwrap();
}

/// Hazard C8: a session that another candidate has ended is not renewed.
#[tokio::test(start_paused = true)]
async fn an_ended_session_is_never_renewed() {
    let store = MemoryCas::new();
    let (owner, challenger) = (Host::new(&store).await, Host::new(&store).await);
    owner.lead("e", 1).await;
    challenger.queue("e", 2).await;
    let _alive = challenger.keep_alive();
    challenger.wait("e", 2).await.unwrap().unwrap();
    for _ in 0..3 {
        assert_eq!(owner.beat().await.unwrap_err().kind(), BackendErrorKind::SessionGone);
    }
    // Also after the record was deleted.
    for _ in 0..2 {
        collect(&challenger.backend.shared, &challenger.clock).await.unwrap();
    }
    assert!(store.records(&format!("s/{}", owner.session.id())).is_empty());
    assert_eq!(owner.beat().await.unwrap_err().kind(), BackendErrorKind::SessionGone);
    owner.session.close().await.unwrap();
    assert_eq!(stored(&store, "e").queue.len(), 1);
}

/// Hazard C3: a server that accepts the condition of a write, and ignores it: always, or for a record that does not exist.
#[tokio::test(start_paused = true)]
async fn a_store_that_ignores_conditions_is_refused() {
    use std::sync::Arc;

    use tenure_core::{
        SimClock,
        spi::{Backend as _, SessionOptions},
    };

    let always = MemoryCasOptions { ignores_conditions: true, ..MemoryCasOptions::default() };
    let if_missing = MemoryCasOptions { creates_missing: true, ..MemoryCasOptions::default() };
    for options in [always, if_missing] {
        let backend = crate::CasBackend::new(MemoryCas::with_options(options).client(1));
        let options = SessionOptions::new(TTL, Arc::new(SimClock::new()), DRIFT);
        let error = backend.open_session(&options).await.unwrap_err();
        assert!(error.is_permanent() && error.to_string().contains("ignores the condition"), "{error}");
        assert!(backend.candidates(&election("e")).await.unwrap().is_empty());
    }
}

/// Hazard C9: a store that removes a record by itself takes leadership away for good. Until its next heartbeat the leader does not know that,
/// so that such a store is none for tenure.
#[tokio::test(start_paused = true)]
async fn a_record_that_the_store_removes_ends_its_session() {
    let store = MemoryCas::new();
    let (owner, challenger) = (Host::new(&store).await, Host::new(&store).await);
    owner.lead("e", 1).await;
    challenger.queue("e", 2).await;
    store.put(&format!("s/{}", owner.session.id()), None);
    assert_eq!(owner.beat().await.unwrap_err().kind(), BackendErrorKind::SessionGone);
    let won = challenger.wait("e", 2).await.unwrap().unwrap();
    assert_eq!(won.token.get(), 2);
    let queue = stored(&store, "e").queue;
    assert!(queue.len() == 1 && queue[0].nonce.0 == 2, "{queue:?}");
    // It does not create its record again, and neither enters nor leads under it.
    assert_eq!(owner.beat().await.unwrap_err().kind(), BackendErrorKind::SessionGone);
    assert_eq!(owner.wait("e", 1).await.unwrap().unwrap_err().kind(), BackendErrorKind::EntryGone);
    let record = store.records(&format!("s/{}", owner.session.id())).remove(0);
    assert_eq!(Session::decode(&record.key, &record.body).unwrap().state, State::Ended);
}

/// Hazard C7: hints that stop cost time, and nothing else.
#[tokio::test(start_paused = true)]
async fn nothing_is_missed_without_hints() {
    let store = MemoryCas::new();
    let (leader, next) = (Host::new(&store).await, Host::new(&store).await);
    leader.lead("e", 1).await;
    next.queue("e", 2).await;
    let waiting = next.wait("e", 2);
    let _alive = (leader.keep_alive(), next.keep_alive());
    sleep(1.0).await;
    // The hint of the handover is lost.
    store.stop_hints();
    leader.leave("e", 1).await;
    let won = tokio::time::timeout(seconds(2.0), waiting).await;
    assert!(won.unwrap().unwrap().is_ok());
}
