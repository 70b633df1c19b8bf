//! What the recipe does, apart from its safety rules.

use std::{
    future::poll_fn,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering::SeqCst},
    },
    time::Duration,
};

use futures::{StreamExt as _, future::try_join_all};
use tenure_core::{
    SimClock,
    spi::{Backend as _, BackendErrorKind, Entered, EntryEvent, QueuePosition, SessionOptions},
};
use tokio::{sync::mpsc, time::Instant};

use crate::{
    CasBackend, CasSettings, EpochState,
    directed::host::{DRIFT, Host, TTL, election, request, seconds, sleep, stored},
    garbage::collect,
    memory::{CasFaults, MemoryCas, MemoryCasOptions, MemoryEpochs, Request},
    record::{Election, MAX_SLOTS, Session},
    store::CasStore as _,
};

/// Rule 2: a head and five dead candidates behind it cost less than two TTLs, not six.
#[tokio::test(start_paused = true)]
async fn many_dead_candidates_are_timed_together() {
    let store = MemoryCas::new();
    let mut dead = Vec::new();
    for nonce in 1..=6 {
        let host = Host::new(&store).await;
        let _ = host.enter("e", nonce).await.unwrap();
        dead.push(host);
    }
    let last = Host::new(&store).await;
    last.queue("e", 7).await;
    let _alive = last.keep_alive();
    let began = Instant::now();
    let won = last.wait("e", 7).await.unwrap().unwrap();
    assert!(began.elapsed() < TTL * 2, "{:?}", began.elapsed());
    assert!(dead.iter().all(|host| !host.is_open()));
    assert_eq!(stored(&store, "e").queue.len(), 1);
    assert!(won.token.get() > 1);
}

/// A takeover comes soon after the deadline, whenever the leader's last heartbeat was.
#[tokio::test(start_paused = true)]
async fn a_takeover_takes_little_more_than_a_ttl() {
    for hints in [true, false] {
        let store = MemoryCas::with_options(MemoryCasOptions { hints, ..MemoryCasOptions::default() });
        for last_beat in [1.0, 2.4, 2.6, 7.0] {
            let (owner, challenger) = (Host::new(&store).await, Host::new(&store).await);
            let name = format!("e{last_beat}");
            owner.lead(&name, 1).await;
            challenger.queue(&name, 2).await;
            let _alive = challenger.keep_alive();
            let waiting = challenger.wait(&name, 2);
            sleep(last_beat).await;
            owner.beat().await.unwrap();
            let began = Instant::now();
            waiting.await.unwrap().unwrap();
            let most = if hints { TTL.mul_f64(1.0 + DRIFT) } else { TTL.mul_f64(1.0 + DRIFT) + TTL / 4 };
            assert!(began.elapsed() <= most + seconds(0.2), "{hints}, {last_beat}: {:?}", began.elapsed());
        }
    }
}

/// Rule 8: fifty candidates enter at once, over a network with latency, and each has one slot.
#[tokio::test(start_paused = true)]
async fn fifty_candidates_enter_at_once() {
    let store = MemoryCas::new();
    let mut hosts = Vec::new();
    for _ in 0..50 {
        let host = Host::new(&store).await;
        let latency = Duration::from_millis(2);
        host.client.set_faults(CasFaults { latency, ..CasFaults::default() });
        hosts.push(host);
    }
    let before = store.requests();
    let requests: Vec<_> = (1..=50).map(|nonce| request("e", nonce)).collect();
    let entering = hosts.iter().zip(&requests).map(|(host, request)| host.session.enter(request));
    let entered = tokio::time::timeout(TTL / 2, try_join_all(entering)).await.unwrap().unwrap();
    assert_eq!(entered.iter().filter(|entered| matches!(entered, Entered::Leads(_))).count(), 1);
    assert_eq!(stored(&store, "e").queue.len(), 50);
    assert!(store.requests() - before < 3_000, "{} requests", store.requests() - before);
}

