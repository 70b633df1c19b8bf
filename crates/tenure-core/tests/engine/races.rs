//! Races between two steps that look atomic.

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

use crate::host::{TTL, sleep, until};

type Interruption = Box<dyn FnOnce() + Send>;

/// A clock that runs a function once while it is read, as if the reading thread were preempted there.
struct PreemptingClock {
    clock: SimClock,
    interruption: Mutex<Option<Interruption>>,
}

impl std::fmt::Debug for PreemptingClock {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        self.clock.fmt(f)
    }
}

#[async_trait]
impl Clock for PreemptingClock {
    fn now(&self) -> BootInstant {
        let interruption = self.interruption.lock().unwrap().take();
        if let Some(interruption) = interruption {
            interruption();
        }
        self.clock.now()
    }

    fn wall(&self) -> Duration {
        self.clock.wall()
    }

    async fn sleep_until(&self, deadline: BootInstant) {
        self.clock.sleep_until(deadline).await;
    }
}

/// A runtime whose tasks run only under `block_on`, and an elector whose clock can be read outside of it.
fn setup(store: &MemoryStore) -> (Arc<Runtime>, Arc<PreemptingClock>, StoreElector) {
    let simulated = tokio::runtime::Builder::new_current_thread().enable_time().start_paused(true).build();
    let runtime = Arc::new(simulated.unwrap());
    let _entered = runtime.enter();
    let clock = Arc::new(PreemptingClock { clock: SimClock::new(), interruption: Mutex::default() });
    let config = Config::new().with_ttl(TTL);
    let elector = StoreElector::with_clock(Arc::new(store.backend()), config, clock.clone()).unwrap();
    (Arc::clone(&runtime), clock, elector)
}

/// Hazards G5, G9: the guard is dropped while another thread starts work, between the check and the first poll. The entry stays
/// until that work has stopped.
#[test]
fn work_that_begins_while_its_guard_is_dropped_holds_the_entry() {
    let store = MemoryStore::new();
    let (runtime, clock, elector) = setup(&store);
    let _entered = runtime.enter();
    let leadership = runtime.block_on(elector.campaign("e")).unwrap();
    let (handle, token) = (leadership.handle(), leadership.fencing_token().get());
    let others = Arc::clone(&runtime);
    *clock.interruption.lock().unwrap() = Some(Box::new(move || {
        drop(leadership);
        others.block_on(sleep(Duration::from_secs(1)));
    }));

    let entry_exists = || store.entries("e").iter().any(|entry| entry.revision == token);
    let outcome = handle.run(async { entry_exists() }).now_or_never();
    assert!(clock.interruption.lock().unwrap().is_none(), "the guard was dropped meanwhile");
    assert_ne!(outcome, Some(Ok(false)), "work began without an entry");
    runtime.block_on(until("the entry is gone", || !entry_exists()));
}

/// Hazard G14: the elector is closed while the leadership is about to be resigned, and the loss reason is read then. It does not
/// change afterwards.
#[test]
fn a_reported_loss_reason_stays() {
    let store = MemoryStore::new();
    let (runtime, clock, elector) = setup(&store);
    let _entered = runtime.enter();
    let leadership = runtime.block_on(elector.campaign("e")).unwrap();
    let (handle, others) = (leadership.handle(), Arc::clone(&runtime));
    *clock.interruption.lock().unwrap() = Some(Box::new(move || {
        let closing = tokio::time::timeout(Duration::from_secs(1), elector.close());
        others.block_on(closing).expect_err("the guard is still held");
        assert_eq!(handle.loss(), Some(LossReason::Closed));
    }));

    leadership.request_resign();
    assert!(clock.interruption.lock().unwrap().is_none(), "the elector was closed meanwhile");
    assert_eq!(leadership.loss(), Some(LossReason::Closed));
    assert!(runtime.block_on(leadership.resign()).is_err());
}
