//! Findings of reviews, each with the test that shows it.

use std::sync::{
    Arc,
    atomic::{AtomicUsize, Ordering::SeqCst},
};

use async_trait::async_trait;
use futures::{
    StreamExt as _,
    future::poll_fn,
    stream::{self, BoxStream},
};
use tenure_core::{
    SimClock,
    spi::{
        Backend as _, BackendError, BackendErrorKind, BackendSession as _, EntryEvent, EntryRequest,
        SessionOptions,
    },
};
use tokio::time::Instant;

use crate::{
    CasBackend,
    directed::host::{DRIFT, Host, TTL, election, request, seconds, sleep, stored},
    garbage::collect,
    memory::{CasFaults, MemoryCas, MemoryCasClient, MemoryCasOptions, MemoryEpochs, Network, Request},
    record::{MAX_SLOTS, Session},
    session::CasSession,
    store::{CasStore, Epoch, EpochState, Freshness, Record, Swap, Version},
};

/// A replica that crashes again and again has filled the queue behind a healthy leader: newcomers are not refused for good.
#[tokio::test(start_paused = true)]
async fn a_queue_that_dead_candidates_have_filled_is_emptied() {
    let store = MemoryCas::new();
    let (leader, crashed, newcomer) =
        (Host::new(&store).await, Host::new(&store).await, Host::new(&store).await);
    leader.lead("e", 1).await;
    let _alive = (leader.keep_alive(), newcomer.keep_alive());
    for nonce in 2..=MAX_SLOTS as u128 {
        crashed.queue("e", nonce).await;
    }
    let began = Instant::now();
    let mut entered = newcomer.enter("e", 1000).await;
    while let Err(error) = &entered {
        assert!(error.is_retryable() && error.to_string().contains("may be dead"), "{error}");
        assert!(began.elapsed() < TTL * 2, "{error}");
        sleep(0.5).await;
        entered = newcomer.enter("e", 1000).await;
    }
    assert!(entered.unwrap().token().is_none(), "the leader still leads");
    assert_eq!(stored(&store, "e").queue.len(), 2);
    assert!(!crashed.is_open());
}

/// Slots go in the same collection that ends their session.
#[tokio::test(start_paused = true)]
async fn garbage_goes_in_the_collection_that_ends_it() {
    let store = MemoryCas::new();
    let (dead, other) = (Host::new(&store).await, Host::new(&store).await);
    dead.lead("e", 1).await;
    let _alive = other.keep_alive();
    collect(&other.backend.shared, &other.clock).await.unwrap();
    assert_eq!(stored(&store, "e").queue.len(), 1, "it may live");
    sleep(TTL.as_secs_f64() * 1.2).await;
    collect(&other.backend.shared, &other.clock).await.unwrap();
    assert!(stored(&store, "e").queue.is_empty());
}

/// A leader and a candidate behind it, in a store without hints whose replica lags by 100 s from now on.
async fn behind_a_replica_that_stands_still() -> (Host, Host) {
    let store = MemoryCas::with_options(MemoryCasOptions::default());
    let (leader, host) = (Host::new(&store).await, Host::new(&store).await);
    leader.lead("e", 1).await;
    host.queue("e", 2).await;
    let _alive = (leader.keep_alive(), host.keep_alive());
    sleep(105.0).await;
    _alive.0.abort();
    _alive.1.abort();
    let faults = CasFaults { lag: seconds(100.0), lag_is_exact: true, ..CasFaults::default() };
    leader.client.set_faults(faults);
    host.client.set_faults(faults);
    (leader, host)
}

#[tokio::test(start_paused = true)]
async fn a_replica_that_stands_still_delays_a_handover_by_a_quarter_of_a_ttl() {
    let (leader, host) = behind_a_replica_that_stands_still().await;
    let _alive = (leader.keep_alive(), host.keep_alive());
    let waiting = host.wait("e", 2);
    sleep(1.0).await;
    leader.leave("e", 1).await;
    let left = Instant::now();
    waiting.await.unwrap().unwrap();
    assert!(left.elapsed() <= TTL / 4, "{:?}", left.elapsed());
}