/// Rule 8: the engine gives a call up and makes another one for the same request. The pauses go on where they were.
#[tokio::test(start_paused = true)]
async fn conflicts_are_counted_across_calls() {
    fastrand::seed(8);
    let store = MemoryCas::new();
    let host = Host::new(&store).await;
    let sent = Arc::new(AtomicUsize::new(0));
    // Somebody else is faster each time.
    let (client, rival, counter) = (host.client.clone(), store.clone(), Arc::clone(&sent));
    let mut held = client.hold_next(Request::Swap, "e/");
    let rivalry = tokio::spawn(async move {
        loop {
            held.arrived().await;
            rival.put("e/e", Some(Election::default().encode()));
            let next = client.hold_next(Request::Swap, "e/");
            std::mem::replace(&mut held, next).execute();
            counter.fetch_add(1, SeqCst);
        }
    });
    let give_up_early = async |nonce| {
        let before = sent.load(SeqCst);
        tokio::time::timeout(seconds(0.1), host.enter("e", nonce)).await.unwrap_err();
        // Until the rival has executed a swap that was given up.
        sleep(0.001).await;
        sent.load(SeqCst) - before
    };
    let mut swaps = 0;
    for _ in 0..30 {
        swaps += give_up_early(1).await;
    }
    // The tenth pause is half a second on average: one swap a call. A call that began again would send four or five.
    assert!((30..=60).contains(&swaps), "{swaps}");
    // Another request has met no conflict.
    let swaps = give_up_early(2).await;
    assert!(swaps >= 3, "{swaps}");
    rivalry.abort();
}

/// A leader knows the record from which it removes its slot, unless that has just changed.
#[tokio::test(start_paused = true)]
async fn a_leader_resigns_with_one_request() {
    let store = MemoryCas::with_options(MemoryCasOptions { hints: true, ..MemoryCasOptions::default() });
    let (leader, next) = (Host::new(&store).await, Host::new(&store).await);
    let requests_to_leave = async || {
        let before = store.requests();
        leader.leave("e", 1).await;
        assert!(stored(&store, "e").queue.iter().all(|slot| slot.session.to_string() != leader.session.id()));
        store.requests() - before
    };
    leader.lead("e", 1).await;
    assert_eq!(requests_to_leave().await, 1);
    // Others enter. What the leader has not seen is a conflict, after which the record is read.
    leader.lead("e", 1).await;
    next.queue("e", 2).await;
    assert_eq!(requests_to_leave().await, 3);
    next.leave("e", 2).await;
    // It sees them while it watches for resign requests.
    let Entered::Leads(won) = leader.enter("e", 1).await.unwrap() else { panic!("nobody is ahead") };
    let mut watcher = leader.session.entry_watcher();
    watcher.add(1, &won.entry);
    let watching = tokio::spawn(async move { poll_fn(|context| watcher.poll_next(context)).await });
    next.queue("e", 2).await;
    sleep(0.1).await;
    assert_eq!(requests_to_leave().await, 1);
    assert_eq!(watching.await.unwrap().unwrap(), (1, EntryEvent::Deleted));
}

/// Rule 8.
#[tokio::test(start_paused = true)]
async fn a_full_election_is_refused_in_words() {
    let store = MemoryCas::new();
    let host = Host::new(&store).await;
    for nonce in 1..=MAX_SLOTS as u128 {
        host.enter("e", nonce).await.unwrap();
    }
    let error = host.enter("e", 501).await.unwrap_err();
    assert!(error.is_permanent() && error.to_string().contains("500 candidates are in its queue"), "{error}");
    // A withdrawal is not refused.
    host.leave("e", 501).await;
    host.leave("e", 7).await;
    host.enter("e", 502).await.unwrap();
}

