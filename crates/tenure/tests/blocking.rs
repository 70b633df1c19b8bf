//! The blocking interface, in real time.
#![cfg(feature = "memory")]
#![allow(missing_docs)]

use std::{
    sync::{
        Arc, Mutex, OnceLock,
        atomic::{AtomicUsize, Ordering::SeqCst},
        mpsc,
    },
    thread,
    time::{Duration, Instant},
};

use tenure::{
    Backoff, BootClock, CampaignOptions, Candidate, Clock as _, Config, ElectionName, Error, Level,
    LossReason, OnOverrun, Patience, Shutdown, StoreElector,
    blocking::Elector,
    memory::{Link, MemoryBackend, MemoryStore},
    spi::{Backend, BackendError, BackendSession, Capabilities, Observation, SessionOptions, SessionRecord},
};

const TTL: Duration = Duration::from_secs(2);
const TEST_TIMEOUT: Duration = Duration::from_secs(30);

fn elector_with(store: &MemoryStore, settings: impl FnOnce(Config) -> Config) -> (Elector, Link) {
    let backend = store.backend();
    let link = backend.link().clone();
    let config = settings(Config::new().with_ttl(TTL));
    (Elector::new(StoreElector::new(Arc::new(backend), config).unwrap()), link)
}

fn elector(store: &MemoryStore) -> Elector {
    elector_with(store, |config| config).0
}

fn until(what: &str, condition: impl Fn() -> bool) {
    let begun = Instant::now();
    while !condition() {
        assert!(begun.elapsed() < TEST_TIMEOUT, "never: {what}");
        thread::sleep(Duration::from_millis(1));
    }
}

#[test]
fn a_thread_without_an_executor_leads_and_resigns() {
    let elector = Elector::connect("memory:blocking").unwrap();
    let mut leaders = elector.observe("e");
    assert!(leaders.next().unwrap().unwrap().is_none());
    let token = elector
        .run("e", |leadership| {
            leadership.ensure().unwrap();
            // Blocking calls can be nested.
            leadership.set_value("10.0.0.1").unwrap();
            let leader = elector.leader("e").unwrap().unwrap();
            assert_eq!(
                (leader.value.as_slice(), leader.id),
                (&b"10.0.0.1"[..], elector.candidate_id().to_string())
            );
            assert_eq!(elector.candidates("e").unwrap().len(), 1);
            assert!(leadership.lost_within(Duration::from_millis(1)).unwrap().is_none());
            leadership.fencing_token()
        })
        .unwrap();
    assert!(elector.leader("e").unwrap().is_none(), "it has resigned");
    let next = elector.campaign("e").unwrap();
    assert!(next.fencing_token() > token);
    next.resign().unwrap();
    elector.close().unwrap();
    // The iterator ends, after the changes that were in time.
    assert!(leaders.all(|leader| leader.is_ok()));
    assert!(matches!(elector.campaign("e"), Err(Error::Closed)));
}

#[test]
fn a_campaign_ends_after_its_time_and_leaves_no_entry() {
    let store = MemoryStore::new();
    let (one, two) = (elector(&store), elector(&store));
    let leadership = one.campaign("e").unwrap();
    assert!(two.try_campaign("e").unwrap().is_none());
    let begun = Instant::now();
    assert!(two.campaign_within("e", Duration::from_millis(50)).unwrap().is_none());
    assert!(begun.elapsed() >= Duration::from_millis(50));
    assert_eq!(store.entries("e").len(), 1);
    thread::scope(|scope| {
        let waiting = scope.spawn(|| two.campaign_within("e", TEST_TIMEOUT).unwrap());
        until("it waits", || store.entries("e").len() == 2);
        leadership.resign().unwrap();
        assert!(waiting.join().unwrap().unwrap().is_leader());
    });
}

