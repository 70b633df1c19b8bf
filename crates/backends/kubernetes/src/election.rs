//! The recipe: acquire, renew, take over, release and observe a Lease, as client-go's `leaderelection.go` does.
//!
//! | client-go | here |
//! |---|---|
//! | `tryAcquireOrRenew`, not leading | [`Candidacy::try_acquire`] |
//! | `acquire` | [`Candidacy::acquire`], by a watch instead of polling |
//! | `tryAcquireOrRenew`, leading | [`Candidacy::renew`] |
//! | `release` | [`Candidacy::withdraw`] |
//! | `isLeaseValid`, `observedTime` | [`Observed`](crate::observed::Observed) |
//!
//! Every write names the uid and the `resourceVersion` that it replaces, so that one that arrives late changes nothing that was
//! written since. Every write of the spec has a later `renewTime`.

use std::{
    collections::BTreeSet,
    sync::{Arc, Mutex},
    time::Duration,
};

use k8s_openapi::api::coordination::v1::Lease;
use tenure_core::{
    BootInstant, Candidate, Clock, ElectionName,
    internal::lock,
    spi::{
        BackendError,
        BackendErrorKind::{self, EntryGone, SessionGone, Unavailable},
        EntryEvent, EntryRequest, Stamp, foreign_leader_error, is_resign_requested,
    },
};
use tokio::time::sleep;
use tracing::warn;

use crate::{
    label::{PodLabel, Shown},
    observed::{Observed, Progress, Sighting, Sightings},
    record::{Claim, Record, identity, lease_name},
    transport::{Client, Watch, WatchEvent, is_refused},
};

/// How often a write is repeated that conflicts with others.
const MAX_CONFLICTS: u32 = 20;
/// How many of these repetitions are made at once.
const CONFLICTS_WITHOUT_PAUSE: u32 = 3;
/// The longest pauses before the others: the first, which is doubled each time, and the last.
const CONFLICT_PAUSES: (Duration, Duration) = (Duration::from_millis(10), Duration::from_millis(100));
/// The interval at which a Lease is polled that cannot be watched, as a part of its duration; client-go's default is 2 s of 15 s.
const POLLS_PER_DURATION: u32 = 7;
/// The shortest interval at which a Lease is polled: it may have any duration.
const MIN_POLL: Duration = Duration::from_millis(500);
/// The interval at which a Lease is polled that nobody holds, or that does not exist.
const IDLE_POLL: Duration = Duration::from_secs(10);
/// How many warnings are remembered, so that each is logged once.
const MAX_WARNED: usize = 10_000;

/// The Lease of one election, as one elector sees it.
#[derive(Clone, Debug)]
pub(crate) struct ElectionLease {
    client: Arc<Client>,
    sighting: Arc<Sighting>,
    /// The Leases of which a warning was logged.
    warned: Arc<Mutex<BTreeSet<String>>>,
    election: ElectionName,
    name: String,
}

/// Why [`ElectionLease::wait_for_change`] has returned.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Wake {
    /// Something of interest was seen.
    Interest,
    /// The watch was silent for longer than a living leader is, or events were missed: read the Lease.
    Silent,
}

impl ElectionLease {
    pub(crate) fn new(
        client: &Arc<Client>,
        sightings: &Sightings,
        warned: &Arc<Mutex<BTreeSet<String>>>,
        election: &ElectionName,
    ) -> Self {
        let (client, warned, name) = (Arc::clone(client), Arc::clone(warned), lease_name(election));
        Self { client, sighting: sightings.of(&name), warned, election: election.clone(), name }
    }

    pub(crate) fn election(&self) -> &ElectionName {
        &self.election
    }

    fn clock(&self) -> &dyn Clock {
        &*self.sighting.clock
    }

    fn seen<T>(&self, with: impl FnOnce(&mut Observed, BootInstant) -> T) -> T {
        self.sighting.with(with)
    }

    /// Reads the Lease from a quorum.
    async fn read(&self) -> Result<Option<Record>, BackendError> {
        self.read_within(Duration::MAX).await
    }

