//! The contract of a session, shown with a store that has one row per election. The engine has one deadline for all entries of a
//! session, so a heartbeat has to extend all of them in the store too.

mod backend;

use std::{
    sync::{Arc, Mutex, atomic::Ordering::SeqCst},
    time::Duration,
};

use tenure_core::{
    CandidateId, Config, ElectionName, Elector, Leadership, SimClock, StoreElector, spi::EntryRequest,
};

use tokio::time::Instant;

use crate::host::{sleep, until, within};
use backend::{Connection, Recipe, RowBackend, RowStore};

/// Heartbeats are sent every 667 ms. The deadline is 1.8 s after the request of the last one that was answered, and
/// `is_leader` returns false from 1.6 s on.
const TTL: Duration = Duration::from_secs(2);
const REQUEST_TIMEOUT: Duration = Duration::from_secs(1);

/// The call in which the candidate takes the row.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum TakingCall {
    Enter,
    /// Another candidate has the row for the first 1.3 s.
    WaitTurn,
}

/// What happens to the candidate `a`, while `b` waits for the row.
#[derive(Clone, Copy, Debug)]
struct Schedule {
    taking_call: TakingCall,
    /// The delay of the answer that the row belongs to `a`.
    answer_delay: Duration,
    /// The time from the start of `a`'s leadership until its connection is cut. Without one, it is cut when the row is taken, and only
    /// the answer on its way arrives.
    cut_after: Option<Duration>,
    /// The rate of the clock of `a`.
    rate: f64,
}

/// The case that was measured first: the answer is 0.9 s late, and the connection is cut then.
const MEASURED_SCHEDULE: Schedule = Schedule {
    taking_call: TakingCall::Enter,
    answer_delay: Duration::from_millis(900),
    cut_after: Some(Duration::ZERO),
    rate: 1.0,
};
/// The same, but no heartbeat of `a` arrives any more.
const WITHOUT_HEARTBEATS: Schedule = Schedule { cut_after: None, ..MEASURED_SCHEDULE };

fn elector(connection: &Arc<Connection>, id: &str, rate: f64) -> Arc<StoreElector> {
    let config = Config::new().with_ttl(TTL).with_request_timeout(REQUEST_TIMEOUT);
    let config = config.with_id(CandidateId::new(id).unwrap());
    let (backend, clock) =
        (Arc::new(RowBackend(Arc::clone(connection))), Arc::new(SimClock::with_rate(rate)));
    Arc::new(StoreElector::with_clock(backend, config, clock).unwrap())
}

/// The time for which `a` and `b` were leaders at the same time.
async fn overlap(recipe: Recipe, schedule: Schedule) -> Duration {
    let Schedule { taking_call, answer_delay, cut_after, rate } = schedule;
    let election = ElectionName::new("e").unwrap();
    let store = RowStore::new(recipe);
    let (a_connection, b_connection) =
        (Connection::new(&store, Some(answer_delay)), Connection::new(&store, None));
    let (a, b) = (elector(&a_connection, "a", rate), elector(&b_connection, "b", 1.0));
    let before = (taking_call == TakingCall::WaitTurn).then(|| {
        let ttl = Duration::from_millis(1_300);
        let candidate = CandidateId::new("before").unwrap();
        let request = EntryRequest { election: election.clone(), candidate, value: Arc::from([]), nonce: 1 };
        let session = store.open(ttl);
        store.take(session, &request, ttl).unwrap();
        session
    });

    let led = Arc::new(Mutex::new(None::<Leadership>));
    let (leads, cutting) = (Arc::clone(&led), Arc::clone(&a_connection));
    let first = tokio::spawn(async move {
        let leadership = a.campaign("e").await.unwrap();
        *leads.lock().unwrap() = Some(leadership);
        if let Some(cut_after) = cut_after {
            sleep(cut_after).await;
            cutting.cut();
        }
    });
    until("a has taken the row", || store.owner(&election).is_some_and(|owner| Some(owner) != before)).await;
    if cut_after.is_none() {
        a_connection.drop_requests();
    }
    let second = within(TTL * 10, b.campaign("e")).await.unwrap();
    let mut overlap = Duration::ZERO;
    let leads = || led.lock().unwrap().as_ref().is_some_and(|leadership| leadership.is_leader());
    // An answer that comes after the window would have closed gives no leadership, and `b` keeps the row.
    let in_time = answer_delay < TTL / 2 || taking_call == TakingCall::Enter;
    let end = Instant::now() + TTL * 5;
    while leads() || !first.is_finished() && (in_time || Instant::now() < end) {
        assert!(second.is_leader(), "{recipe:?}, {schedule:?}");
        sleep(Duration::from_millis(1)).await;
        if leads() {
            overlap += Duration::from_millis(1);
        }
    }
    assert!(led.lock().unwrap().is_some() || !in_time, "a has led: {recipe:?}, {schedule:?}");
    first.abort();
    overlap
}

