//! What was seen of a Lease, and since when by one's own clock. Rules only: nothing here waits or sends.

use std::{
    collections::BTreeMap,
    fmt,
    sync::{Arc, Mutex},
    time::Duration,
};

use tenure_core::{BootInstant, Candidate, Clock, internal::lock};

use crate::record::Record;

/// The Leases that were seen. They belong to the elector and not to a campaign, so that campaigns which do not wait take over too.
pub(crate) struct Sightings {
    pub(crate) clock: Arc<dyn Clock>,
    drift: f64,
    leases: Mutex<BTreeMap<String, Observed>>,
}

impl Sightings {
    pub(crate) fn new(clock: Arc<dyn Clock>, drift: f64) -> Self {
        Self { clock, drift, leases: Mutex::default() }
    }

    /// What was seen of the Lease, and the present instant.
    pub(crate) fn with<T>(&self, lease: &str, with: impl FnOnce(&mut Observed, BootInstant) -> T) -> T {
        let mut leases = lock(&self.leases);
        let now = self.clock.now();
        let observed = leases.entry(lease.to_owned()).or_insert_with(|| Observed::new(self.drift));
        let result = with(observed, now);
        if observed.is_forgotten(now) {
            leases.remove(lease);
        }
        result
    }
}

impl fmt::Debug for Sightings {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Sightings").field("leases", &lock(&self.leases).len()).finish_non_exhaustive()
    }
}

/// What was seen of one Lease.
#[derive(Debug)]
pub(crate) struct Observed {
    drift: f64,
    /// The latest version, and since when its spec has been seen.
    latest: Option<(Record, BootInstant)>,
    /// Until when a holder whose Lease has vanished may lead.
    reserved_until: Option<BootInstant>,
}

impl Observed {
    fn new(drift: f64) -> Self {
        Self { drift, latest: None, reserved_until: None }
    }

    /// The Lease exists. Returns whether that is news: a lower version of the same object than one that was seen is ignored, because
    /// watch caches lag, and there are several API servers.
    pub(crate) fn present(&mut self, record: &Record, now: BootInstant) -> bool {
        match self.latest.take() {
            Some((latest, since)) if latest.uid() == record.uid() => {
                if record.version() < latest.version() {
                    self.latest = Some((latest, since));
                    return false;
                }
                // The spec and not the version: who patches a label extends nothing.
                let since = if latest.has_same_spec(record) { since } else { now };
                self.latest = Some((record.clone(), since));
            }
            earlier => {
                self.reserve(earlier, now);
                self.latest = Some((record.clone(), now));
            }
        }
        true
    }

    /// The Lease does not exist.
    pub(crate) fn absent(&mut self, now: BootInstant) {
        let earlier = self.latest.take();
        self.reserve(earlier, now);
    }

    /// The object with this uid was deleted in this version.
    pub(crate) fn deleted(&mut self, uid: &str, version: u64, now: BootInstant) {
        if self.latest.as_ref().is_some_and(|(it, _)| it.uid() == uid && it.version() <= version) {
            self.absent(now);
        }
    }

    /// Its holder may have renewed just before the Lease vanished, unseen, and leads until its deadline.
    fn reserve(&mut self, earlier: Option<(Record, BootInstant)>, now: BootInstant) {
        let Some((earlier, _)) = earlier.filter(|(earlier, _)| earlier.holder().is_some()) else { return };
        self.reserved_until = self.reserved_until.max(Some(now + self.lifetime(&earlier)));
    }

    /// For how long a spec has to stand still until its holder leads no more: both clocks may drift, in opposite directions.
    fn lifetime(&self, record: &Record) -> Duration {
        record.duration().mul_f64(1.0 + self.drift)
    }

    /// From when on the Lease may be taken, or created, unless something changes.
    pub(crate) fn free_at(&self) -> BootInstant {
        let reserved = self.reserved_until.unwrap_or(BootInstant::from_nanos(0));
        match &self.latest {
            Some((record, since)) if record.holder().is_some() => {
                (*since + self.lifetime(record)).max(reserved)
            }
            _ => reserved,
        }
    }

    pub(crate) fn latest(&self) -> Option<&Record> {
        self.latest.as_ref().map(|(record, _)| record)
    }

    /// The highest version of the Lease.
    pub(crate) fn version(&self) -> u64 {
        self.latest().map_or(0, Record::version)
    }

    /// The candidate that leads, as far as was seen.
    pub(crate) fn leader(&self, now: BootInstant) -> Option<Candidate> {
        let leads = now < self.free_at();
        self.latest().filter(|_| leads).and_then(Record::candidate)
    }

    /// Whether what was seen makes no difference any more.
    fn is_forgotten(&self, now: BootInstant) -> bool {
        self.latest.is_none() && self.reserved_until.is_none_or(|until| until <= now)
    }
}