    /// As [`read`](Self::read), and waits no longer than `patience` if the server has too many requests.
    async fn read_within(&self, patience: Duration) -> Result<Option<Record>, BackendError> {
        let before = self.progress();
        let found = self.client.get(&self.name, patience).await?;
        let is_taken = self.seen(|observed, now| observed.answered(found.as_ref(), before, now));
        // Otherwise it was overtaken.
        if let Some(record) = &found
            && !is_taken
            && record.version() < before.version
        {
            let (name, version, seen_before) = (&self.name, record.version(), before.version);
            let text = format!(
                "lease {name:?} has the resourceVersion {version}, and had {seen_before} before: either an API server reads stale data, or \
                 the cluster was restored from a backup; after a restore, stop all candidates, and then start them again"
            );
            return Err(BackendError::new(Unavailable, text));
        }
        Ok(found)
    }

    /// Replaces `base`, or creates the Lease. `None` if another write was first.
    async fn write(
        &self,
        base: Option<&Record>,
        lease: &Lease,
        patience: Duration,
    ) -> Result<Option<Record>, BackendError> {
        let before = self.progress();
        let written = match base {
            Some(_) => self.client.replace(&self.name, lease, patience).await?,
            None => self.client.create(&self.name, lease, patience).await?,
        };
        if let Some(record) = &written {
            self.seen(|observed, now| observed.answered(Some(record), before, now));
        }
        Ok(written)
    }

    /// Reads the leader.
    pub(crate) async fn leader(&self) -> Result<Option<Candidate>, BackendError> {
        self.read().await?;
        Ok(self.seen(|observed, now| observed.leader(now)))
    }

    /// The leader, as far as was seen.
    pub(crate) fn leader_seen(&self, record: &Record) -> Option<Candidate> {
        self.seen(|observed, now| {
            observed.present(record, now);
            observed.leader(now)
        })
    }

    /// A watch on what comes after what was seen.
    pub(crate) fn watch(&self) -> Watch {
        let from = self.seen(|observed, _| observed.latest().map(Record::version));
        Watch::new(&self.client, &self.name, from)
    }

    fn progress(&self) -> Progress {
        self.seen(|observed, _| observed.progress())
    }

    /// Starts the watch again if a read has shown what it has missed. `seen` is what was seen before the read. Says if the watch fails
    /// although reads are answered.
    fn check_watch(&self, watch: &mut Watch, wake: Wake, seen: Progress) {
        self.warn_of_watch(watch);
        if wake == Wake::Silent && self.progress() != seen {
            watch.restart();
        }
    }

    fn warn_of_watch(&self, watch: &Watch) {
        if let Some(reason) = watch.failure()
            && self.warns_first(format!("watch {}", self.name))
        {
            warn!(election = %self.election, reason, "the lease is polled instead of watched; a handover takes longer");
        }
    }

    /// Whether a warning is logged for the first time.
    fn warns_first(&self, warning: String) -> bool {
        let mut warned = lock(&self.warned);
        if warned.len() >= MAX_WARNED {
            warned.clear();
        }
        warned.insert(warning)
    }

    /// Follows the watch until something of interest is seen, or the Lease has to be read.
    async fn wait_for_change(
        &self,
        watch: &mut Watch,
        is_of_interest: impl Fn(&Observed, BootInstant) -> bool,
    ) -> Wake {
        let (mut last_event, mut last_seen) = (self.clock().now(), self.progress());
        loop {
            if self.seen(|observed, now| is_of_interest(observed, now)) {
                return Wake::Interest;
            }
            let (free_at, duration) = self.seen(|observed, _| {
                let holds = observed.latest().filter(|record| record.holder().is_some());
                (observed.free_at(), holds.map(Record::duration))
            });
            let is_watched = watch.failure().is_none();
            let silence = match duration {
                None if is_watched => IDLE_POLL,
                None => IDLE_POLL / POLLS_PER_DURATION,
                // A living leader renews twice in that time, at least, and the watch shows it.
                Some(duration) if is_watched => duration * 2 / 3,
                Some(duration) => duration / POLLS_PER_DURATION,
            };
            let silent_at = last_event + silence.max(MIN_POLL).mul_f64(0.8 + 0.4 * fastrand::f64());
            let wakes_at = if free_at > self.clock().now() { silent_at.min(free_at) } else { silent_at };
            let event = tokio::select! {
                biased;
                event = watch.next() => event,
                () = self.clock().sleep_until(wakes_at) => {
                    // Another request of this elector, such as a renewal, may have shown as much as a read would.
                    if self.progress() == last_seen {
                        return Wake::Silent;
                    }
                    (last_event, last_seen) = (self.clock().now(), self.progress());
                    continue;
                }
            };
            match event {
                WatchEvent::Present(record) => {
                    if self.seen(|observed, now| observed.present(&record, now)) {
                        (last_event, last_seen) = (self.clock().now(), self.progress());
                    }
                }
                WatchEvent::Deleted(record) => {
                    self.seen(|observed, now| {
                        // Its last state may have a holder that was not seen.
                        observed.present(&record, now);
                        observed.deleted(record.uid(), record.version(), now);
                    });
                }
                WatchEvent::Lost => return Wake::Interest,
                // Other failures are reported once a read is answered: an outage is reported by the requests.
                WatchEvent::Failing if watch.is_forbidden() => self.warn_of_watch(watch),
                WatchEvent::Failing => {}
            }
        }
    }