#[tokio::test(start_paused = true)]
async fn a_replica_that_stands_still_delays_a_resign_request_by_a_ttl() {
    let (leader, host) = behind_a_replica_that_stands_still().await;
    let mut watcher = leader.session.entry_watcher();
    let entry = leader.enter("e", 1).await.unwrap().entry().unwrap().clone();
    watcher.add(7, &entry);
    let alive = leader.keep_alive();
    let nothing = tokio::time::timeout(seconds(1.0), poll_fn(|context| watcher.poll_next(context))).await;
    nothing.unwrap_err();
    host.backend.request_resign(&election("e")).await.unwrap().unwrap();
    let asked = Instant::now();
    let event = poll_fn(|context| watcher.poll_next(context)).await.unwrap();
    assert_eq!(event, (7, EntryEvent::ResignRequested));
    assert!(asked.elapsed() <= TTL, "{:?}", asked.elapsed());
    alive.abort();
}

#[tokio::test(start_paused = true)]
async fn a_replica_that_stands_still_hides_no_dead_leader() {
    let (leader, host) = behind_a_replica_that_stands_still().await;
    let mut leaders = host.backend.observe(&election("e")).await.unwrap();
    assert!(leaders.next().await.unwrap().unwrap().is_some());
    let alive = leader.keep_alive();
    let silence = tokio::time::timeout(TTL * 3, leaders.next()).await;
    assert!(silence.is_err(), "{silence:?}");
    alive.abort();
    let died = Instant::now();
    assert_eq!(leaders.next().await.unwrap().unwrap(), None);
    assert!(died.elapsed() <= TTL * 2, "{:?}", died.elapsed());
}

/// A store whose hints are made by a test.
#[derive(Debug)]
struct Hinting {
    client: MemoryCasClient,
    /// The streams that were asked for.
    streams: Arc<AtomicUsize>,
    hints: fn() -> BoxStream<'static, ()>,
}

#[async_trait]
impl CasStore for Hinting {
    async fn read(&self, key: &str, freshness: Freshness) -> Result<Option<Record>, BackendError> {
        self.client.read(key, freshness).await
    }
    async fn swap(
        &self,
        key: &str,
        expected: Option<&Version>,
        epoch: Epoch,
        body: &[u8],
    ) -> Result<Swap, BackendError> {
        self.client.swap(key, expected, epoch, body).await
    }
    async fn delete(&self, key: &str, expected: &Version) -> Result<bool, BackendError> {
        self.client.delete(key, expected).await
    }
    async fn list(&self, prefix: &str) -> Result<Vec<Record>, BackendError> {
        self.client.list(prefix).await
    }
    fn changes(&self, key: &str) -> Option<BoxStream<'static, ()>> {
        if !key.starts_with("e/") {
            return None;
        }
        self.streams.fetch_add(1, SeqCst);
        Some((self.hints)())
    }
    async fn epoch(&self) -> Result<EpochState, BackendError> {
        self.client.epoch().await
    }
}

/// The requests, and the streams that were asked for, in 10 s of a candidate that waits behind so many others; it polls every second.
async fn requests_of_a_waiting_candidate(ahead: u128, hints: fn() -> BoxStream<'static, ()>) -> (u64, usize) {
    let store = MemoryCas::new();
    let leader = Host::new(&store).await;
    for nonce in 1..=ahead {
        leader.enter("e", nonce).await.unwrap();
    }
    let streams = Arc::new(AtomicUsize::new(0));
    let backend = CasBackend::new(Hinting { client: store.client(7), streams: Arc::clone(&streams), hints });
    let options = SessionOptions::new(TTL, Arc::new(SimClock::new()), DRIFT);
    let session = backend.open_session(&options).await.unwrap();
    let request = request("e", ahead + 1);
    session.enter(&request).await.unwrap();
    let before = store.requests();
    let position = tenure_core::spi::QueuePosition::new(|_| ());
    let waiting = session.wait_turn(&request, None, &position);
    tokio::time::timeout(TTL, waiting).await.unwrap_err();
    (store.requests() - before, streams.load(SeqCst))
}