/// A campaign has the value and the patience of its options, and leaves no entry behind when its patience is over.
#[test]
fn a_campaign_has_options_of_its_own() {
    let store = MemoryStore::new();
    let (one, two) = (elector(&store), elector(&store));
    let grace_period = Duration::from_millis(500);
    let options = CampaignOptions::new().with_value("of one").with_grace_period(grace_period);
    let leadership = one.campaign_with("e", options).unwrap().unwrap();
    assert_eq!(two.leader("e").unwrap().unwrap().value, b"of one");
    assert_eq!(leadership.grace_period(), grace_period);
    for patience in [Patience::NoWait, Patience::AtMost(Duration::from_millis(1))] {
        let options = CampaignOptions::new().with_patience(patience);
        assert!(two.campaign_with("e", options).unwrap().is_none());
        assert_eq!(store.entries("e").len(), 1);
    }
    let illegal = CampaignOptions::new().with_grace_period(Duration::ZERO);
    assert!(matches!(two.campaign_with("e", illegal), Err(Error::InvalidConfig(_))));
}

/// A value holds for the candidate that takes part, and for those that enter later.
#[test]
fn a_value_is_set_before_and_while_a_candidate_takes_part() {
    let store = MemoryStore::new();
    let (one, two) = (elector(&store), elector(&store));
    let value = || two.leader("e").unwrap().unwrap().value;
    one.set_value("e", "before").unwrap();
    let leadership = one.campaign("e").unwrap();
    assert_eq!(value(), b"before");
    one.set_value("e", "while it leads").unwrap();
    assert_eq!(value(), b"while it leads");
    leadership.resign().unwrap();
    let leadership = one.campaign("e").unwrap();
    assert_eq!(value(), b"while it leads");
    leadership.set_value("of this term").unwrap();
    assert_eq!(value(), b"of this term");
    assert!(matches!(one.set_value("e", vec![0; 65 * 1024]), Err(Error::ValueTooLarge { .. })));
}

#[test]
fn an_elector_can_be_examined() {
    let elector = Elector::connect_checked("memory:examined").unwrap();
    elector.check().unwrap();
    let leadership = elector.campaign("e").unwrap();
    assert_eq!(elector.leadership("e").unwrap().fencing_token(), leadership.fencing_token());
    assert!(elector.leadership("other").is_none());
    assert_eq!(elector.elections().unwrap(), [ElectionName::new("e").unwrap()]);
    let diagnoses = elector.diagnose().unwrap();
    assert!(!diagnoses.is_empty() && diagnoses.iter().all(|diagnosis| diagnosis.level != Level::Problem));
    // Another elector shares its threads.
    let engine = elector.engine().unwrap();
    let other = Elector::connect_with("memory:examined", Config::new().with_engine(engine)).unwrap();
    assert!(other.try_campaign("e").unwrap().is_none());
    leadership.resign().unwrap();
    assert!(elector.leadership("e").is_none());
    elector.close().unwrap();
    assert!(matches!(elector.check(), Err(Error::Closed)));
    assert!(matches!(Elector::connect_checked("memory:examined?ttl=1ms"), Err(Error::InvalidConfig(_))));
}

/// A supervisor ends the session of a process that is dead: the next candidate leads long before the TTL.
#[test]
fn a_session_can_be_ended_for_a_dead_process() {
    let store = MemoryStore::new();
    let elector = || elector_with(&store, |config| config.with_ttl(TEST_TIMEOUT * 4)).0;
    let (dead, supervisor) = (elector(), elector());
    let leadership = dead.campaign("e").unwrap();
    let record = leadership.session_record().unwrap().unwrap();
    assert!(supervisor.try_campaign("e").unwrap().is_none());
    supervisor.end_session(&record).unwrap();
    assert!(supervisor.campaign("e").unwrap().is_leader());
    assert!(leadership.lost_within(TEST_TIMEOUT).unwrap().is_some());
}

/// Bounded shutdowns say what is left in the store. It is given back once the store answers.
#[test]
fn a_bounded_shutdown_says_what_is_left() {
    let store = MemoryStore::new();
    let (elector, link) = elector_with(&store, |config| {
        config.with_ttl(Duration::from_secs(60)).with_request_timeout(Duration::from_millis(200))
    });
    let leadership = elector.campaign("e").unwrap();
    assert_eq!(leadership.resign_within(TEST_TIMEOUT).unwrap(), Shutdown::CONFIRMED);
    assert!(store.entries("e").is_empty());

    let leadership = elector.campaign("e").unwrap();
    link.cut();
    let left = leadership.resign_within(Duration::ZERO).unwrap();
    assert!(!left.confirmed && !left.expires_in.is_zero() && left.expires_in < Duration::MAX, "{left:?}");
    let left = elector.close_within(Duration::ZERO).unwrap();
    assert!(!left.confirmed && !left.expires_in.is_zero() && left.expires_in < Duration::MAX, "{left:?}");
    link.heal();
    until("the entry is removed", || store.entries("e").is_empty());
    assert_eq!(elector.close_within(TEST_TIMEOUT).unwrap(), Shutdown::CONFIRMED);
}

