//! The engine: every safety rule, once, for every store.
//!
//! | file | what |
//! |---|---|
//! | `window` | how long leadership may be assumed |
//! | `session` | what all elections of an elector share, and how it ends |
//! | `opener` | how an elector gets its session |
//! | `keeper` | heartbeats, their confirmation, and closing |
//! | `entry` | one candidate's entry, from entering to leading or leaving |
//! | `leading` | all who lead under one session, until they have been given back |
//! | `partings` | watches on their entries, where a backend watches each by itself |
//! | `graves` | requests that were withdrawn without an answer |
//! | `term` | one leadership, and the work done under it |
//! | `works` | how much work that is, and whether more can begin |
//! | `watchdog` | deadlines on time, whatever the runtime does |
//! | `examine` | what an operator is told of the store, the machine and the settings |
//! | `elector` | the [`Elector`](crate::Elector) over all of it |

mod elector;
mod entry;
mod examine;
mod graves;
mod keeper;
mod leading;
mod opener;
mod partings;
pub(crate) mod retry;
mod session;
pub(crate) mod term;
mod watchdog;
mod window;
mod works;

#[cfg(all(test, any(tenure_loom, tenure_shuttle)))]
mod races;

use std::{
    collections::HashMap,
    sync::{Arc, PoisonError, Weak},
};

use tokio::sync::Semaphore;
use tokio_util::{sync::CancellationToken, task::TaskTracker};

pub use elector::StoreElector;

use self::{term::Term, watchdog::Watchdog};
use crate::{Clock, Config, ElectionName, spi::Backend, status::StatusCell, sync::Mutex};

/// What the parts of one elector share.
#[derive(Debug)]
pub(crate) struct Shared {
    pub(crate) backend: Arc<dyn Backend>,
    pub(crate) config: Config,
    /// The configured value, as all candidates share it.
    value: Arc<[u8]>,
    pub(crate) clock: Arc<dyn Clock>,
    pub(crate) watchdog: Watchdog,
    pub(crate) status: StatusCell,
    /// Cancelled by `close`: everything ends.
    pub(crate) closing: CancellationToken,
    /// Cancelled when the elector is dropped: the session ends once nothing stands on it.
    pub(crate) abandoned: CancellationToken,
    pub(crate) tasks: TaskTracker,
    elections: Mutex<HashMap<ElectionName, Own>>,
}

/// This elector's own part in an election.
#[derive(Debug, Default)]
struct Own {
    /// The one place for a candidate that it has there.
    slot: Weak<Semaphore>,
    /// Its latest term.
    term: Weak<Term>,
}

impl Own {
    fn is_over(&self) -> bool {
        self.slot.strong_count() == 0 && self.term.strong_count() == 0
    }
}

impl Shared {
    fn new(backend: Arc<dyn Backend>, config: Config, clock: Arc<dyn Clock>) -> Arc<Self> {
        Arc::new(Self {
            backend,
            value: config.value.as_slice().into(),
            config,
            watchdog: Watchdog::new(Arc::clone(&clock)),
            clock,
            status: StatusCell::default(),
            closing: CancellationToken::new(),
            abandoned: CancellationToken::new(),
            tasks: TaskTracker::new(),
            elections: Mutex::default(),
        })
    }

    /// The one place for a candidate that this elector has in `election`.
    fn slot(&self, election: &ElectionName) -> Arc<Semaphore> {
        self.own(election, |own| {
            own.slot.upgrade().unwrap_or_else(|| {
                let slot = Arc::new(Semaphore::new(1));
                own.slot = Arc::downgrade(&slot);
                slot
            })
        })
    }

    /// Remembers `term` as the one in its election.
    fn leads(&self, term: &Arc<Term>) {
        self.own(term.election(), |own| own.term = Arc::downgrade(term));
    }

    /// The latest term in `election`; it may be over.
    fn term(&self, election: &ElectionName) -> Option<Arc<Term>> {
        let elections = self.elections.lock().unwrap_or_else(PoisonError::into_inner);
        elections.get(election)?.term.upgrade()
    }

    fn own<T>(&self, election: &ElectionName, change: impl FnOnce(&mut Own) -> T) -> T {
        let mut elections = self.elections.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(own) = elections.get_mut(election) {
            return change(own);
        }
        // Not each time: with thousands of them that is most of the work.
        if elections.len() == elections.capacity() {
            elections.retain(|_, own| !own.is_over());
        }
        change(elections.entry(election.clone()).or_default())
    }
}
