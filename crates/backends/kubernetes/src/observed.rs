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

    /// A quorum's answer to a read that was sent when `seen_before` was the latest version. Returns whether it was taken: an answer is not
    /// that was overtaken by a watch or by another request, nor one with a lower version of the same object.
    pub(crate) fn read(&mut self, found: Option<&Record>, seen_before: u64, now: BootInstant) -> bool {
        let is_overtaken = self.version() != seen_before;
        match (found, &self.latest) {
            (None, _) if is_overtaken => return false,
            (None, _) => self.absent(now),
            // Another object may have a lower version, once the store was wiped.
            (Some(record), Some((latest, _))) if !is_overtaken && record.uid() != latest.uid() => {
                self.absent(now);
                return self.present(record, now);
            }
            (Some(record), _) => return self.present(record, now),
        }
        true
    }

    /// A watch or the answer to a write shows the Lease. Returns whether that is news: a lower version than one that was seen is ignored,
    /// because watch caches lag, and there are several API servers.
    pub(crate) fn present(&mut self, record: &Record, now: BootInstant) -> bool {
        if record.version() < self.version() {
            return false;
        }
        match self.latest.take() {
            Some((latest, since)) if latest.uid() == record.uid() => {
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

    fn absent(&mut self, now: BootInstant) {
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

#[cfg(test)]
mod tests {
    use k8s_openapi::api::coordination::v1::Lease;
    use serde_json::json;

    use super::*;

    fn record(uid: &str, version: u64, holder: &str, renewed: u64) -> Record {
        let lease = json!({
            "apiVersion": "coordination.k8s.io/v1", "kind": "Lease",
            "metadata": { "name": "e", "uid": uid, "resourceVersion": version.to_string() },
            "spec": {
                "holderIdentity": holder, "leaseDurationSeconds": 10,
                "renewTime": format!("2023-11-14T22:13:20.{renewed:06}Z"),
            },
        });
        Record::new(serde_json::from_value::<Lease>(lease).unwrap()).unwrap()
    }

    fn at(seconds: u64) -> BootInstant {
        BootInstant::from_nanos(seconds * 1_000_000_000)
    }

    /// Hazard K5: an answer that was overtaken says nothing of the present, neither that the Lease is absent nor that it is another object.
    #[test]
    fn an_answer_that_was_overtaken_is_ignored() {
        let mut observed = Observed::new(0.1);
        let (old, new) = (record("1", 4, "a", 1), record("2", 7, "b", 2));
        assert!(observed.present(&new, at(1)));
        for late in [None, Some(&old)] {
            assert!(!observed.read(late, 0, at(2)));
            assert_eq!((observed.latest().unwrap().uid(), observed.free_at()), ("2", at(12)));
        }
    }

    /// A store that was wiped begins again with lower versions; a read shows the new object, and a watch does not.
    #[test]
    fn another_object_may_have_a_lower_version() {
        let mut observed = Observed::new(0.1);
        observed.read(Some(&record("1", 900, "a", 1)), 0, at(1));
        let wiped = record("2", 3, "", 2);
        assert!(!observed.present(&wiped, at(5)));
        assert!(observed.read(Some(&wiped), 900, at(6)));
        assert_eq!(
            (observed.version(), observed.free_at()),
            (3, at(17)),
            "the holder of the first may lead still"
        );
        // The same object never has.
        assert!(!observed.read(Some(&record("2", 2, "", 2)), 3, at(7)));
    }

    #[test]
    fn nothing_is_kept_of_a_lease_that_is_gone() {
        let sightings = Sightings::new(Arc::new(tenure_core::BootClock), 0.0);
        sightings.with("e", |observed, now| observed.present(&record("1", 4, "", 1), now));
        assert_eq!(lock(&sightings.leases).len(), 1);
        sightings.with("e", |observed, now| observed.read(None, 4, now));
        assert_eq!(lock(&sightings.leases).len(), 0);
    }
}