#[test]
fn a_child_ends_with_its_parent() {
    let store = MemoryStore::new();
    let (one, two) = (elector(&store), elector(&store));
    let parent = one.campaign("group").unwrap();
    let child = one.campaign("e").unwrap().with_parent(parent);
    child.ensure().unwrap();
    two.request_resign("group").unwrap().unwrap();
    assert_eq!(child.lost().unwrap(), LossReason::ParentLost);
    assert!(matches!(child.resign(), Err(Error::Lost(lost)) if lost.reason == LossReason::ParentLost));
    // The parent is given back after its child.
    assert!(two.campaign("group").unwrap().is_leader());
}

#[test]
fn work_can_have_a_longer_grace_period() {
    let store = MemoryStore::new();
    let elector = elector(&store);
    let leadership = elector.campaign("e").unwrap();
    let longer = leadership.grace_period() + Duration::from_millis(100);
    let kept = leadership.run_with_grace_period(longer, |handle| handle.grace_period()).unwrap();
    assert_eq!(kept, longer);
    for illegal in [Duration::ZERO, TTL] {
        let refused = leadership.run_with_grace_period(illegal, |_| panic!("the work has begun"));
        assert!(matches!(refused, Err::<(), _>(Error::InvalidConfig(_))));
    }
    leadership.resign().unwrap();
}

/// An observer on another thread sees each change, and ends when the elector is closed.
#[test]
fn an_observer_on_another_thread_ends_with_its_elector() {
    let store = MemoryStore::new();
    let (one, observer) = (elector(&store), elector(&store));
    let leaders = observer.observe("e");
    let (sender, seen) = mpsc::channel();
    let observing = thread::spawn(move || {
        for leader in leaders {
            sender.send(leader.unwrap().and_then(|leader| leader.token)).unwrap();
        }
    });
    assert_eq!(seen.recv_timeout(TEST_TIMEOUT).unwrap(), None);
    let leadership = one.campaign("e").unwrap();
    assert_eq!(seen.recv_timeout(TEST_TIMEOUT).unwrap(), Some(leadership.fencing_token()));
    leadership.resign().unwrap();
    assert_eq!(seen.recv_timeout(TEST_TIMEOUT).unwrap(), None);
    observer.close().unwrap();
    observing.join().unwrap();
}

/// The handle denies leadership before the deadline, work that stops then is no overrun, and its output is dropped.
#[test]
fn work_that_asks_its_handle_stops_in_time() {
    let overruns = Arc::new(AtomicUsize::new(0));
    let counted = Arc::clone(&overruns);
    let store = MemoryStore::new();
    let (elector, link) = elector_with(&store, |config| {
        config.with_on_overrun(OnOverrun::Hook(Arc::new(move |_| _ = counted.fetch_add(1, SeqCst))))
    });
    let mut stopped_before = None;
    let outcome = elector.run("e", |leadership| {
        link.cut();
        let deadline = leadership.deadline();
        let reason = leadership.lost_within(TEST_TIMEOUT).unwrap();
        assert_eq!((reason, leadership.loss()), (Some(LossReason::Deadline), Some(LossReason::Deadline)));
        assert_eq!(leadership.lost().unwrap(), LossReason::Deadline);
        stopped_before = Some((BootClock.now(), deadline));
    });
    assert!(matches!(&outcome, Err(Error::Lost(lost)) if lost.reason == LossReason::Deadline), "{outcome:?}");
    let (stopped, deadline) = stopped_before.unwrap();
    assert!(stopped < deadline, "it stopped {:?} too late", stopped.since(deadline));
    until("the deadline has passed", || BootClock.now() > deadline + Duration::from_millis(100));
    assert_eq!(overruns.load(SeqCst), 0);
}