/// A stream of hints that always has one costs the next in line at most 50 reads of the election and of its own session a second.
#[tokio::test(start_paused = true)]
async fn hints_without_end_do_not_spin() {
    let (requests, _) = requests_of_a_waiting_candidate(1, || stream::repeat(()).boxed()).await;
    assert!((800..=1_120).contains(&requests), "{requests}");
}

/// It costs the candidate behind the next one some 20 reads a second, and fewer further back: of many changes of a long queue, few make
/// it the next.
#[tokio::test(start_paused = true)]
async fn hints_without_end_cost_little_further_back() {
    for (ahead, expected) in [(2, 100..=260), (3, 50..=160), (11, 5..=50)] {
        let (requests, _) = requests_of_a_waiting_candidate(ahead, || stream::repeat(()).boxed()).await;
        assert!(expected.contains(&requests), "{requests} behind {ahead}");
    }
}

/// The next in line reads at once after a hint, each time.
#[tokio::test(start_paused = true)]
async fn the_next_in_line_reads_at_once_after_a_hint() {
    let store = MemoryCas::new();
    let (leader, next) = (Host::new(&store).await, Host::new(&store).await);
    let _alive = (leader.keep_alive(), next.keep_alive());
    for nonce in 1..=10 {
        leader.lead("e", nonce).await;
        next.queue("e", 100 + nonce).await;
        let waiting = next.wait("e", 100 + nonce);
        sleep(1.0).await;
        leader.leave("e", nonce).await;
        let left = Instant::now();
        waiting.await.unwrap().unwrap();
        assert!(left.elapsed() <= seconds(0.05), "{:?}", left.elapsed());
        next.leave("e", 100 + nonce).await;
    }
}

/// A stream of hints that ends is asked for again at the next poll.
#[tokio::test(start_paused = true)]
async fn hints_that_end_are_asked_for_again() {
    let (requests, streams) = requests_of_a_waiting_candidate(1, || stream::empty().boxed()).await;
    assert!((6..=30).contains(&streams) && requests <= 40, "{streams} streams, {requests} requests");
}

/// Heartbeats whose answers were lost in earlier calls are still this process's own.
#[tokio::test(start_paused = true)]
async fn an_earlier_heartbeat_of_ones_own_is_adopted() {
    let store = MemoryCas::new();
    let host = Host::new(&store).await;
    host.client.lose_next_answer(Request::Swap, "s/");
    host.beat().await.unwrap_err();
    // The next one is not carried out.
    host.client.set_network(Network::Cut);
    host.beat().await.unwrap_err();
    host.client.set_network(Network::Healthy);
    host.beat().await.unwrap();
}

/// A store without a known epoch loses heartbeats of a leader that has died: it is taken over from all the same.
#[tokio::test(start_paused = true)]
async fn a_lost_heartbeat_keeps_no_dead_leader() {
    let store = MemoryCas::with_options(MemoryCasOptions::default());
    let (owner, challenger) = (Host::new(&store).await, Host::new(&store).await);
    owner.lead("e", 1).await;
    challenger.queue("e", 2).await;
    let waiting = challenger.wait("e", 2);
    sleep(3.0).await;
    owner.beat().await.unwrap();
    sleep(2.6).await;
    // The challenger has seen the heartbeat. The owner has died.
    store.fail_over(1);
    tokio::time::timeout(TTL * 2, waiting).await.unwrap().unwrap().unwrap();
    assert!(!owner.is_open());
}