/// Variations of [`MEASURED_SCHEDULE`]: the call that takes the row, the delay of its answer, the time at which the connection is
/// cut, and clocks that are slow or fast within the drift bound.
fn variations() -> impl Iterator<Item = Schedule> {
    let millis = Duration::from_millis;
    let calls = [TakingCall::Enter, TakingCall::WaitTurn].into_iter();
    let calls = calls.flat_map(|taking_call| [0.92, 1.0, 1.09].map(|rate| (taking_call, rate)));
    calls.flat_map(move |(taking_call, rate)| {
        // Beyond the request timeout `enter` is sent again, and finds its row.
        (0..=3_000).step_by(50).map(move |late| {
            let (answer_delay, cut_after) = (millis(late), Some(millis(late * 7 % 800)));
            Schedule { taking_call, answer_delay, cut_after, rate }
        })
    })
}

/// Hazard G32: the recipe that `docs/contributing/backend.md` used to describe is outside the contract of
/// [`heartbeat`](tenure_core::spi::BackendSession::heartbeat). A heartbeat that is sent while the answer to `enter` is pending does
/// not renew the row, but is answered and extends the deadline: two candidates lead, which this check detects.
#[tokio::test(start_paused = true)]
async fn a_heartbeat_that_renews_less_than_its_session_makes_two_leaders() {
    // The row is taken at 0 and expires at 2.0 s. The heartbeat sent at 0.667 s is the last one that is answered, so
    // `is_leader` of `a` returns true until 0.667 + 1.8 - 0.2 = 2.267 s.
    let measured = overlap(Recipe::KnownRows, MEASURED_SCHEDULE).await;
    assert!((250..=270).contains(&measured.as_millis()), "{measured:?}");

    // Without a heartbeat meanwhile, the same recipe has one leader at a time.
    let answer_delay = Duration::from_millis(600);
    assert_eq!(
        overlap(Recipe::KnownRows, Schedule { answer_delay, ..MEASURED_SCHEDULE }).await,
        Duration::ZERO
    );

    // A waiting candidate takes the row by a write too, whose answer can be as late.
    let waited = Schedule { taking_call: TakingCall::WaitTurn, ..MEASURED_SCHEDULE };
    let waited = overlap(Recipe::KnownRows, waited).await;
    assert!(waited > Duration::from_millis(200), "{waited:?}");

    let (mut overlaps, mut longest) = (0, Duration::ZERO);
    for schedule in variations() {
        let overlap = overlap(Recipe::KnownRows, schedule).await;
        overlaps += usize::from(!overlap.is_zero());
        longest = longest.max(overlap);
    }
    assert!(overlaps > 50 && longest > Duration::from_secs(1), "{overlaps}, the longest {longest:?}");
}

/// Hazard G32: with a session record, which a heartbeat renews and with which all rows of the session expire, the same store has
/// one leader at a time over the same schedules.
#[tokio::test(start_paused = true)]
async fn rows_that_expire_with_their_session_record_have_one_leader_at_a_time() {
    for schedule in [MEASURED_SCHEDULE].into_iter().chain(variations()) {
        assert_eq!(overlap(Recipe::SessionRecord, schedule).await, Duration::ZERO, "{schedule:?}");
    }
}

