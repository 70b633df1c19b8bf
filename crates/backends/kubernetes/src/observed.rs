//! What was seen of a Lease, and since when by one's own clock. Rules only: nothing here waits or sends.

use std::{
    collections::BTreeMap,
    fmt,
    sync::{Arc, Mutex},
    time::Duration,
};

use tenure_core::{BootInstant, Candidate, Clock, internal::lock};

use crate::record::Record;

/// For how long what was seen of a Lease is kept that nobody uses: so many times its duration, and no less than that time.
const KEPT_FOR_DURATIONS: u32 = 10;
const KEPT_FOR: Duration = Duration::from_secs(600);
/// How many Leases are kept before any is forgotten.
const ALWAYS_KEPT: usize = 100;

/// The Leases that were seen. They belong to the elector and not to a campaign, so that campaigns which do not wait take over too.
pub(crate) struct Sightings {
    clock: Arc<dyn Clock>,
    drift: f64,
    leases: Mutex<Leases>,
}

#[derive(Debug, Default)]
struct Leases {
    by_name: BTreeMap<String, Arc<Sighting>>,
    /// The number that was left when some were forgotten.
    left: usize,
}

/// What was seen of one Lease, for everybody who uses it.
pub(crate) struct Sighting {
    pub(crate) clock: Arc<dyn Clock>,
    observed: Mutex<Observed>,
}

impl Sightings {
    pub(crate) fn new(clock: Arc<dyn Clock>, drift: f64) -> Self {
        Self { clock, drift, leases: Mutex::default() }
    }

    /// What was seen of a Lease. It is kept for as long as somebody has it, and for some time after that.
    pub(crate) fn of(&self, name: &str) -> Arc<Sighting> {
        let mut leases = lock(&self.leases);
        if leases.by_name.len() >= ALWAYS_KEPT.max(leases.left * 2) {
            leases.by_name.retain(|_, sighting| Arc::strong_count(sighting) > 1 || sighting.is_needed());
            leases.left = leases.by_name.len();
        }
        let new = || {
            let observed = Mutex::new(Observed::new(self.drift, self.clock.now()));
            Arc::new(Sighting { clock: Arc::clone(&self.clock), observed })
        };
        Arc::clone(leases.by_name.entry(name.to_owned()).or_insert_with(new))
    }
}

impl Sighting {
    /// What was seen, and the present instant.
    pub(crate) fn with<T>(&self, with: impl FnOnce(&mut Observed, BootInstant) -> T) -> T {
        let mut observed = lock(&self.observed);
        let now = self.clock.now();
        observed.used = now;
        with(&mut observed, now)
    }

    fn is_needed(&self) -> bool {
        lock(&self.observed).is_needed(self.clock.now())
    }
}

impl fmt::Debug for Sightings {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Sightings").field("leases", &lock(&self.leases).by_name.len()).finish_non_exhaustive()
    }
}

impl fmt::Debug for Sighting {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Sighting").field(&lock(&self.observed)).finish()
    }
}

/// What was seen of one Lease.
#[derive(Debug)]
pub(crate) struct Observed {
    drift: f64,
    /// The latest version, and since when its spec has been seen.
    latest: Option<(Record, BootInstant)>,
    /// The uid and the highest version of the object that was deleted last.
    deleted: Option<(String, u64)>,
    /// Until when a holder whose Lease has vanished may lead.
    reserved_until: Option<BootInstant>,
    /// When somebody has used this last.
    used: BootInstant,
}

/// How much was seen. It changes with all news.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Progress {
    /// The highest version, also of an object that was deleted.
    pub(crate) version: u64,
    exists: bool,
}

impl Observed {
    fn new(drift: f64, now: BootInstant) -> Self {
        Self { drift, latest: None, deleted: None, reserved_until: None, used: now }
    }

    /// A quorum's answer to a request that was sent when no more was seen than `before`. Returns whether it was taken: an answer is not
    /// that was overtaken by a watch or by another request, nor one with a lower version of the same object.
    pub(crate) fn answered(&mut self, found: Option<&Record>, before: Progress, now: BootInstant) -> bool {
        let is_overtaken = self.progress() != before;
        let Some(record) = found else {
            if !is_overtaken {
                self.absent(now);
            }
            return !is_overtaken;
        };
        let is_lower = record.version() < self.progress().version;
        let is_known = self.uid() == Some(record.uid());
        // Another object may have a lower version, once the store was wiped; and one that was deleted may be back, from a backup.
        if !is_overtaken && is_lower != is_known {
            if !is_known {
                self.absent(now);
            }
            self.deleted = None;
        }
        self.present(record, now)
    }

