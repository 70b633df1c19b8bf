//! What happens between two steps that look like one.

use std::{
    sync::{Arc, Mutex},
    time::Duration,
};

use async_trait::async_trait;
use futures::FutureExt;
use tenure_core::{
    BootInstant, Clock, Config, Elector, LossReason, SimClock, StoreElector, memory::MemoryStore,
};
use tokio::runtime::Runtime;

use crate::host::{TTL, pass, until};

type Meanwhile = Box<dyn FnOnce() + Send>;

/// A clock during whose reading something happens, once: its reader's thread was preempted there.
struct Preempting {
    clock: SimClock,
    meanwhile: Mutex<Option<Meanwhile>>,
}

impl std::fmt::Debug for Preempting {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        self.clock.fmt(f)
    }
}

#[async_trait]
impl Clock for Preempting {
    fn now(&self) -> BootInstant {
        let meanwhile = self.meanwhile.lock().unwrap().take();
        if let Some(meanwhile) = meanwhile {
            meanwhile();
        }
        self.clock.now()
    }

    fn wall(&self) -> Duration {
        self.clock.wall()
    }

    async fn sleep_until(&self, moment: BootInstant) {
        self.clock.sleep_until(moment).await;
    }
}

/// A runtime whose tasks run only under `block_on`, and an elector whose clock can be read outside of it.
fn stage(store: &MemoryStore) -> (Arc<Runtime>, Arc<Preempting>, StoreElector) {
    let simulated = tokio::runtime::Builder::new_current_thread().enable_time().start_paused(true).build();
    let runtime = Arc::new(simulated.unwrap());
    let _entered = runtime.enter();
    let clock = Arc::new(Preempting { clock: SimClock::new(), meanwhile: Mutex::default() });
    let config = Config::new().with_ttl(TTL);
    let elector = StoreElector::with_clock(Arc::new(store.backend()), config, clock.clone()).unwrap();
    (Arc::clone(&runtime), clock, elector)
}

/// Hazards G5, G9: the guard is dropped while another thread begins its work, between the check and
/// the first poll; the entry stays until that work is over.
#[test]
fn work_that_begins_while_its_guard_is_dropped_holds_the_entry() {
    let store = MemoryStore::new();
    let (runtime, clock, elector) = stage(&store);
    let _entered = runtime.enter();
    let leadership = runtime.block_on(elector.campaign("e")).unwrap();
    let (handle, token) = (leadership.handle(), leadership.fencing_token().get());
    let others = Arc::clone(&runtime);
    *clock.meanwhile.lock().unwrap() = Some(Box::new(move || {
        drop(leadership);
        others.block_on(pass(Duration::from_secs(1)));
    }));

    let stands = || store.entries("e").iter().any(|entry| entry.revision == token);
    let outcome = handle.run(async { stands() }).now_or_never();
    assert!(clock.meanwhile.lock().unwrap().is_none(), "the guard was dropped meanwhile");
    assert_ne!(outcome, Some(Ok(false)), "work began without an entry");
    runtime.block_on(until("the entry is gone", || !stands()));
}

/// Hazard G14: the elector is closed while the leadership is about to be given back, and somebody is told so.
/// Nobody is told another reason afterwards.
#[test]
fn a_reason_that_was_told_stays() {
    let store = MemoryStore::new();
    let (runtime, clock, elector) = stage(&store);
    let _entered = runtime.enter();
    let leadership = runtime.block_on(elector.campaign("e")).unwrap();
    let (handle, others) = (leadership.handle(), Arc::clone(&runtime));
    *clock.meanwhile.lock().unwrap() = Some(Box::new(move || {
        let closing = tokio::time::timeout(Duration::from_secs(1), elector.close());
        others.block_on(closing).expect_err("the guard is still held");
        assert_eq!(handle.loss(), Some(LossReason::Closed));
    }));

    leadership.begin_resign();
    assert!(clock.meanwhile.lock().unwrap().is_none(), "the elector was closed meanwhile");
    assert_eq!(leadership.loss(), Some(LossReason::Closed));
    assert!(runtime.block_on(leadership.resign()).is_err());
}