/// Rule 9: a leader that has stood still for a TTL is shown as a vacancy, and no longer once it is back.
#[tokio::test(start_paused = true)]
async fn an_observer_sees_that_a_leader_has_died() {
    let store = MemoryCas::new();
    let (owner, observer) = (Host::new(&store).await, Host::new(&store).await);
    // Replicas alternate.
    observer.client.set_faults(CasFaults { lag: seconds(4.0), ..CasFaults::default() });
    let mut leaders = observer.backend.observe(&election("e")).await.unwrap();
    assert_eq!(leaders.next().await.unwrap().unwrap(), None);
    owner.lead("e", 1).await;
    let leader = leaders.next().await.unwrap().unwrap().unwrap();
    assert_eq!((leader.id.as_str(), leader.token.unwrap().get()), ("host", 1));
    assert_eq!(leader.value, b"value");
    let alive = owner.keep_alive();
    let silence = tokio::time::timeout(TTL * 5, leaders.next()).await;
    assert!(silence.is_err(), "{silence:?}");
    alive.abort();
    let died = Instant::now();
    assert_eq!(leaders.next().await.unwrap().unwrap(), None);
    assert!(died.elapsed() < TTL * 2, "{:?}", died.elapsed());
    assert_eq!(observer.backend.leader(&election("e")).await.unwrap(), None);
    assert!(observer.backend.candidates(&election("e")).await.unwrap().is_empty());
    owner.beat().await.unwrap();
    assert_eq!(leaders.next().await.unwrap().unwrap().unwrap().id, "host");
}

/// Rule 10: what a dead session has left is removed, by an elector that takes part in another election.
#[tokio::test(start_paused = true)]
async fn garbage_is_collected() {
    let store = MemoryCas::new();
    let (dead, other) = (Host::new(&store).await, Host::new(&store).await);
    dead.lead("e", 1).await;
    let _alive = other.keep_alive();
    assert_eq!(store.records("s/").len(), 2);
    // By the task of the other's session.
    sleep(4.0 * 900.0).await;
    assert_eq!(store.records("s/").len(), 1, "the record of the living session");
    assert!(stored(&store, "e").queue.is_empty());
    assert_eq!(stored(&store, "e").token, 1, "the token is kept");
}

/// Rule 10: what tenure did not write is left alone.
#[tokio::test(start_paused = true)]
async fn garbage_collection_spares_what_is_foreign() {
    let store = MemoryCas::new();
    let host = Host::new(&store).await;
    let foreign = [("s/notes", "x"), ("e/notes", "10.0.0.1"), ("s/0123456789abcdef0123456789abcdef", "{}")];
    for (key, body) in foreign {
        store.put(key, Some(body.into()));
    }
    for _ in 0..3 {
        sleep(TTL.as_secs_f64() * 2.0).await;
        host.beat().await.unwrap_or_default();
        collect(&host.backend.shared, &host.clock).await.unwrap();
    }
    for (key, body) in foreign {
        assert_eq!(store.records(key)[0].body, body.as_bytes());
    }
}

/// Records that tenure did not write are an error in words, in every call.
#[tokio::test(start_paused = true)]
async fn a_foreign_record_is_an_error_in_words() {
    let store = MemoryCas::new();
    let host = Host::new(&store).await;
    store.put("e/e", Some(b"10.0.0.1".to_vec()));
    let name = election("e");
    let errors = [
        host.enter("e", 1).await.unwrap_err(),
        host.backend.candidates(&name).await.unwrap_err(),
        host.backend.leader(&name).await.unwrap_err(),
        host.backend.request_resign(&name).await.unwrap_err(),
        host.session.leave(&request("e", 1), None).await.unwrap_err(),
    ];
    for error in errors {
        assert_eq!(error.kind(), BackendErrorKind::Invalid);
        assert!(
            error.to_string().starts_with("cannot use the record \"e/e\": tenure did not write it"),
            "{error}"
        );
    }
    assert_eq!(store.records("e/e")[0].body, b"10.0.0.1");
    assert!(host.backend.elections().await.unwrap().is_empty());
    // A session record that nobody can read ends nobody's session.
    let owner = Host::new(&store).await;
    owner.lead("f", 1).await;
    store.put(&format!("s/{}", owner.session.id()), Some(b"?".to_vec()));
    host.enter("f", 2).await.unwrap();
    let error = host.wait("f", 2).await.unwrap().unwrap_err();
    assert!(error.is_retryable() && error.to_string().contains("tenure did not write it"), "{error}");
    assert_eq!(stored(&store, "f").queue.len(), 2);
}