    /// Marks the entry of the leader. Returns the leader.
    pub(crate) async fn request_resign(&self) -> Result<Option<Candidate>, BackendError> {
        for conflicts in 0..MAX_CONFLICTS {
            pause_after(conflicts).await;
            let Some(leader) = self.leader().await? else { return Ok(None) };
            let latest = self.seen(|observed, _| observed.latest().cloned());
            let Some(record) = latest else { continue };
            let Some(lease) = record.with_resign_request() else { return Err(foreign_leader_error(&leader)) };
            if self.write(Some(&record), &lease, Duration::MAX).await?.is_some() {
                return Ok(record.candidate());
            }
        }
        Err(self.contended())
    }

    /// Unequal durations are unsafe beside challengers that wait for their own, as those of older client-go do.
    fn warn_of_duration(&self, record: &Record, own: Duration) {
        let is_other = record.holder().is_some() && record.duration() != own;
        if is_other && self.warns_first(self.name.clone()) {
            let holder = record.holder().unwrap_or_default();
            warn!(election = %self.election, holder, "the holder's lease duration is {:?}, and the TTL here is {own:?}: give all candidates \
                the same; older versions of client-go wait for their own duration", record.duration());
        }
    }

    fn contended(&self) -> BackendError {
        BackendError::new(Unavailable, format!("lease {:?} is written by others again and again", self.name))
    }
}

/// Pauses before a write is repeated that has conflicted so often in a row: for a random time, as the others do.
async fn pause_after(conflicts: u32) {
    let (first, last) = CONFLICT_PAUSES;
    if let Some(doublings) = conflicts.checked_sub(CONFLICTS_WITHOUT_PAUSE + 1) {
        sleep((first * (1 << doublings.min(8))).min(last).mul_f64(fastrand::f64())).await;
    }
}

/// An observer of one election.
#[derive(Debug)]
pub(crate) struct Observer {
    lease: ElectionLease,
    watch: Watch,
    /// What was shown last, and whether it leads.
    shown: (Option<Record>, bool),
}

impl Observer {
    /// Reads the leader, and starts to watch.
    pub(crate) async fn start(lease: ElectionLease) -> Result<Self, BackendError> {
        lease.read().await?;
        let watch = lease.watch();
        let mut observer = Self { lease, watch, shown: (None, false) };
        observer.show();
        Ok(observer)
    }

    fn show(&mut self) {
        self.shown =
            self.lease.seen(|observed, now| (observed.latest().cloned(), observed.leader(now).is_some()));
    }

    /// The leader.
    pub(crate) fn leader(&self) -> Option<Candidate> {
        let (record, leads) = &self.shown;
        record.as_ref().filter(|_| *leads)?.candidate()
    }

    /// Whether the leader is about to publish its token, as it does when it has just won.
    pub(crate) fn lacks_token(&self) -> bool {
        let (record, leads) = &self.shown;
        *leads && record.as_ref().is_some_and(|it| it.payload().is_some() && it.token().is_none())
    }

    /// Waits until another leader can be shown, or none, or the same with another value. A fresh read confirms that.
    ///
    /// # Cancellation safety
    /// No change is lost.
    pub(crate) async fn changed(&mut self) -> Result<(), BackendError> {
        let Self { lease, watch, shown: (record, leads) } = self;
        let is_changed = |observed: &Observed, now| match (&*record, observed.latest()) {
            (None, None) => false,
            (Some(shown), Some(latest)) => {
                !shown.shows_same_candidate(latest) || *leads != observed.leader(now).is_some()
            }
            _ => true,
        };
        while {
            let wake = lease.wait_for_change(watch, is_changed).await;
            let seen = lease.progress();
            lease.read().await?;
            lease.check_watch(watch, wake, seen);
            !lease.seen(|observed, now| is_changed(observed, now))
        } {}
        self.show();
        Ok(())
    }
}