/// Work that ignores the loss cannot be stopped: it is reported at the deadline, before another candidate leads.
#[test]
fn work_that_ignores_the_loss_is_reported_as_an_overrun() {
    let (report, reported) = mpsc::channel();
    let report = Mutex::new(report);
    let store = MemoryStore::new();
    let (one, link) = elector_with(&store, |config| {
        config.with_on_overrun(OnOverrun::Hook(Arc::new(move |overrun| {
            report.lock().unwrap().send((overrun.token, BootClock.now())).unwrap();
        })))
    });
    let two = elector(&store);
    let leadership = one.campaign("e").unwrap();
    thread::scope(|scope| {
        let next = scope.spawn(|| two.campaign("e").unwrap());
        let output = leadership.run(|handle| {
            link.cut();
            let deadline = handle.deadline();
            let (token, at) = reported.recv_timeout(TEST_TIMEOUT).expect("it was not reported");
            assert_eq!(token, handle.fencing_token());
            assert!(at >= deadline && !handle.is_leader());
            "its output"
        });
        assert_eq!(output.unwrap(), "its output");
        assert!(next.join().unwrap().fencing_token() > leadership.fencing_token());
    });
    assert!(
        matches!(leadership.run(|_| ()), Err(Error::Lost(_))),
        "work begins under a leadership that is over"
    );
}

/// After a resign request the entry stays until the work has returned.
#[test]
fn the_entry_stays_while_work_runs() {
    let store = MemoryStore::new();
    let (one, two) = (elector(&store), elector(&store));
    let outcome = one.run("e", |leadership| {
        two.request_resign("e").unwrap().unwrap();
        assert_eq!(leadership.lost().unwrap(), LossReason::ResignRequested);
        assert!(
            two.campaign_within("e", Duration::from_millis(100)).unwrap().is_none(),
            "it leads beside the work"
        );
        assert_eq!(store.entries("e")[0].revision, leadership.fencing_token().get());
        // It would wait for this work.
        one.close().unwrap();
    });
    assert!(
        matches!(&outcome, Err(Error::Lost(lost)) if lost.reason == LossReason::ResignRequested),
        "{outcome:?}"
    );
    assert!(two.campaign("e").unwrap().is_leader());
}

#[test]
fn work_that_panics_gives_leadership_back() {
    let store = MemoryStore::new();
    let (one, two) = (elector(&store), elector(&store));
    let work = thread::scope(|scope| scope.spawn(|| one.run("e", |_| panic!("a bug in the work"))).join());
    assert!(work.is_err());
    assert!(two.campaign("e").unwrap().is_leader());
}

/// Work is called in every term, also after it has failed or panicked, until the elector is closed.
#[test]
fn work_is_called_in_every_term_until_the_elector_is_closed() {
    let store = MemoryStore::new();
    let (one, _) = elector_with(&store, |config| {
        let backoff = Backoff { min: Duration::from_millis(1), max: Duration::from_millis(2) };
        config.with_work_backoff(backoff)
    });
    let two = elector(&store);
    let (sender, begun) = mpsc::channel();
    thread::scope(|scope| {
        let serving = scope.spawn(|| {
            let mut terms = 0;
            one.run_while_leader("e", |leadership| {
                sender.send(leadership.fencing_token())?;
                terms += 1;
                match terms {
                    1 => Err("it fails".into()),
                    2 => panic!("a bug in the work"),
                    _ => leadership.lost().map(drop).map_err(Into::into),
                }
            })
        });
        let tokens: Vec<_> = (0..3).map(|_| begun.recv_timeout(TEST_TIMEOUT).unwrap()).collect();
        assert!(tokens.is_sorted_by(|earlier, later| earlier < later), "{tokens:?}");
        two.request_resign("e").unwrap().unwrap();
        assert!(begun.recv_timeout(TEST_TIMEOUT).unwrap() > tokens[2]);
        one.close().unwrap();
        serving.join().unwrap().unwrap();
    });
    one.run_while_leader("e", |_| panic!("the elector is closed")).unwrap();
}