    /// A watch shows the Lease. Returns whether that is news: a lower version than one that was seen is ignored, also after a deletion,
    /// because watch caches lag, and there are several API servers.
    pub(crate) fn present(&mut self, record: &Record, now: BootInstant) -> bool {
        let is_deleted = self.deleted.as_ref().is_some_and(|(uid, _)| uid == record.uid());
        if is_deleted || record.version() < self.progress().version {
            return false;
        }
        self.deleted = None;
        match self.latest.take() {
            Some((latest, since)) if latest.uid() == record.uid() => {
                // The spec and not the version: who patches a label extends nothing.
                let since = if latest.has_same_spec(record) { since } else { now };
                self.latest = Some((record.clone(), since));
            }
            earlier => {
                self.reserve(earlier.as_ref(), now);
                self.latest = Some((record.clone(), now));
            }
        }
        true
    }

    fn absent(&mut self, now: BootInstant) {
        if let Some((earlier, since)) = self.latest.take() {
            self.deleted = Some((earlier.uid().to_owned(), earlier.version()));
            self.reserve(Some(&(earlier, since)), now);
        }
    }

    /// The object with this uid was deleted in this version.
    pub(crate) fn deleted(&mut self, uid: &str, version: u64, now: BootInstant) {
        if self.latest.as_ref().is_some_and(|(it, _)| it.uid() == uid && it.version() <= version) {
            self.absent(now);
        }
    }