/// A candidate of one election, under one session.
#[derive(Debug)]
pub(crate) struct Candidacy {
    lease: ElectionLease,
    session: String,
    seconds: i32,
    label: Option<Arc<PodLabel>>,
    state: Mutex<State>,
}

#[derive(Debug, Default)]
struct State {
    /// The holder identities that were asked for.
    identities: Vec<String>,
    held: Option<Held>,
    unsettled: Unsettled,
    /// Shows by the pod's label that it leads.
    shown: Option<Shown>,
}

/// The Lease, held.
#[derive(Clone, Debug)]
pub(crate) struct Held {
    claim: Claim,
    record: Record,
    /// A version at which our identity held the Lease. It stays until the end of the leadership.
    pub(crate) token: u64,
    /// When the write was sent that the window is counted from.
    pub(crate) sent: Stamp,
}

/// Writes without an answer, which the server may still execute.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
struct Unsettled {
    /// The highest version that one of them replaces.
    replaces: Option<u64>,
    creates: bool,
    /// Whether one of them may have been executed already, so that the Lease may be ours.
    executed: bool,
}

/// What [`Candidacy::try_acquire`] has come to.
pub(crate) enum Attempt {
    Won(Held),
    /// Somebody leads, or may lead; by the record that shows it.
    HeldBy(Option<Record>),
}

impl Candidacy {
    pub(crate) fn new(
        lease: ElectionLease,
        session: String,
        seconds: i32,
        label: Option<Arc<PodLabel>>,
    ) -> Self {
        Self { lease, session, seconds, label, state: Mutex::default() }
    }

    pub(crate) fn lease(&self) -> &ElectionLease {
        &self.lease
    }

    pub(crate) fn clock(&self) -> &dyn Clock {
        self.lease.clock()
    }

    pub(crate) fn duration(&self) -> Duration {
        Duration::from_secs(self.seconds.unsigned_abs().into())
    }

    /// For how long a holder's requests, and the one that acquires, wait if the server has too many: as long as until the next renewal.
    fn patience(&self) -> Duration {
        self.duration() / 3
    }

    pub(crate) fn held(&self) -> Option<Held> {
        lock(&self.state).held.clone()
    }

    /// Acquires the Lease if it is free: nobody holds it, or its spec stood still for its duration and the drift bound.
    pub(crate) async fn try_acquire(&self, request: &EntryRequest) -> Result<Attempt, BackendError> {
        let claim = Claim::new(request, &self.session, self.seconds);
        self.add_identity(&claim.identity);
        for conflicts in 0..MAX_CONFLICTS {
            pause_after(conflicts).await;
            // The precondition of every write is the version of a quorum's answer.
            let found = self.lease.read().await?;
            let is_free = self.lease.seen(|observed, now| observed.free_at() <= now);
            let wall = self.lease.clock().wall();
            let lease = match &found {
                // An earlier write of ours, whose answer was lost. The window is counted from the one that is sent now.
                Some(record) if record.holder() == Some(&*claim.identity) => {
                    record.renewed(&claim, None, wall)
                }
                found if !is_free => {
                    if let Some(record) = found {
                        self.lease.warn_of_duration(record, self.duration());
                    }
                    return Ok(Attempt::HeldBy(found.clone()));
                }
                Some(record) => record.taken(&claim, wall),
                None => Record::create(&self.lease.election, Some(&claim), wall),
            };
            let sent = Stamp::now(self.lease.clock());
            // Not for long: the window is counted from before it was sent.
            if let Some(record) = self.write(found.as_ref(), &lease, self.patience()).await? {
                let held = Held { claim, token: record.version(), record, sent };
                lock(&self.state).held = Some(held.clone());
                return Ok(Attempt::Won(held));
            }
        }
        Err(self.lease.contended())
    }

    fn add_identity(&self, identity: &str) {
        let identities = &mut lock(&self.state).identities;
        if !identities.iter().any(|known| known == identity) {
            identities.push(identity.to_owned());
        }
    }

