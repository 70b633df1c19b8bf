//! The contract of a session, shown with a store that has one row per election. The engine has one deadline for all entries of a
//! session, so a heartbeat has to extend all of them in the store too.

mod backend;

use std::{
    sync::{Arc, Mutex},
    time::Duration,
};

use tenure_core::{
    CandidateId, Config, ElectionName, Elector, Leadership, SimClock, StoreElector, spi::EntryRequest,
};

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
    /// The time from the start of `a`'s leadership until its connection is cut.
    cut_after: Duration,
    /// The rate of the clock of `a`.
    rate: f64,
}

/// The case that was measured first: the answer is 0.9 s late, and the connection is cut then.
const MEASURED_SCHEDULE: Schedule = Schedule {
    taking_call: TakingCall::Enter,
    answer_delay: Duration::from_millis(900),
    cut_after: Duration::ZERO,
    rate: 1.0,
};

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
        sleep(cut_after).await;
        cutting.cut();
    });
    until("a has taken the row", || store.owner(&election).is_some_and(|owner| Some(owner) != before)).await;
    let second = within(TTL * 10, b.campaign("e")).await.unwrap();
    let mut overlap = Duration::ZERO;
    let leads = || led.lock().unwrap().as_ref().is_some_and(|leadership| leadership.is_leader());
    while leads() || !first.is_finished() {
        assert!(second.is_leader(), "{recipe:?}, {schedule:?}");
        sleep(Duration::from_millis(1)).await;
        if leads() {
            overlap += Duration::from_millis(1);
        }
    }
    assert!(led.lock().unwrap().is_some(), "a has led: {recipe:?}, {schedule:?}");
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
            let (answer_delay, cut_after) = (millis(late), millis(late * 7 % 800));
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
