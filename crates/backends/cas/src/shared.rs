//! What the sessions, observations and campaigns of one elector share.

use std::{
    collections::BTreeMap,
    sync::{Arc, Mutex, OnceLock},
};

use tenure_core::{BootInstant, Clock, internal::lock};
use tokio::time::Instant;

use crate::{
    client::Client,
    record::SessionId,
    settings::CasSettings,
    settle::Settled,
    store::{CasStore, Epoch, Version},
    timers::Timers,
};

#[derive(Debug)]
pub(crate) struct Shared<S> {
    pub(crate) client: Client<S>,
    pub(crate) settings: CasSettings,
    /// The engine's clock. The first one is kept, so that all timers are of one clock.
    clock: OnceLock<Arc<dyn Clock>>,
    /// By the engine's clock. They decide when a session is ended.
    timers: Mutex<Timers>,
    /// By tokio's clock, which a backend without a session has. They decide what observers are shown, and nothing else.
    sightings: Mutex<Timers>,
    origin: OnceLock<Instant>,
    /// The ended sessions that the last collection of garbage has found.
    pub(crate) ended_before: Mutex<BTreeMap<SessionId, Version>>,
    /// Whether the store has been shown to check versions.
    pub(crate) is_probed: OnceLock<()>,
    pub(crate) settled: tokio::sync::Mutex<Settled>,
    /// Locked while a session is looked at, one of them for each.
    pub(crate) looks: [tokio::sync::Mutex<()>; 64],
}

impl<S: CasStore> Shared<S> {
    pub(crate) fn new(store: S, settings: CasSettings) -> Self {
        Self {
            client: Client::new(store, settings.request_timeout, settings.allows_unknown_epochs),
            settings,
            clock: OnceLock::new(),
            timers: Mutex::new(Timers::new(0.0)),
            sightings: Mutex::new(Timers::new(0.0)),
            origin: OnceLock::new(),
            ended_before: Mutex::default(),
            is_probed: OnceLock::new(),
            settled: tokio::sync::Mutex::default(),
            looks: std::array::from_fn(|_| tokio::sync::Mutex::default()),
        }
    }

    /// The clock of the timers, given the one of a session that is opened.
    pub(crate) fn clock(&self, given: &Arc<dyn Clock>, drift: f64) -> Arc<dyn Clock> {
        lock(&self.timers).raise_drift(drift);
        Arc::clone(self.clock.get_or_init(|| Arc::clone(given)))
    }

    /// The timers in this epoch. All start again if it is a new one. Nothing happens, and `None` is returned, if it is over: what was
    /// read in it may be lost.
    pub(crate) fn with_timers<T>(&self, epoch: Epoch, with: impl FnOnce(&mut Timers) -> T) -> Option<T> {
        let mut timers = lock(&self.timers);
        // Every caller has a clock, of which this is the first.
        let now = self.clock.get().map_or(BootInstant::NEVER, |clock| clock.now());
        timers.start_epoch(epoch, now).then(|| with(&mut timers))
    }

    /// The sightings of observers, and the instant to give them.
    pub(crate) fn with_sightings<T>(&self, with: impl FnOnce(&mut Timers, BootInstant) -> T) -> T {
        let origin = *self.origin.get_or_init(Instant::now);
        let elapsed = u64::try_from(origin.elapsed().as_nanos()).unwrap_or(u64::MAX);
        with(&mut lock(&self.sightings), BootInstant::from_nanos(elapsed))
    }
}