/// Hazard G32: the same store has one leader at a time when each heartbeat renews all rows that the session may have, also those
/// asked for without an answer yet.
#[tokio::test(start_paused = true)]
async fn rows_that_are_renewed_before_their_answer_have_one_leader_at_a_time() {
    for schedule in [MEASURED_SCHEDULE].into_iter().chain(variations()) {
        assert_eq!(overlap(Recipe::PossibleRows, schedule).await, Duration::ZERO, "{schedule:?}");
    }
}

/// Hazard G32: the same store has one leader at a time when a session serves one election. No heartbeat is sent before the row is
/// taken, and the window is not open until then.
#[tokio::test(start_paused = true)]
async fn window_opens_on_win() {
    assert_eq!(overlap_with_a_late_answer().await, Duration::ZERO);
    for schedule in variations() {
        assert_eq!(overlap(Recipe::RowPerSession, schedule).await, Duration::ZERO, "{schedule:?}");
    }
}

/// Hazard G2: the window of a session that serves one election is counted from the first request that may have taken the row,
/// however late its answer is, and although a later one finds the row taken.
#[tokio::test(start_paused = true)]
async fn window_is_counted_from_the_first_attempt() {
    for late in (0..=1_500).step_by(100).map(Duration::from_millis) {
        // With a late answer the deadline would be 1.8 s after it, and the row expires 2 s after the request.
        let schedule = Schedule { answer_delay: late, ..MEASURED_SCHEDULE };
        assert_eq!(overlap(Recipe::RowPerSession, schedule).await, Duration::ZERO, "{schedule:?}");
        // A later answer is not waited for, and no other arrives.
        if late < REQUEST_TIMEOUT {
            let schedule = Schedule { answer_delay: late, ..WITHOUT_HEARTBEATS };
            assert_eq!(overlap(Recipe::RowPerSession, schedule).await, Duration::ZERO, "{schedule:?}");
        }
    }
}

/// The overlap when the answer that the row was taken is late, with a session per election.
pub(crate) async fn overlap_with_a_late_answer() -> Duration {
    overlap(Recipe::RowPerSession, MEASURED_SCHEDULE).await
}

/// The same, if nothing else of `a` arrives.
#[cfg(tenure_mutants)]
pub(crate) async fn overlap_with_a_late_last_answer() -> Duration {
    overlap(Recipe::RowPerSession, WITHOUT_HEARTBEATS).await
}

/// Hazard G10: a wait that is dropped may have created an entry, of which nobody knows. The row is released, and not kept by the
/// session, which lives on.
#[tokio::test(start_paused = true)]
async fn a_dropped_wait_is_withdrawn() {
    assert!(!keeps_the_row_of_a_dropped_wait().await);
}

/// Drops a campaign whose wait has taken the row and is not answered yet. Whether the row is kept although the session lives on.
pub(crate) async fn keeps_the_row_of_a_dropped_wait() -> bool {
    let election = ElectionName::new("e").unwrap();
    let store = RowStore::new(Recipe::SessionRecord);
    let connection = Connection::new(&store, Some(Duration::from_millis(900)));
    let request = |nonce| {
        let candidate = CandidateId::new("before").unwrap();
        EntryRequest { election: election.clone(), candidate, value: Arc::from([]), nonce }
    };
    let before = store.open(TTL / 2);
    store.take(before, &request(1), TTL / 2).unwrap();
    let elector = elector(&connection, "a", 1.0);
    let campaign = tokio::spawn({
        let elector = Arc::clone(&elector);
        async move { elector.campaign("e").await }
    });
    until("the wait has taken the row", || store.owner(&election).is_some_and(|owner| owner != before)).await;
    campaign.abort();
    sleep(TTL * 5).await;
    let other = within(TTL, elector.campaign("other")).await.unwrap();
    assert!(other.is_leader(), "the session lives on");
    store.owner(&election).is_some()
}