    /// Waits until the Lease can be acquired, and acquires it. [`try_acquire`](Self::try_acquire) was called before.
    pub(crate) async fn acquire(&self, request: &EntryRequest) -> Result<Held, BackendError> {
        let lease = &self.lease;
        let mut watch = lease.watch();
        loop {
            let wake = lease.wait_for_change(&mut watch, |observed, now| observed.free_at() <= now).await;
            let seen = lease.progress();
            if let Attempt::Won(held) = self.try_acquire(request).await? {
                return Ok(held);
            }
            lease.check_watch(&mut watch, wake, seen);
        }
    }

    /// Renews the Lease.
    pub(crate) async fn renew(&self) -> Result<(), BackendError> {
        self.change(SessionGone, |held| {
            held.record.renewed(&held.claim, Some(held.token), self.lease.clock().wall())
        })
        .await
    }

    /// Publishes the token, for others. The first renewal does that, too.
    async fn publish_token(&self) -> Result<(), BackendError> {
        if self.held().is_none_or(|held| held.is_published()) {
            return Ok(());
        }
        self.change(EntryGone, |held| held.record.with_token(held.token)).await
    }

    /// Replaces the value of the entry.
    pub(crate) async fn update(&self, request: &EntryRequest) -> Result<(), BackendError> {
        self.change(EntryGone, |held| held.record.with_value(request)).await
    }

    /// Writes a change of the Lease that is held.
    ///
    /// A conflict is no loss: somebody may have patched a label. The Lease is read, and the change made again, if it is the same object
    /// and its holder the same. Fails with `gone` if not.
    async fn change(
        &self,
        gone: BackendErrorKind,
        change: impl Fn(&Held) -> Lease,
    ) -> Result<(), BackendError> {
        for conflicts in 0..MAX_CONFLICTS {
            pause_after(conflicts).await;
            let Some(held) = self.held() else {
                return Err(BackendError::new(gone, "the lease is not held any more"));
            };
            if let Some(record) = self.write(Some(&held.record), &change(&held), self.patience()).await? {
                self.remember(&held, record);
                return Ok(());
            }
            match self.lease.read_within(self.patience()).await? {
                Some(record) if held.is_in(&record) => self.remember(&held, record),
                found => return Err(BackendError::new(gone, held.what_happened(found.as_ref()))),
            }
        }
        Err(self.lease.contended())
    }

    /// The version that the next write of the Lease replaces.
    fn remember(&self, held: &Held, record: Record) {
        if let Some(now) = &mut lock(&self.state).held
            && now.claim.identity == held.claim.identity
            && now.record.version() < record.version()
        {
            now.record = record;
        }
    }

    /// Watches the Lease while it is held, publishes the token, and shows the leader by its pod's label. Returns what ends the leadership.
    pub(crate) async fn watch_held(&self, for_resign_requests: bool) -> Result<EntryEvent, BackendError> {
        // Dropped when the leadership has ended. An error or a resign request does not end it.
        let mut label = LabelWhileWatched { candidacy: self, is_removed: true };
        self.show_label();
        let event = self.next_event(for_resign_requests).await;
        label.is_removed = matches!(event, Ok(EntryEvent::Deleted));
        event
    }

    fn show_label(&self) {
        let state = &mut lock(&self.state);
        if let Some(label) = &self.label
            && state.held.is_some()
            && state.shown.is_none()
        {
            state.shown = Some(label.show(self.lease.election()));
        }
    }

    async fn next_event(&self, for_resign_requests: bool) -> Result<EntryEvent, BackendError> {
        let event = |observed: &Observed| match (self.held(), observed.latest()) {
            (Some(held), Some(record)) if held.is_in(record) => {
                let asks = record.payload().is_some_and(|payload| is_resign_requested(&payload));
                (asks && for_resign_requests).then_some(EntryEvent::ResignRequested)
            }
            _ => Some(EntryEvent::Deleted),
        };
        self.publish_token().await?;
        let lease = &self.lease;
        let mut watch = lease.watch();
        loop {
            if let Some(event) = lease.seen(|observed, _| event(observed)) {
                return Ok(event);
            }
            let wake = lease.wait_for_change(&mut watch, |observed, _| event(observed).is_some()).await;
            let seen = lease.progress();
            lease.read().await?;
            lease.check_watch(&mut watch, wake, seen);
        }
    }

    /// Releases the Lease if `request` holds it, and makes sure that the server executes no write later that it has not answered.
    pub(crate) async fn withdraw(&self, request: &EntryRequest) -> Result<(), BackendError> {
        self.withdraw_all_of(&[identity(&request.candidate, request.nonce)]).await
    }

