//! How a leadership and its session end, when several threads end them and others look.

use std::{sync::Arc, time::Duration};

use loom::{future::block_on, model::Builder, thread};

use super::stage::{Model, ModelClock, counted, notices};
use crate::{
    CandidateId, Config, ElectionName, FencingToken, Leadership, LossReason,
    engine::{
        Shared,
        session::Session,
        term::Term,
        window::{Sent, Window},
    },
    failpoints::SafetyRule,
    memory::MemoryStore,
    spi::{Entry, EntryRequest},
};

pub(super) const TTL: Duration = Duration::from_secs(10);
pub(super) const BUDGET: Duration = Duration::from_secs(1);
/// So much time after its opening a session's window is about to close.
const NEARLY_CLOSED: Duration = Duration::from_millis(7_950);
const STEP: Duration = Duration::from_millis(100);

/// Every schedule with at most so many preemptions.
pub(super) fn every_schedule(preemptions: usize) -> impl FnOnce(Model) {
    move |model| {
        let mut builder = Builder::new();
        builder.preemption_bound = Some(preemptions);
        builder.max_branches = 20_000;
        builder.check(move || model());
    }
}

/// A leadership under a session of its own; no task looks after either.
pub(super) fn leading(config: &Config, clock: &Arc<ModelClock>) -> Leadership {
    let store = MemoryStore::new();
    let shared = Shared::simulated(Arc::new(store.backend()), config.clone(), clock.clone());
    let spi = block_on(shared.backend.open_session(TTL)).unwrap();
    let window = Window::opened(Sent::now(&**clock), TTL, 0.1, BUDGET);
    let session = Session::new(spi, shared, window);
    let election = ElectionName::new("e").unwrap();
    let candidate = CandidateId::new("a").unwrap();
    let request = EntryRequest { election: election.clone(), candidate, value: Arc::from([]), nonce: 1 };
    let entry = Entry { election, key: "e/2".into(), version: 2 };
    let live = session.entered(entry);
    let term = Term::new(&session, Arc::new(request), FencingToken::new(2).unwrap(), live);
    // What is made once when it is needed is ordered by std's lock, into which loom cannot see: it is made beforehand.
    let _ = term.cancellation_token();
    Leadership::new(term)
}

fn term(leadership: &Leadership) -> Arc<Term> {
    leadership.handle().term()
}

/// Hazard G14: the session expires while the leadership is given back.
fn resigned_and_expired_at_once(config: &Config) {
    let clock = ModelClock::new();
    let leadership = leading(config, &clock);
    let (handle, session) = (leadership.handle(), Arc::clone(&term(&leadership).session));
    let expiry = thread::spawn(move || session.end(LossReason::SessionExpired));
    let resignation = thread::spawn(move || {
        leadership.begin_resign();
        assert!(!leadership.is_leader(), "resigned, and leads");
        leadership
    });
    let (first, second) = (handle.loss(), handle.loss());
    assert!(first.is_none() || first == second, "{first:?}, and then {second:?}");
    let leadership = resignation.join().unwrap();
    expiry.join().unwrap();
    let last = handle.loss();
    assert!(last.is_some() && leadership.loss() == last);
    assert!(second.is_none() || second == last, "{second:?}, and then {last:?}");
    assert!(handle.cancellation_token().is_cancelled());
}

#[test]
fn a_leadership_has_one_reason_for_its_end() {
    let config = Config::new();
    counted("a_leadership_has_one_reason_for_its_end", every_schedule(5), move || {
        resigned_and_expired_at_once(&config);
    });
}

#[test]
fn a_second_reason_is_noticed() {
    let config = Config::new();
    notices(SafetyRule::SingleLossReason, || {
        counted("broken", every_schedule(5), move || resigned_and_expired_at_once(&config));
    });
}

/// Hazards G1, G21: a heartbeat is confirmed while the window closes. Whoever was told no is told no for
/// ever, and the session has ended then.
fn credited_while_closing(config: &Config) {
    let clock = ModelClock::new();
    let leadership = leading(config, &clock);
    let session = Arc::clone(&term(&leadership).session);
    clock.advance(NEARLY_CLOSED);
    let sent = Sent::now(&*clock);
    let credit = {
        let (session, clock) = (Arc::clone(&session), Arc::clone(&clock));
        thread::spawn(move || {
            if let Err(reason) = session.window.credit(&*clock, sent, TTL) {
                session.end(reason);
            }
        })
    };
    let time = {
        let clock = Arc::clone(&clock);
        thread::spawn(move || clock.advance(STEP))
    };
    if session.check_window(BUDGET).is_err() {
        assert!(session.ended().is_some(), "told no, and the session lives on");
        assert!(!leadership.is_leader(), "told no, and yes again");
    }
    let told_no = !leadership.is_leader();
    credit.join().unwrap();
    time.join().unwrap();
    assert!(!(told_no && leadership.is_leader()), "told no, and yes again");
    assert_eq!(leadership.is_leader(), leadership.loss().is_none());
}

#[test]
fn a_closed_window_is_never_opened_again() {
    let config = Config::new();
    counted("a_closed_window_is_never_opened_again", every_schedule(5), move || {
        credited_while_closing(&config)
    });
}

#[test]
fn a_window_that_opens_again_is_noticed() {
    let config = Config::new();
    notices(SafetyRule::NeverReopenWindow, || {
        counted("broken", every_schedule(5), move || credited_while_closing(&config));
    });
}