/// The leader replaces its value while it is asked to resign.
#[tokio::test(start_paused = true)]
async fn a_resign_request_meets_a_new_value() {
    let store = MemoryCas::new();
    let (leader, other) = (Host::new(&store).await, Host::new(&store).await);
    let entry = leader.enter("e", 1).await.unwrap().entry().unwrap().clone();
    let held = other.client.hold_next(Request::Read, "s/");
    let (backend, name) = (other.backend.clone(), election("e"));
    let asking = tokio::spawn(async move { backend.request_resign(&name).await });
    held.arrived().await;
    let new = EntryRequest { value: Arc::from(*b"new"), ..request("e", 1) };
    leader.session.update(&entry, &new).await.unwrap();
    held.execute();
    assert!(asking.await.unwrap().unwrap().is_some());
    assert!(stored(&store, "e").queue[0].resign_requested);
}

/// A session that lives for months remembers no request that was refused, and removes the slot of one that is refused late.
#[tokio::test(start_paused = true)]
async fn a_refused_enter_leaves_nothing() {
    let store = MemoryCas::new();
    let backend = CasBackend::new(store.client(1));
    let options = SessionOptions::new(TTL, Arc::new(SimClock::new()), DRIFT);
    let session = CasSession::open(&backend.shared, &options).await.unwrap();
    store.put("e/foreign", Some(b"10.0.0.1".to_vec()));
    for nonce in 1..100 {
        assert!(session.enter(&request("foreign", nonce)).await.unwrap_err().is_permanent());
    }
    assert_eq!(session.pending(), 0);
    session.enter(&request("e", 100)).await.unwrap();
    assert_eq!(session.pending(), 1);
    session.leave(&request("e", 100), None).await.unwrap();
    assert_eq!(session.pending(), 0);
}

/// It is refused only once it is in the queue: the record of the store cannot be read, which says whether the epoch has settled.
#[tokio::test(start_paused = true)]
async fn an_enter_that_is_refused_late_is_withdrawn() {
    let epochs = MemoryEpochs::Known;
    let store = MemoryCas::with_options(MemoryCasOptions { epochs, ..MemoryCasOptions::default() });
    store.fail_over(0);
    let host = Host::new(&store).await;
    store.put("store", Some(b"?".to_vec()));
    let error = host.enter("e", 1).await.unwrap_err();
    assert!(error.is_permanent() && error.to_string().contains("\"store\""), "{error}");
    assert!(!store.records("e/e").is_empty(), "a swap was sent");
    assert!(stored(&store, "e").queue.is_empty());
}

/// One withdrawal that fails keeps no other one from being sent.
#[tokio::test(start_paused = true)]
async fn closing_withdraws_all_that_it_can() {
    let store = MemoryCas::new();
    let host = Host::new(&store).await;
    for n in 0..40 {
        host.lead(&format!("e{n}"), n).await;
    }
    let name = "e0";
    let record = store.records("e/e0").remove(0);
    store.put("e/e0", Some(b"?".to_vec()));
    let error = host.session.close().await.unwrap_err();
    assert!(error.to_string().contains("\"e/e0\""), "{error}");
    assert!((1..40).all(|n| stored(&store, &format!("e{n}")).queue.is_empty()));
    store.put("e/e0", Some(record.body));
    assert_eq!(stored(&store, name).queue.len(), 1);
    // It was not forgotten.
    host.session.close().await.unwrap();
    assert!(stored(&store, name).queue.is_empty());
}

/// The answer of an enter is lost, and the session ended by an operator before it is repeated.
#[tokio::test(start_paused = true)]
async fn an_enter_that_is_repeated_does_not_lead_under_an_ended_session() {
    let store = MemoryCas::new();
    let host = Host::new(&store).await;
    host.client.lose_next_answer(Request::Swap, "e/");
    host.enter("e", 1).await.unwrap_err();
    store.put(&format!("s/{}", host.session.id()), Some(Session::ended().encode()));
    assert_eq!(host.enter("e", 1).await.unwrap_err().kind(), BackendErrorKind::SessionGone);
}

