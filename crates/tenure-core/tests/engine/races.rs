//! What happens between two steps that look like one.

use std::{
    sync::{Arc, Mutex},
    time::Duration,
};

use async_trait::async_trait;
use futures::FutureExt;
use tenure_core::{Clock, Config, Elector, Moment, SimClock, StoreElector, memory::MemoryStore};

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
    fn now(&self) -> Moment {
        let meanwhile = self.meanwhile.lock().unwrap().take();
        if let Some(meanwhile) = meanwhile {
            meanwhile();
        }
        self.clock.now()
    }

    fn wall(&self) -> Duration {
        self.clock.wall()
    }

    async fn sleep_until(&self, moment: Moment) {
        self.clock.sleep_until(moment).await;
    }

    fn wants_watchdog_thread(&self) -> bool {
        self.clock.wants_watchdog_thread()
    }
}

/// Hazards G5, G9: the guard is dropped while another thread begins its work, between the check and
/// the first poll; the entry stays until that work is over.
#[test]
fn work_that_begins_while_its_guard_is_dropped_holds_the_entry() {
    let simulated = tokio::runtime::Builder::new_current_thread().enable_time().start_paused(true).build();
    let runtime = Arc::new(simulated.unwrap());
    let store = MemoryStore::new();
    // So that the clock can be read here; the tasks run only under `block_on`.
    let _entered = runtime.enter();
    let clock = Arc::new(Preempting { clock: SimClock::new(), meanwhile: Mutex::default() });
    let elector =
        StoreElector::with_clock(Arc::new(store.backend()), Config::new().with_ttl(TTL), clock.clone())
            .unwrap();
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
