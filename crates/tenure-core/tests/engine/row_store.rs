//! What a session has to be, shown on a store with one row per election. The engine has one deadline for all entries of a
//! session, so a heartbeat has to extend all of them in the store, too.

mod backend;

use std::{
    sync::{Arc, Mutex},
    time::Duration,
};

use tenure_core::{
    CandidateId, Config, ElectionName, Elector, Leadership, SimClock, StoreElector, spi::EntryRequest,
};

use crate::host::{pass, until, within};
use backend::{Line, Recipe, RowBackend, RowStore};

/// Heartbeats are sent every 667 ms. The deadline is 1.8 s after the sending of the last one that was answered, and
/// `is_leader` returns false from 1.6 s on.
const TTL: Duration = Duration::from_secs(2);
const REQUEST_TIMEOUT: Duration = Duration::from_secs(1);

/// The call in which the candidate takes the row.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum TakenBy {
    Enter,
    /// Somebody else has the row at first, for 1.3 s.
    WaitTurn,
}

/// What happens to the candidate `a`, while `b` waits for the row.
#[derive(Clone, Copy, Debug)]
struct Schedule {
    taken_by: TakenBy,
    /// How late the answer comes that says that the row is `a`'s.
    answer_late: Duration,
    /// How long after `a` leads its line is cut.
    cut_after: Duration,
    /// How fast the clock of `a` runs.
    rate: f64,
}

/// The case that was measured first: the answer comes 0.9 s late, and the line is cut then.
const MEASURED: Schedule = Schedule {
    taken_by: TakenBy::Enter,
    answer_late: Duration::from_millis(900),
    cut_after: Duration::ZERO,
    rate: 1.0,
};

fn elector(line: &Arc<Line>, id: &str, rate: f64) -> Arc<StoreElector> {
    let config = Config::new().with_ttl(TTL).with_request_timeout(REQUEST_TIMEOUT);
    let config = config.with_id(CandidateId::new(id).unwrap());
    let (backend, clock) = (Arc::new(RowBackend(Arc::clone(line))), Arc::new(SimClock::with_rate(rate)));
    Arc::new(StoreElector::with_clock(backend, config, clock).unwrap())
}

/// How long `a` and `b` were leaders at the same time.
async fn overlap(recipe: Recipe, schedule: Schedule) -> Duration {
    let Schedule { taken_by, answer_late, cut_after, rate } = schedule;
    let election = ElectionName::new("e").unwrap();
    let store = RowStore::new(recipe);
    let (a_line, b_line) = (Line::new(&store, Some(answer_late)), Line::new(&store, None));
    let (a, b) = (elector(&a_line, "a", rate), elector(&b_line, "b", 1.0));
    let before = (taken_by == TakenBy::WaitTurn).then(|| {
        let ttl = Duration::from_millis(1_300);
        let candidate = CandidateId::new("before").unwrap();
        let request = EntryRequest { election: election.clone(), candidate, value: Arc::from([]), nonce: 1 };
        let session = store.open(ttl);
        store.take(session, &request, ttl).unwrap();
        session
    });

    let led = Arc::new(Mutex::new(None::<Leadership>));
    let (leads, cutting) = (Arc::clone(&led), Arc::clone(&a_line));
    let first = tokio::spawn(async move {
        let leadership = a.campaign("e").await.unwrap();
        *leads.lock().unwrap() = Some(leadership);
        pass(cut_after).await;
        cutting.cut();
    });
    until("a has taken the row", || store.owner(&election).is_some_and(|owner| Some(owner) != before)).await;
    let second = within(TTL * 10, b.campaign("e")).await.unwrap();
    let mut overlap = Duration::ZERO;
    let leads = || led.lock().unwrap().as_ref().is_some_and(|leadership| leadership.is_leader());
    while leads() || !first.is_finished() {
        assert!(second.is_leader(), "{recipe:?}, {schedule:?}");
        pass(Duration::from_millis(1)).await;
        if leads() {
            overlap += Duration::from_millis(1);
        }
    }
    assert!(led.lock().unwrap().is_some(), "a has led: {recipe:?}, {schedule:?}");
    overlap
}

/// Variations of [`MEASURED`]: who takes the row by which call, how late the answer is, when the line is cut, and clocks
/// that are slow or fast within the drift bound.
fn variations() -> impl Iterator<Item = Schedule> {
    let millis = Duration::from_millis;
    let calls = [TakenBy::Enter, TakenBy::WaitTurn].into_iter();
    let calls = calls.flat_map(|taken_by| [0.92, 1.0, 1.09].map(|rate| (taken_by, rate)));
    calls.flat_map(move |(taken_by, rate)| {
        // Beyond the request timeout `enter` is sent again, and finds its row.
        (0..=3_000).step_by(50).map(move |late| {
            let (answer_late, cut_after) = (millis(late), millis(late * 7 % 800));
            Schedule { taken_by, answer_late, cut_after, rate }
        })
    })
}

/// Hazard G32: the recipe that `docs/contributing/backend.md` used to describe is outside the contract of
/// [`heartbeat`](tenure_core::spi::BackendSession::heartbeat). A heartbeat that is sent while the answer to `enter` is under way renews
/// nothing of the row, but is answered and extends the window: two leaders, which this check sees.
#[tokio::test(start_paused = true)]
async fn a_heartbeat_that_renews_less_than_its_session_makes_two_leaders() {
    // The row is taken at 0 and expires at 2.0 s. The heartbeat sent at 0.667 s is the last one that is answered, so
    // `is_leader` of `a` returns true until 0.667 + 1.8 - 0.2 = 2.267 s.
    let measured = overlap(Recipe::KnownRows, MEASURED).await;
    assert!((250..=270).contains(&measured.as_millis()), "{measured:?}");

    // Without a heartbeat meanwhile, the same recipe has one leader at a time.
    let answer_late = Duration::from_millis(600);
    assert_eq!(overlap(Recipe::KnownRows, Schedule { answer_late, ..MEASURED }).await, Duration::ZERO);

    // A candidate that has waited takes the row by a write, too, whose answer can be as late.
    let waited = Schedule { taken_by: TakenBy::WaitTurn, ..MEASURED };
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
    for schedule in [MEASURED].into_iter().chain(variations()) {
        assert_eq!(overlap(Recipe::SessionRecord, schedule).await, Duration::ZERO, "{schedule:?}");
    }
}

/// Hazard G32: the same store has one leader at a time when each heartbeat renews all rows that the session may have, also those
/// asked for without an answer yet.
#[tokio::test(start_paused = true)]
async fn rows_that_are_renewed_before_their_answer_have_one_leader_at_a_time() {
    for schedule in [MEASURED].into_iter().chain(variations()) {
        assert_eq!(overlap(Recipe::PossibleRows, schedule).await, Duration::ZERO, "{schedule:?}");
    }
}