    /// Its holder may have renewed just before the Lease vanished, unseen, and leads until its deadline.
    fn reserve(&mut self, earlier: Option<&(Record, BootInstant)>, now: BootInstant) {
        let Some((earlier, _)) = earlier.filter(|(earlier, _)| earlier.holder().is_some()) else { return };
        self.reserved_until = self.reserved_until.max(Some(now + self.lifetime(earlier)));
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

    fn uid(&self) -> Option<&str> {
        let deleted = || self.deleted.as_ref().map(|(uid, _)| uid.as_str());
        self.latest().map(Record::uid).or_else(deleted)
    }

    pub(crate) fn progress(&self) -> Progress {
        let deleted = self.deleted.as_ref().map_or(0, |(_, version)| *version);
        Progress { version: self.latest().map_or(deleted, Record::version), exists: self.latest.is_some() }
    }

    /// The candidate that leads, as far as was seen.
    pub(crate) fn leader(&self, now: BootInstant) -> Option<Candidate> {
        let leads = now < self.free_at();
        self.latest().filter(|_| leads).and_then(Record::candidate)
    }

    /// Whether this is kept although nobody has it. A holder that was seen long ago may still lead. An elector that has forgotten it is like
    /// a candidate that has just started, which would create the Lease at once if it vanished.
    fn is_needed(&self, now: BootInstant) -> bool {
        let duration = self.latest().map_or(Duration::ZERO, |record| self.lifetime(record));
        let kept_until = self.used + (duration * KEPT_FOR_DURATIONS).max(KEPT_FOR);
        self.reserved_until.max(Some(kept_until)) > Some(now)
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicU64, Ordering};

    use async_trait::async_trait;
    use k8s_openapi::api::coordination::v1::{Lease, LeaseSpec};
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

    const NOTHING: Progress = Progress { version: 0, exists: false };

    fn at(seconds: u64) -> BootInstant {
        BootInstant::from_nanos(seconds * 1_000_000_000)
    }

    /// Hazard K5: an answer that was overtaken says nothing of the present, neither that the Lease is absent nor that it is another object.
    #[test]
    fn an_answer_that_was_overtaken_is_ignored() {
        let mut observed = Observed::new(0.1, at(0));
        let (old, new) = (record("1", 4, "a", 1), record("2", 7, "b", 2));
        assert!(observed.present(&new, at(1)));
        for late in [None, Some(&old)] {
            assert!(!observed.answered(late, NOTHING, at(2)));
            assert_eq!((observed.latest().unwrap().uid(), observed.free_at()), ("2", at(12)));
        }
    }

    /// A store that was wiped begins again with lower versions; a read shows the new object, and a watch does not.
    #[test]
    fn another_object_may_have_a_lower_version() {
        let mut observed = Observed::new(0.1, at(0));
        observed.answered(Some(&record("1", 900, "a", 1)), NOTHING, at(1));
        let wiped = record("2", 3, "", 2);
        assert!(!observed.present(&wiped, at(5)));
        assert!(observed.answered(Some(&wiped), observed.progress(), at(6)));
        assert_eq!(
            (observed.progress().version, observed.free_at()),
            (3, at(17)),
            "the holder of the first may lead still"
        );
        // The same object never has.
        assert!(!observed.answered(Some(&record("2", 2, "", 2)), observed.progress(), at(7)));
        // Also if it was seen that the first is gone.
        observed.answered(None, observed.progress(), at(8));
        assert!(observed.answered(Some(&record("3", 1, "", 1)), observed.progress(), at(9)));
        assert_eq!(observed.progress().version, 1);
    }

    /// Hazard K5: a lower version than one that was seen is ignored also after a deletion, and an object that was deleted never comes back
    /// by a watch.
    #[test]
    fn versions_are_remembered_across_deletion() {
        for seen_by_watch in [false, true] {
            let mut observed = Observed::new(0.1, at(0));
            observed.present(&record("1", 4, "a", 1), at(1));
            let before = observed.progress();
            match seen_by_watch {
                true => observed.deleted("1", 4, at(2)),
                false => assert!(observed.answered(None, before, at(2))),
            }
            let free_at = observed.free_at();
            for late in [record("1", 3, "a", 0), record("1", 4, "a", 1), record("0", 2, "c", 1)] {
                assert!(!observed.present(&late, at(20)));
                assert!(!observed.answered(Some(&late), before, at(20)), "overtaken by the deletion");
            }
            assert!(!observed.answered(Some(&record("1", 3, "a", 0)), observed.progress(), at(20)));
            assert_eq!((observed.latest().is_some(), observed.free_at()), (false, free_at));
            // A quorum shows it again: it was restored from a backup, and its holder is timed anew.
            assert!(observed.answered(Some(&record("1", 9, "a", 1)), observed.progress(), at(30)));
            assert_eq!(observed.free_at(), at(41));
        }
    }

    /// What was seen is kept while somebody has it, while a vanished holder may lead, and for ten minutes or ten durations after its last use.
    #[test]
    fn what_was_seen_is_forgotten_when_nobody_uses_it() {
        let clock = Arc::new(TestClock::default());
        let sightings = Sightings::new(Arc::clone(&clock) as Arc<dyn Clock>, 0.0);
        let see = |name: &str, record: &Record| {
            let sighting = sightings.of(name);
            sighting.with(|observed, now| observed.present(record, now));
            sighting
        };
        let of_a_day = Record::new(Lease {
            spec: Some(LeaseSpec { lease_duration_seconds: Some(86_400), ..LeaseSpec::default() }),
            ..record("1", 4, "a", 1).released(Duration::ZERO)
        });
        let had = see("had", &record("1", 4, "a", 1));
        drop(see("of-a-day", &of_a_day.unwrap()));
        for n in 0..500 {
            drop(see(&format!("e{n}"), &record("1", 4, "a", 1)));
        }
        assert_eq!(lock(&sightings.leases).by_name.len(), 502);
        clock.0.store(KEPT_FOR.as_secs() - 1, Ordering::SeqCst);
        drop(see("e0", &record("1", 5, "a", 2)));
        clock.0.store(KEPT_FOR.as_secs(), Ordering::SeqCst);
        for n in 1000..2000 {
            drop(sightings.of(&n.to_string()));
        }
        let leases = lock(&sightings.leases);
        for (name, is_kept) in
            [("had", true), ("of-a-day", true), ("e0", true), ("e1", false), ("1000", true)]
        {
            assert_eq!(leases.by_name.contains_key(name), is_kept, "{name}");
        }
        assert_eq!(leases.by_name.len(), 1003);
        drop((leases, had));
    }

    /// A timer that still matters is kept: that of a vanished holder.
    #[test]
    fn a_vanished_holders_timer_is_kept() {
        let mut observed = Observed::new(0.1, at(0));
        observed.present(&record("1", 4, "a", 1), at(1));
        let last_kept = at(1) + KEPT_FOR - Duration::from_nanos(1);
        observed.used = at(1);
        assert!(observed.is_needed(last_kept) && !observed.is_needed(at(1) + KEPT_FOR));
        observed.answered(None, observed.progress(), at(1) + KEPT_FOR);
        assert!(observed.is_needed(at(1) + KEPT_FOR + Duration::from_secs(10)));
        assert!(!observed.is_needed(at(1) + KEPT_FOR + Duration::from_secs(11)));
    }

    /// Shows seconds.
    #[derive(Debug, Default)]
    struct TestClock(AtomicU64);

    #[async_trait]
    impl Clock for TestClock {
        fn now(&self) -> BootInstant {
            at(self.0.load(Ordering::SeqCst))
        }
        fn wall(&self) -> Duration {
            Duration::ZERO
        }
        async fn sleep_until(&self, _deadline: BootInstant) {}
    }
}