/// A campaign that waits, and the pause after failed work, end when the elector is closed.
#[test]
fn closing_ends_a_campaign_and_a_pause() {
    let store = MemoryStore::new();
    let (one, _) = elector_with(&store, |config| {
        let hour = Duration::from_secs(60 * 60);
        config.with_work_backoff(Backoff { min: hour, max: hour })
    });
    let two = elector(&store);
    let _leadership = two.campaign("held").unwrap();
    let (sender, begun) = mpsc::channel();
    thread::scope(|scope| {
        let waiting = scope.spawn(|| one.run_while_leader("held", |_| panic!("two candidates lead")));
        let pausing = scope.spawn(|| {
            one.run_while_leader("e", |_| {
                sender.send(())?;
                Err("it fails".into())
            })
        });
        begun.recv_timeout(TEST_TIMEOUT).unwrap();
        until("the pause begins", || store.entries("e").is_empty());
        until("the candidate waits", || store.entries("held").len() == 2);
        one.close().unwrap();
        waiting.join().unwrap().unwrap();
        pausing.join().unwrap().unwrap();
    });
    assert_eq!(store.entries("held").len(), 1);
}

/// Inside async tasks the calls block their worker, and return.
#[test]
fn calls_inside_async_tasks_return() {
    let store = MemoryStore::new();
    let lead = |elector: &Elector| elector.run("e", |leadership| leadership.is_leader()).unwrap();
    let (one, elector) = (elector(&store), elector(&store));
    tokio::runtime::Builder::new_current_thread().build().unwrap().block_on(async { assert!(lead(&one)) });
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).build().unwrap();
    let task = runtime.spawn(async move { (0..200).all(|_| lead(&elector)) });
    assert!(runtime.block_on(task).unwrap());
    smol::block_on(async { assert!(lead(&one)) });
    futures::executor::block_on(async { assert!(lead(&one)) });
}

/// A backend that makes a blocking call on the engine thread.
#[derive(Debug)]
struct Reentrant {
    inner: MemoryBackend,
    elector: OnceLock<Elector>,
    refused: Mutex<Vec<Error>>,
}

impl Reentrant {
    fn make_blocking_calls(&self) {
        let elector = self.elector.get().unwrap();
        let mut refused = self.refused.lock().unwrap();
        refused.extend(elector.leader("e").err());
        refused.extend(elector.campaign("e").err());
        refused.extend(elector.campaign_with("e", CampaignOptions::new()).err());
        refused.extend(elector.set_value("e", "value").err());
        refused.extend(elector.elections().err());
        refused.extend(elector.check().err());
        refused.extend(elector.end_session(&SessionRecord::new("7", "c", 7)).err());
        refused.extend(elector.diagnose().err());
        refused.extend(elector.run_while_leader("e", |_| Ok(())).err());
        refused.extend(elector.close().err());
        refused.extend(elector.close_within(Duration::ZERO).err());
        refused.extend(Elector::connect("memory:x").err());
        refused.extend(Elector::connect_checked("memory:x").err());
        let mut leaders = elector.observe("e");
        refused.extend(leaders.next().unwrap().err());
        assert!(leaders.next().is_none());
    }
}

#[async_trait::async_trait]
impl Backend for Reentrant {
    fn capabilities(&self) -> Capabilities {
        self.inner.capabilities()
    }
    async fn open_session(&self, options: &SessionOptions) -> Result<Box<dyn BackendSession>, BackendError> {
        self.inner.open_session(options).await
    }
    async fn candidates(&self, election: &ElectionName) -> Result<Vec<Candidate>, BackendError> {
        self.make_blocking_calls();
        self.inner.candidates(election).await
    }
    async fn observe(&self, election: &ElectionName) -> Result<Observation, BackendError> {
        self.inner.observe(election).await
    }
}

/// A blocking call on an engine thread would wait for itself, and returns an error instead.
#[test]
fn a_blocking_call_on_an_engine_thread_is_refused() {
    let backend = Arc::new(Reentrant {
        inner: MemoryStore::new().backend(),
        elector: OnceLock::new(),
        refused: Mutex::default(),
    });
    let elector = StoreElector::new(Arc::clone(&backend) as Arc<dyn Backend>, Config::new()).unwrap();
    let elector = backend.elector.get_or_init(|| Elector::new(elector));
    assert!(elector.candidates("e").unwrap().is_empty());
    let refused = backend.refused.lock().unwrap();
    assert_eq!(refused.len(), 14);
    for error in refused.iter() {
        assert!(
            matches!(error, Error::OnEngineThread)
                && error.to_string().contains("on a thread of the application")
        );
    }
}