/// Rule 7.
#[tokio::test(start_paused = true)]
async fn an_unknown_epoch_is_refused_unless_it_is_allowed() {
    let options = MemoryCasOptions { epochs: MemoryEpochs::Unknown, ..MemoryCasOptions::default() };
    let store = MemoryCas::with_options(options);
    assert_eq!(store.client(1).epoch().await.unwrap(), EpochState::Unknown);
    let options = SessionOptions::new(TTL, Arc::new(SimClock::new()), DRIFT);
    let error = CasBackend::new(store.client(1)).open_session(&options).await.unwrap_err();
    assert!(error.is_permanent() && error.to_string().contains("lose acknowledged writes"), "{error}");
    let settings = CasSettings::new().with_unknown_epochs(true);
    let backend = CasBackend::with_settings(store.client(1), settings);
    let session = backend.open_session(&options).await.unwrap();
    assert!(matches!(session.enter(&request("e", 1)).await.unwrap(), Entered::Leads(_)));
}

/// Rule 7: an earlier primary that answers again is not followed, and neither is a store that counts its failovers anew.
#[tokio::test(start_paused = true)]
async fn a_lower_epoch_is_refused() {
    let epochs = MemoryEpochs::Known;
    let store = MemoryCas::with_options(MemoryCasOptions { epochs, ..MemoryCasOptions::default() });
    store.fail_over(0);
    let host = Host::new(&store).await;
    let not_settled = store.records("store").pop();
    host.queue("e", 1).await;
    assert_eq!(host.wait("e", 1).await.unwrap().unwrap().token.get(), 1 << 40);
    let settled = store.records("store").pop();
    let client = crate::client::Client::new(store.client(2), TTL, false);
    assert_eq!(client.refresh_epoch().await.unwrap().0, 1);
    store.set_epoch(0);
    // An earlier primary does not know what was written in the later epoch.
    for (record, is_permanent, remedy) in
        [(not_settled, false, "restart the processes"), (settled, true, "raise its epoch above 1")]
    {
        store.put("store", record.map(|record| record.body));
        // Nothing is written, and each call is answered.
        let before = store.records("");
        for error in [
            host.beat().await.unwrap_err(),
            host.enter("f", 2).await.unwrap_err(),
            host.session.leave(&request("e", 1), None).await.unwrap_err(),
            host.session.close().await.unwrap_err(),
        ] {
            assert!(error.to_string().contains(remedy), "{error}");
        }
        let error = client.refresh_epoch().await.unwrap_err();
        assert!(error.is_permanent() == is_permanent && error.to_string().contains(remedy), "{error}");
        assert_eq!(store.records(""), before);
    }
    store.set_epoch(1);
    host.beat().await.unwrap();
    store.set_epoch(u64::MAX);
    let error = client.refresh_epoch().await.unwrap_err();
    assert!(error.is_permanent() && error.to_string().contains("too large"), "{error}");
}

/// Rule 7: the store fails over, and another process settles the new epoch, between the two requests that compare them.
#[tokio::test(start_paused = true)]
async fn a_failover_while_the_epoch_is_read_is_no_lower_epoch() {
    let epochs = MemoryEpochs::Known;
    let store = MemoryCas::with_options(MemoryCasOptions { epochs, ..MemoryCasOptions::default() });
    let client = store.client(2);
    let held = client.hold_next(Request::Read, "store");
    let client = crate::client::Client::new(client, TTL * 10, false);
    let reading = tokio::spawn(async move { client.refresh_epoch().await });
    held.arrived().await;
    store.fail_over(0);
    let other = Host::new(&store).await;
    other.queue("e", 1).await;
    let _alive = other.keep_alive();
    other.wait("e", 1).await.unwrap().unwrap();
    held.execute();
    assert_eq!(reading.await.unwrap().unwrap().0, 1);
}