    /// Withdraws whatever this candidacy may have written.
    pub(crate) async fn close(&self) -> Result<(), BackendError> {
        let identities = lock(&self.state).identities.clone();
        self.withdraw_all_of(&identities).await
    }

    async fn withdraw_all_of(&self, identities: &[String]) -> Result<(), BackendError> {
        let is_ours = |holder: &str| identities.iter().any(|identity| identity == holder);
        let mut known = self.held().filter(|held| is_ours(&held.claim.identity)).map(|held| held.record);
        if known.is_none() && lock(&self.state).unsettled == Unsettled::default() {
            return Ok(());
        }
        for conflicts in 0..MAX_CONFLICTS {
            pause_after(conflicts).await;
            let Unsettled { replaces, creates, .. } = lock(&self.state).unsettled;
            let found = match known.take() {
                Some(record) => Some(record),
                None => self.lease.read_within(self.patience()).await?,
            };
            let wall = self.lease.clock().wall();
            let lease = match &found {
                Some(record) if record.holder().is_some_and(is_ours) => record.released(wall),
                // The late write would find its version.
                Some(record) if replaces.is_some_and(|version| version >= record.version()) => {
                    record.bumped()
                }
                // The late write would create the Lease.
                None if creates => Record::create(&self.lease.election, None, wall),
                found => {
                    self.settle(identities, found.as_ref());
                    return Ok(());
                }
            };
            if let Some(record) = self.write(found.as_ref(), &lease, self.patience()).await? {
                self.settle(identities, Some(&record));
                return Ok(());
            }
        }
        Err(self.lease.contended())
    }

    /// None of `identities` holds the Lease of this version, and no earlier version comes back.
    fn settle(&self, identities: &[String], found: Option<&Record>) {
        let mut state = lock(&self.state);
        (state.unsettled.creates, state.unsettled.executed) = (false, false);
        let may_succeed = |version: &u64| found.is_some_and(|record| *version >= record.version());
        state.unsettled.replaces = state.unsettled.replaces.filter(may_succeed);
        if state.held.take_if(|held| identities.contains(&held.claim.identity)).is_some() {
            state.shown = None;
        }
    }

    /// As [`ElectionLease::write`], and remembers the write until it is answered.
    async fn write(
        &self,
        base: Option<&Record>,
        lease: &Lease,
        patience: Duration,
    ) -> Result<Option<Record>, BackendError> {
        let before = {
            let unsettled = &mut lock(&self.state).unsettled;
            let before = *unsettled;
            unsettled.executed = true;
            match base {
                Some(base) => unsettled.replaces = unsettled.replaces.max(Some(base.version())),
                None => unsettled.creates = true,
            }
            before
        };
        let written = self.lease.write(base, lease, patience).await;
        let unsettled = &mut lock(&self.state).unsettled;
        match (&written, base) {
            // Whatever replaces this version, or an earlier one, conflicts from now on.
            (Ok(_), Some(base)) => {
                unsettled.replaces = unsettled.replaces.filter(|version| *version > base.version());
                unsettled.executed = before.executed;
            }
            (Ok(_), None) => (unsettled.creates, unsettled.executed) = (false, before.executed),
            // It was not executed.
            (Err(error), _) if is_refused(error) => *unsettled = before,
            _ => {}
        }
        written
    }
}

struct LabelWhileWatched<'a> {
    candidacy: &'a Candidacy,
    is_removed: bool,
}

impl Drop for LabelWhileWatched<'_> {
    fn drop(&mut self) {
        if self.is_removed {
            lock(&self.candidacy.state).shown = None;
        }
    }
}

impl Held {
    /// Whether `record` is of the same object, and we hold it.
    fn is_in(&self, record: &Record) -> bool {
        record.uid() == self.record.uid() && record.holder() == Some(&*self.claim.identity)
    }

    fn what_happened(&self, found: Option<&Record>) -> String {
        match found {
            None => "the lease was deleted".to_owned(),
            Some(found) if found.uid() != self.record.uid() => {
                "the lease was deleted, and another one was created".to_owned()
            }
            Some(found) => match found.holder() {
                Some(holder) => format!("{holder:?} holds the lease now"),
                None => "the lease was released".to_owned(),
            },
        }
    }

    /// The entry's key: the holder identity.
    pub(crate) fn identity(&self) -> &str {
        &self.claim.identity
    }

    fn is_published(&self) -> bool {
        self.record.token() == Some(self.token)
    }
}