/// A handover takes one round trip of the next candidate: it reads the election and its own session at once.
#[tokio::test(start_paused = true)]
async fn the_next_candidate_reads_its_session_along_with_the_election() {
    let store = MemoryCas::with_options(MemoryCasOptions { hints: true, ..MemoryCasOptions::default() });
    for is_ended in [false, true] {
        let (leader, next) = (Host::new(&store).await, Host::new(&store).await);
        leader.lead("e", 1).await;
        next.queue("e", 2).await;
        let waiting = next.wait("e", 2);
        // Until it waits for a hint.
        sleep(0.001).await;
        let own = format!("s/{}", next.session.id());
        let reads = ["e/e", &own].map(|key| next.client.hold_next(Request::Read, key));
        leader.leave("e", 1).await;
        for read in &reads {
            read.arrived().await;
        }
        if is_ended {
            store.put(&own, Some(Session::ended().encode()));
        }
        reads.iter().for_each(|read| read.execute());
        match waiting.await.unwrap() {
            Ok(won) if !is_ended => assert_eq!(won.token.get(), 2),
            Err(error) if is_ended => assert_eq!(error.kind(), BackendErrorKind::SessionGone),
            other => panic!("{other:?}"),
        }
        next.leave("e", 2).await;
    }
}

/// A failover during the probe shows nothing of the store's conditions: neither that it checks them nor that it does not.
#[tokio::test(start_paused = true)]
async fn a_failover_during_the_probe_is_no_proof() {
    let epochs = MemoryEpochs::Known;
    let options = MemoryCasOptions { epochs, ..MemoryCasOptions::default() };
    // One that answers requests of another epoch before it looks at their conditions.
    let store = MemoryCas::with_options(MemoryCasOptions { ignores_conditions: true, ..options });
    let backend = CasBackend::new(store.client(1));
    let options = SessionOptions::new(TTL, Arc::new(SimClock::new()), DRIFT);
    let swaps = [(); 3].map(|()| backend.store().hold_next(Request::Swap, "s/"));
    let (first_host, opening) = (backend.clone(), options.clone());
    let opening = tokio::spawn(async move { first_host.open_session(&opening).await });
    for (n, swap) in swaps.iter().enumerate() {
        swap.arrived().await;
        if n == 2 {
            store.fail_over(0);
        }
        swap.execute();
    }
    let error = opening.await.unwrap().unwrap_err();
    assert!(error.is_retryable(), "{error}");
    let error = backend.open_session(&options).await.unwrap_err();
    assert!(error.to_string().contains("ignores the condition"), "{error}");
}

/// A hundred candidates of one elector wait behind one session, each in an election of its own: they share the reads of that session.
#[tokio::test(start_paused = true)]
async fn candidates_of_an_elector_share_a_look_at_a_session() {
    let store = MemoryCas::with_options(MemoryCasOptions::default());
    let (leader, host) = (Host::new(&store).await, Host::new(&store).await);
    for n in 0..100 {
        leader.lead(&format!("e{n}"), n).await;
    }
    let _alive = (leader.keep_alive(), host.keep_alive());
    let before = host.client.reads_of("s/");
    let mut waiting = Vec::new();
    for n in 0..100 {
        host.queue(&format!("e{n}"), 200 + n).await;
        waiting.push(host.wait(&format!("e{n}"), 200 + n));
    }
    sleep(100.0).await;
    let reads = host.client.reads_of("s/") - before;
    assert!((40..=60).contains(&reads), "{reads}");
    // A dead leader is noticed all the same.
    leader.session.close().await.unwrap();
    for waiting in waiting {
        waiting.await.unwrap().unwrap();
    }
}