/// Closing a session ends it and removes its slots, also those of requests whose answers were lost.
#[tokio::test(start_paused = true)]
async fn closing_a_session_removes_all_of_it() {
    let store = MemoryCas::new();
    let host = Host::new(&store).await;
    for n in 0..40 {
        host.enter(&format!("e{n}"), n).await.unwrap();
    }
    host.client.lose_next_answer(Request::Swap, "e/");
    host.enter("lost", 50).await.unwrap_err();
    // Rule 10: its record stays if it cannot be deleted at once, and a collection of garbage deletes it.
    let _held = host.client.hold_next(Request::Delete, "s/");
    host.session.close().await.unwrap();
    let all_ended = || {
        let records = store.records("s/");
        records.iter().all(|record| {
            Session::decode(&record.key, &record.body).unwrap().state == crate::record::State::Ended
        })
    };
    assert!(all_ended() && store.records("s/").len() == 1);
    assert!((0..40).all(|n| stored(&store, &format!("e{n}")).queue.is_empty()));
    assert!(stored(&store, "lost").queue.is_empty());
    for _ in 0..2 {
        collect(&host.backend.shared, &host.clock).await.unwrap();
    }
    assert!(store.records("s/").is_empty());
}

/// Processes that live for less than the interval of the collections leave no records, however many there are.
#[tokio::test(start_paused = true)]
async fn a_closed_session_leaves_no_record() {
    let store = MemoryCas::new();
    for n in 1..20 {
        let host = Host::new(&store).await;
        host.lead("e", n).await;
        host.session.close().await.unwrap();
        assert!(store.records("s/").is_empty());
        host.session.close().await.unwrap();
        assert!(store.records("s/").is_empty());
    }
    assert!(stored(&store, "e").queue.is_empty());
}

/// A candidate behind others asks for few reads, and tells the engine whether it is next.
#[tokio::test(start_paused = true)]
async fn a_waiting_candidate_reads_little() {
    let store = MemoryCas::new();
    let (leader, next, host) = (Host::new(&store).await, Host::new(&store).await, Host::new(&store).await);
    leader.lead("e", 1).await;
    let _alive = (leader.keep_alive(), next.keep_alive(), host.keep_alive());
    next.queue("e", 2).await;
    host.queue("e", 3).await;
    let (sent, mut is_next) = mpsc::unbounded_channel();
    let (session, request) = (Arc::clone(&host.session), request("e", 3));
    let waiting = tokio::spawn(async move {
        let position = QueuePosition::new(move |is_next| sent.send(is_next).unwrap_or_default());
        session.wait_turn(&request, None, &position).await
    });
    assert_eq!(is_next.recv().await, Some(false));
    let before = [host.client.reads_of("e/"), host.client.reads_of("s/")];
    sleep(100.0).await;
    // The record is read about once a second and when it is time to look at the predecessor's session: at each of its heartbeats, and
    // every quarter of a TTL.
    let reads = [host.client.reads_of("e/") - before[0], host.client.reads_of("s/") - before[1]];
    assert!((60..=180).contains(&reads[0]) && (30..=75).contains(&reads[1]), "{reads:?}");
    next.leave("e", 2).await;
    assert_eq!(is_next.recv().await, Some(true));
    assert!(!waiting.is_finished());
    leader.leave("e", 1).await;
    waiting.await.unwrap().unwrap();
}

/// Several leaders resign one after the other: each successor knows in time that it is the next one.
#[tokio::test(start_paused = true)]
async fn a_candidate_that_becomes_the_next_one_learns_of_it_soon() {
    let store = MemoryCas::new();
    let mut hosts = Vec::new();
    for nonce in 1..=5 {
        let host = Host::new(&store).await;
        match nonce {
            1 => drop(host.lead("e", nonce).await),
            _ => host.queue("e", nonce).await,
        }
        hosts.push((nonce, host));
    }
    let _alive: Vec<_> = hosts.iter().map(|(_, host)| host.keep_alive()).collect();
    let waiting: Vec<_> = hosts[1..].iter().map(|(nonce, host)| host.wait("e", *nonce)).collect();
    sleep(5.0).await;
    for (waiting, (nonce, leader)) in waiting.into_iter().zip(&hosts) {
        let began = Instant::now();
        leader.leave("e", *nonce).await;
        waiting.await.unwrap().unwrap();
        assert!(began.elapsed() < seconds(0.1), "after {nonce}: {:?}", began.elapsed());
        sleep(0.15).await;
    }
}
