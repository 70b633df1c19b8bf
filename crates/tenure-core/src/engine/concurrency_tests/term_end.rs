//! A term and its session that several threads end while others read them.

use std::{sync::Arc, time::Duration};

use loom::{future::block_on, model::Builder, thread};

use super::harness::{Model, ModelClock, explore, fails_without};
use crate::{
    CandidateId, Config, ElectionName, FencingToken, Leadership, LossReason,
    engine::{
        elector_context::ElectorContext,
        rules::window::Window,
        tasks::{
            session::{RegisteredEntry, Session},
            term::Term,
        },
    },
    failpoints::SafetyRule,
    memory::MemoryStore,
    spi::{Entry, EntryRequest, SessionOptions, Stamp},
};

pub(super) const TTL: Duration = Duration::from_secs(10);
pub(super) const GRACE_PERIOD: Duration = Duration::from_secs(1);
/// This long after its opening a session's window is about to close.
const NEARLY_CLOSED: Duration = Duration::from_millis(7_950);
/// Enough to close it then.
const STEP: Duration = Duration::from_millis(100);

/// Tries every schedule with at most this many preemptions.
pub(super) fn every_schedule(preemptions: usize) -> impl FnOnce(Model) {
    move |model| {
        let mut builder = Builder::new();
        builder.preemption_bound = Some(preemptions);
        builder.max_branches = 20_000;
        builder.check(move || model());
    }
}

/// A leadership under a session of its own, without the tasks of either.
pub(super) fn new_leadership(config: &Config, clock: &Arc<ModelClock>) -> Leadership {
    let store = MemoryStore::new();
    let shared = ElectorContext::simulated(Arc::new(store.backend()), config.clone(), clock.clone()).unwrap();
    let options = SessionOptions::new(TTL, Arc::clone(&shared.clock), 0.1);
    let backend_session = block_on(shared.backend.open_session(&options)).unwrap();
    let window = Window::opened(Stamp::now(&**clock), TTL, 0.1, GRACE_PERIOD);
    let events = tokio::sync::mpsc::unbounded_channel().0;
    let session = Session::new(backend_session, shared, window, 1, None, events);
    let election = ElectionName::new("e").unwrap();
    let candidate = CandidateId::new("a").unwrap();
    let request = EntryRequest { election: election.clone(), candidate, value: Arc::from([]), nonce: 1 };
    let entry = Entry { election, key: "e/2".into(), version: 2 };
    let registered = RegisteredEntry::new(1, entry);
    let term = Term::new(&session, Arc::new(request), FencingToken::new(2).unwrap(), registered);
    // Lazily created state is ordered by std's lock, which loom cannot see: it is created beforehand.
    let _ = term.cancellation_token();
    Leadership::new(term)
}

fn term(leadership: &Leadership) -> Arc<Term> {
    leadership.handle().term()
}

/// Hazard G14: the session expires while the leadership is given back.
fn resigned_and_expired_at_once(config: &Config) {
    let clock = ModelClock::new();
    let leadership = new_leadership(config, &clock);
    let (handle, session) = (leadership.handle(), Arc::clone(&term(&leadership).session));
    let expiry = thread::spawn(move || session.end(LossReason::SessionExpired));
    let resignation = thread::spawn(move || {
        leadership.request_resign();
        assert!(!leadership.is_leader(), "it leads after its resignation");
        leadership
    });
    let (first, second) = (handle.loss(), handle.loss());
    assert!(first.is_none() || first == second, "the reason changed from {first:?} to {second:?}");
    let leadership = resignation.join().unwrap();
    expiry.join().unwrap();
    let last = handle.loss();
    assert!(last.is_some() && leadership.loss() == last);
    assert!(second.is_none() || second == last, "the reason changed from {second:?} to {last:?}");
    assert!(handle.cancellation_token().is_cancelled());
}

#[test]
fn a_leadership_has_one_reason_for_its_end() {
    let config = Config::new();
    explore("a_leadership_has_one_reason_for_its_end", every_schedule(5), move || {
        resigned_and_expired_at_once(&config);
    });
}

#[test]
fn a_second_reason_is_noticed() {
    let config = Config::new();
    fails_without(SafetyRule::SingleLossReason, || {
        explore("disabled", every_schedule(5), move || resigned_and_expired_at_once(&config));
    });
}

/// Hazards G1, G21: a heartbeat is confirmed while the window closes. Once a check has failed, all later checks
/// fail, and the session has ended.
fn extended_while_closing(config: &Config) {
    let clock = ModelClock::new();
    let leadership = new_leadership(config, &clock);
    let session = Arc::clone(&term(&leadership).session);
    clock.advance(NEARLY_CLOSED);
    let sent = Stamp::now(&*clock);
    let extension = {
        let (session, clock) = (Arc::clone(&session), Arc::clone(&clock));
        thread::spawn(move || {
            if let Err(reason) = session.window.extend(&*clock, sent, TTL) {
                session.end(reason);
            }
        })
    };
    let time = {
        let clock = Arc::clone(&clock);
        thread::spawn(move || clock.advance(STEP))
    };
    if session.enforce_window(GRACE_PERIOD).is_err() {
        assert!(session.ended().is_some(), "a check failed, and the session lives on");
        assert!(!leadership.is_leader(), "a check failed, and a later one succeeded");
    }
    let check_failed = !leadership.is_leader();
    extension.join().unwrap();
    time.join().unwrap();
    assert!(!(check_failed && leadership.is_leader()), "a check failed, and a later one succeeded");
    assert_eq!(leadership.is_leader(), leadership.loss().is_none());
}

#[test]
fn a_closed_window_is_never_opened_again() {
    let config = Config::new();
    explore("a_closed_window_is_never_opened_again", every_schedule(5), move || {
        extended_while_closing(&config)
    });
}

#[test]
fn a_window_that_opens_again_is_noticed() {
    let config = Config::new();
    fails_without(SafetyRule::NeverReopenWindow, || {
        explore("disabled", every_schedule(5), move || extended_while_closing(&config));
    });
}