/// A session that serves one election ends with its candidacy, however that ends.
#[tokio::test(start_paused = true)]
async fn a_session_for_one_election_ends_with_its_candidacy() {
    let store = RowStore::new(Recipe::RowPerSession);
    let (a, b) = (Connection::new(&store, None), Connection::new(&store, None));
    let (a, b) = (elector(&a, "a", 1.0), elector(&b, "b", 1.0));
    let (one, other) = (a.campaign("one").await.unwrap(), a.campaign("other").await.unwrap());
    assert_eq!(store.left(), (2, 2), "a session for each");
    sleep(TTL * 10).await;
    assert!(one.is_leader() && other.is_leader(), "each has its heartbeats");

    // Without waiting, given up, resigned.
    assert!(b.try_campaign("one").await.unwrap().is_none());
    until("nothing of it is left", || store.left() == (2, 2)).await;
    let waits = tokio::spawn({
        let b = Arc::clone(&b);
        async move { b.campaign("one").await.unwrap() }
    });
    until("it waits", || store.left() == (3, 2)).await;
    waits.abort();
    until("nothing of it is left", || store.left() == (2, 2)).await;
    one.resign().await.unwrap();
    until("nothing of it is left", || store.left() == (1, 1)).await;
    let again = b.campaign("one").await.unwrap();
    assert!(again.fencing_token() > other.fencing_token() && other.is_leader());

    drop(again);
    let shutdown = a.close_within(TTL).await;
    assert!(shutdown.confirmed, "{shutdown:?}");
    assert!(!other.is_leader());
    until("nothing is left", || store.left() == (0, 0)).await;
}

/// The shutdown of many sessions is confirmed as that of one.
#[tokio::test(start_paused = true)]
async fn a_shutdown_with_many_sessions_is_confirmed() {
    let store = RowStore::new(Recipe::RowPerSession);
    let elector = elector(&Connection::new(&store, None), "a", 1.0);
    let campaigns = (0..200).map(|n| {
        let elector = Arc::clone(&elector);
        async move { elector.campaign(&format!("e{n}")).await.unwrap() }
    });
    let led = futures::future::join_all(campaigns).await;
    assert_eq!(store.left(), (200, 200));
    sleep(TTL * 3).await;
    assert!(led.iter().all(|leadership| leadership.is_leader()));
    let shutdown = elector.close_within(TTL).await;
    assert!(shutdown.confirmed, "{shutdown:?}");
    assert_eq!(store.left(), (0, 0));
}

/// A heartbeat that is sent after its entry was released could take it again.
#[tokio::test(start_paused = true)]
async fn heartbeats_stop_before_the_entry_is_removed() {
    assert_eq!(heartbeats_while_leaving().await, 0);
}

/// The number of heartbeats that are sent while a resignation removes the entry, which takes several intervals.
pub(crate) async fn heartbeats_while_leaving() -> usize {
    let store = RowStore::new(Recipe::RowPerSession);
    let connection = Connection::new(&store, None);
    let elector = elector(&connection, "a", 1.0);
    let leadership = elector.campaign("e").await.unwrap();
    sleep(TTL * 3).await;
    assert!(connection.heartbeats.load(SeqCst) > 5);
    *connection.release_delay.lock().unwrap() = Some(REQUEST_TIMEOUT * 9 / 10);
    within(TTL, leadership.resign()).await.unwrap();
    connection.late_heartbeats.load(SeqCst)
}

/// Promise L2: an elector that is dropped in an outage leaves nothing running, although its candidate has never had a window.
#[tokio::test(start_paused = true)]
async fn a_session_for_one_election_ends_in_an_outage() {
    let store = RowStore::new(Recipe::RowPerSession);
    let (a, b_connection) = (Connection::new(&store, None), Connection::new(&store, None));
    let (a, b) = (elector(&a, "a", 1.0), elector(&b_connection, "b", 1.0));
    let leadership = a.campaign("e").await.unwrap();
    let waits = tokio::spawn({
        let b = Arc::clone(&b);
        async move { b.campaign("e").await.unwrap() }
    });
    until("it waits", || store.left().0 == 2).await;
    b_connection.cut();
    waits.abort();
    let left = Arc::downgrade(&b_connection);
    drop((b, b_connection));
    until("its tasks have ended", || left.strong_count() == 0).await;
    assert!(leadership.is_leader());
}
