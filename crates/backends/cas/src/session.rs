//! A session: its heartbeats, and the calls of the engine.

use std::{
    collections::{BTreeMap, VecDeque},
    fmt,
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, Ordering::SeqCst},
    },
    time::Duration,
};

use async_trait::async_trait;
use futures::{FutureExt as _, StreamExt as _, future::join, stream};
use tenure_core::{
    Clock, ElectionName,
    internal::lock,
    spi::{
        BackendError, BackendErrorKind, BackendSession, Entered, Entry, EntryRequest, EntryWatcher,
        Heartbeat, HeartbeatProof, PerEntryWatcher, QueuePosition, SessionOptions, Won,
    },
};
use tokio::task::JoinHandle;
use tracing::debug;

use crate::{
    challenger::{Advance, NO_HINT, epoch_is_over},
    client::{Change, session_gone},
    garbage,
    hints::{Hints, Wake},
    probe,
    record::{Election, Nonce, Session, SessionId, Slot, State, election_key},
    rules::{CasRule, is_disabled},
    shared::Shared,
    store::{CasStore, Epoch, Freshness, Swap, Version},
    timers::Timers,
    watcher,
};

/// The longest pause before an enter that conflicted is repeated: doubled for each conflict, up to the limit (rule 8).
const FIRST_PAUSE: Duration = Duration::from_millis(10);
const MAX_PAUSE: Duration = Duration::from_secs(1);
/// The longest pause of a candidate before it reads an election's record because of a hint: so much for each candidate between it and the
/// leader, up to a limit. If they resign at this pace, it has read the record by the time it is the next one.
const DEBOUNCE_PER_CANDIDATE: Duration = Duration::from_millis(100);
const MAX_DEBOUNCE: Duration = Duration::from_secs(2);
/// The number of unanswered heartbeats to remember. If one before them was carried out, the session counts as gone.
const MAX_UNANSWERED: usize = 256;
/// How many elections are changed concurrently when a session is closed.
const CONCURRENT_WITHDRAWALS: usize = 16;

pub(crate) struct CasSession<S> {
    shared: Arc<Shared<S>>,
    clock: Arc<dyn Clock>,
    id: SessionId,
    ttl: Duration,
    drift: f64,
    /// The epoch in which the session was opened. It ends with it (rule 7).
    epoch: Epoch,
    /// The session's record, as this process knows it. Locked while a heartbeat is sent.
    own: tokio::sync::Mutex<OwnRecord>,
    /// The requests to enter that may have a slot, or may get one, by nonce.
    entries: Arc<Entries>,
    /// A candidate was made the leader by a swap of its own.
    has_won: AtomicBool,
    /// Collects garbage, until the session is dropped.
    garbage: JoinHandle<()>,
}

/// A request to enter of which a swap was sent.
#[derive(Clone, Debug)]
struct Pending {
    election: ElectionName,
    /// How many of its swaps have conflicted, in all calls.
    conflicts: u32,
    /// The record of the election that was seen last, if the candidate led in it.
    led: Option<Box<(Version, Election)>>,
}

/// Requests to enter, by nonce.
#[derive(Debug, Default)]
pub(crate) struct Entries(Mutex<BTreeMap<u128, Pending>>);

impl Entries {
    /// Notes the latest record in which a candidate leads. If it is still that one when the candidate resigns, it need not be read again.
    pub(crate) fn note_led(&self, nonce: Nonce, version: Version, election: Election) {
        if let Some(pending) = lock(&self.0).get_mut(&nonce.0) {
            pending.led = Some(Box::new((version, election)));
        }
    }

    fn take_led(&self, nonce: Nonce) -> Option<(Version, Election)> {
        lock(&self.0).get_mut(&nonce.0)?.led.take().map(|led| *led)
    }
}

#[derive(Debug)]
struct OwnRecord {
    version: Version,
    beat: u64,
    /// The nonces of the heartbeats since that version: one of them may be carried out, or have been.
    unanswered: VecDeque<Nonce>,
}

impl OwnRecord {
    fn new(version: Version, beat: u64) -> Self {
        Self { version, beat, unanswered: VecDeque::new() }
    }

    /// A heartbeat is about to be sent.
    fn send(&mut self, nonce: Nonce) {
        if self.unanswered.len() == MAX_UNANSWERED {
            self.unanswered.pop_front();
        }
        self.unanswered.push_back(nonce);
    }
}

impl<S: CasStore> CasSession<S> {
    /// Opens a session. The engine has read its clock before; the first window counts from that.
    pub(crate) async fn open(
        shared: &Arc<Shared<S>>,
        options: &SessionOptions,
    ) -> Result<Self, BackendError> {
        let clock = shared.clock(&options.clock, options.drift);
        let epoch = shared.client.epoch().await?;
        shared.with_timers(epoch, |_| ());
        let id = SessionId::random();
        // The record has whole milliseconds.
        let ttl = Duration::from_millis(u64::try_from(options.ttl.as_millis()).unwrap_or(u64::MAX));
        let body = Session::live(1, ttl);
        let version = match shared.client.swap_session(&id, None, epoch, &body).await? {
            Swap::Done(version) => version,
            Swap::EpochChanged => return Err(shared.epoch_changed(epoch).await),
            // The client of the store has repeated the request: nobody else knows this id (hazard C4).
            Swap::Conflict => match shared.client.read_session(&id, Freshness::Fresh).await? {
                Some((version, found)) if found == body => version,
                _ => return Err(session_gone(&id, "its record was not created")),
            },
        };
        let own = match shared.is_probed.get() {
            Some(()) => OwnRecord::new(version, 1),
            None => {
                let version = probe::probe(&shared.client, &id, version, epoch, ttl).await?;
                shared.is_probed.get_or_init(|| ());
                OwnRecord::new(version, 2)
            }
        };
        let garbage = tokio::spawn(garbage::collect_repeatedly(Arc::clone(shared), Arc::clone(&clock)));
        Ok(Self {
            shared: Arc::clone(shared),
            clock,
            id,
            ttl,
            drift: options.drift,
            epoch,
            own: tokio::sync::Mutex::new(own),
            entries: Arc::default(),
            has_won: AtomicBool::new(false),
            garbage,
        })
    }

    pub(crate) fn store(&self) -> &S {
        self.shared.client.store()
    }

    /// The epoch of the session.
    ///
    /// # Errors
    /// [`SessionGone`](BackendErrorKind::SessionGone) when the store has a later one (rule 7).
    fn epoch(&self) -> Result<Epoch, BackendError> {
        let current = self.shared.client.seen_epoch();
        if current > self.epoch && !is_disabled(CasRule::EpochEndsSessions) {
            return Err(epoch_is_over(&self.id, self.epoch, current));
        }
        Ok(current.max(self.epoch))
    }

    /// The error after a swap was refused because of its epoch. With the rule disabled the next attempt uses the new epoch.
    async fn epoch_changed(&self) -> BackendError {
        let error = self.shared.epoch_changed(self.epoch).await;
        self.epoch().err().unwrap_or(error)
    }

    /// Sends a heartbeat: a swap of the session's record.
    ///
    /// The engine credits a success from before this call. So the swap that stands has to be one that this call has sent; its nonce
    /// shows that (rule 6).
    async fn beat(&self) -> Result<(), BackendError> {
        let mut own = self.own.lock().await;
        let mut sent = Vec::new();
        loop {
            let epoch = self.epoch()?;
            let ttl = match is_disabled(CasRule::ImmutableTtl) {
                true => self.ttl / 2,
                false => self.ttl,
            };
            let body = Session::live(own.beat + 1, ttl);
            own.send(body.nonce);
            sent.push(body.nonce);
            let swap = self.shared.client.swap_session(&self.id, Some(&own.version), epoch, &body);
            match swap.await? {
                Swap::Done(version) => {
                    *own = OwnRecord::new(version, own.beat + 1);
                    return Ok(());
                }
                Swap::EpochChanged => {
                    let error = self.epoch_changed().await;
                    if is_disabled(CasRule::EpochEndsSessions) {
                        continue;
                    }
                    return Err(error);
                }
                Swap::Conflict => {}
            }
            // A conflict says nothing (rule 6).
            let Some((version, Session { state, nonce })) =
                self.shared.client.read_session(&self.id, Freshness::Fresh).await?
            else {
                return Err(session_gone(&self.id, "its record was removed"));
            };
            let State::Active { beat, .. } = state else {
                return Err(session_gone(&self.id, "another candidate has taken it for dead"));
            };
            // An answer of a replica that lags.
            if beat < own.beat || version == own.version {
                let text = "a heartbeat was refused, and a linearizable read has not shown why";
                return Err(BackendError::new(BackendErrorKind::Unavailable, text));
            }
            if !own.unanswered.contains(&nonce) && !is_disabled(CasRule::AdoptOwnNonceOnly) {
                return Err(session_gone(&self.id, "another process uses it, such as a copy of this one"));
            }
            *own = OwnRecord::new(version, beat);
            if sent.contains(&nonce) || is_disabled(CasRule::CreditOwnNonceOnly) {
                return Ok(());
            }
            // An earlier heartbeat, whose answer was lost: crediting this one's sending would be two leaders (hazard C13).
        }
    }

    /// Enters the queue, and leads if nobody is ahead.
    async fn enter_queue(&self, request: &EntryRequest) -> Result<Entered, BackendError> {
        let client = &self.shared.client;
        let mut swapped = None;
        loop {
            let epoch = self.epoch()?;
            let is_own_swap = swapped.is_some();
            let found = match swapped.take() {
                Some(swapped) => Some(swapped),
                None => client.read_election(&request.election, Freshness::Fresh).await?,
            };
            let (version, election) = found.unzip();
            let election = election.unwrap_or_default();
            if let (Some(place), Some(version)) = (election.place(&self.id, Nonce(request.nonce)), &version) {
                if place == 0 {
                    if self.shared.settle(epoch, self.ttl, &*self.clock).await?.is_some() {
                        return Ok(Entered::Queued { entry: Some(self.entry(request)) });
                    }
                    if !is_own_swap {
                        // It was in the queue before, and may have been ended since.
                        self.check_own().await?;
                    }
                    self.has_won.store(true, SeqCst);
                    let won = self.won(request, &election)?;
                    self.entries.note_led(Nonce(request.nonce), version.clone(), election);
                    return Ok(Entered::Leads(won));
                }
                // A campaign that does not wait takes over, too, if it comes again when the timers have run (hazard C16).
                let found = (version, &election);
                match self
                    .shared
                    .advance(&request.election, found, (place, NO_HINT), &*self.clock, epoch)
                    .await
                {
                    Ok(Advance::Changed) => continue,
                    Err(error) if !error.is_retryable() => return Err(error),
                    // It is in the queue, and waits.
                    Ok(Advance::Wait(_)) | Err(_) => {}
                }
                self.shared.with_timers(epoch, Timers::campaign_ended);
                return Ok(Entered::Queued { entry: Some(self.entry(request)) });
            }
            let next = match (
                election.with_slot(&request.election, Slot::new(&self.id, request), epoch),
                &version,
            ) {
                (Ok(next), _) => next,
                (Err(full), Some(version)) => {
                    let (asks, found) = ((&request.election, &self.id), (version, &election));
                    self.shared.make_room(asks, found, &*self.clock, epoch, full).await?;
                    continue;
                }
                (Err(full), None) => return Err(full),
            };
            // Before the swap is sent: it may be carried out whatever happens to this future.
            let is_first = self.note_sent(request);
            match client.swap_election(&request.election, version.as_ref(), epoch, &next).await {
                Ok(Swap::Done(version)) => swapped = Some((version, next)),
                Ok(Swap::Conflict) => self.pause_after_conflict(request).await,
                Ok(Swap::EpochChanged) => return Err(self.epoch_changed().await),
                Err(error) => {
                    if is_first && error.is_permanent() {
                        // Refused, and nothing else was sent.
                        lock(&self.entries.0).remove(&request.nonce);
                    }
                    return Err(error);
                }
            }
        }
    }

    /// Notes that a swap for this request is sent. Returns whether it is the first one.
    fn note_sent(&self, request: &EntryRequest) -> bool {
        let pending = Pending { election: request.election.clone(), conflicts: 0, led: None };
        let mut entries = lock(&self.entries.0);
        let is_first = !entries.contains_key(&request.nonce);
        entries.entry(request.nonce).or_insert(pending);
        is_first
    }

    /// Pauses for longer with each conflict of the request, also of earlier calls (rule 8).
    async fn pause_after_conflict(&self, request: &EntryRequest) {
        let conflicts = lock(&self.entries.0).get_mut(&request.nonce).map_or(0, |pending| {
            pending.conflicts += 1;
            pending.conflicts - 1
        });
        self.clock.sleep_until(self.clock.now() + pause_after(conflicts)).await;
    }

    fn entry(&self, request: &EntryRequest) -> Entry {
        let key = Slot::entry_key(&request.election, Nonce(request.nonce));
        Entry { election: request.election.clone(), key: key.into(), version: 0 }
    }

    fn won(&self, request: &EntryRequest, election: &Election) -> Result<Won, BackendError> {
        let token = election.head_token().ok_or_else(|| {
            BackendError::new(BackendErrorKind::Invalid, "the leader of an election has no fencing token")
        })?;
        Ok(Won::new(self.entry(request), token))
    }

    /// Ends the session in the store, for good.
    async fn end(&self) -> Result<(), BackendError> {
        let mut own = self.own.lock().await;
        // Allowed in any epoch: it only ends what is over.
        let mut epoch = self.shared.client.epoch().await?;
        loop {
            let ended = Session::ended();
            let swap = self.shared.client.swap_session(&self.id, Some(&own.version), epoch, &ended);
            match swap.await? {
                Swap::Done(version) => {
                    own.version = version;
                    return Ok(());
                }
                Swap::EpochChanged => epoch = self.shared.client.later_epoch(epoch).await?,
                Swap::Conflict => {
                    match self.shared.client.read_session(&self.id, Freshness::Fresh).await? {
                        // It was created, so that it has been ended and removed.
                        None => return Ok(()),
                        Some((version, Session { state: State::Ended, .. })) => {
                            own.version = version;
                            return Ok(());
                        }
                        Some((version, Session { state: State::Active { beat, .. }, .. })) => {
                            *own = OwnRecord::new(version, beat);
                        }
                    }
                }
            }
        }
    }

    /// Reads the record until this candidate's slot is at the head, or gone.
    async fn wait(&self, request: &EntryRequest, position: &QueuePosition) -> Result<Won, BackendError> {
        let (client, nonce) = (&self.shared.client, Nonce(request.nonce));
        let mut freshness = Freshness::Fresh;
        let mut predecessor: Option<(SessionId, Hints<'_, S>)> = None;
        let (mut look_at, mut hint) = (self.clock.now(), NO_HINT);
        let mut hints = Hints::new(&self.shared, election_key(&request.election));
        // A hint has come to the candidate that was next in line.
        let mut may_lead = false;
        loop {
            hints.subscribe();
            if let Some((_, hints)) = &mut predecessor {
                hints.subscribe();
            }
            let epoch = self.epoch()?;
            let read = client.read_election(&request.election, freshness);
            let (found, own) = match may_lead {
                // Both at once: a handover takes a round trip less.
                true => join(read, self.check_own().map(Some)).await,
                false => (read.await, None),
            };
            let found = found?;
            let place = found.as_ref().and_then(|(_, election)| election.place(&self.id, nonce));
            let Some((version, election)) = &found else {
                if freshness == Freshness::MayBeStale {
                    freshness = Freshness::Fresh;
                    continue;
                }
                return Err(entry_gone());
            };
            match place {
                // Only a fresh read shows that the candidate leads, or that its slot has gone.
                None | Some(0) if freshness == Freshness::MayBeStale => {
                    freshness = Freshness::Fresh;
                    continue;
                }
                None => return Err(entry_gone()),
                Some(0) => match self.shared.settle(epoch, self.ttl, &*self.clock).await? {
                    None => {
                        match own {
                            Some(checked) => checked?,
                            None => self.check_own().await?,
                        }
                        let won = self.won(request, election)?;
                        self.entries.note_led(nonce, version.clone(), election.clone());
                        return Ok(won);
                    }
                    Some(at) => look_at = at,
                },
                Some(place) => {
                    position.set_next(place == 1);
                    let ahead = &election.queue[place - 1].session;
                    if predecessor.as_ref().is_none_or(|(session, _)| session != ahead) {
                        let hints = Hints::new(&self.shared, ahead.key());
                        predecessor.insert((ahead.clone(), hints)).1.subscribe();
                        look_at = self.clock.now();
                    }
                    if self.clock.now() >= look_at {
                        let found = (version, election);
                        match self
                            .shared
                            .advance(&request.election, found, (place, hint), &*self.clock, epoch)
                            .await?
                        {
                            Advance::Changed => {
                                freshness = Freshness::Fresh;
                                continue;
                            }
                            Advance::Wait(until) => look_at = until,
                        }
                    }
                }
            }
            let predecessor_hint = async {
                match &mut predecessor {
                    Some((_, hints)) => while !hints.next().await {},
                    None => std::future::pending().await,
                }
            };
            let election_hint = async {
                let wake = hints.wait().await;
                if let (Wake::Hint, Some(place @ 2..)) = (wake, place) {
                    // Others are next: they act first, and many changes cost one read.
                    tokio::time::sleep(debounce(place).mul_f64(fastrand::f64())).await;
                }
                wake
            };
            may_lead = false;
            let wake = tokio::select! {
                biased;
                () = self.clock.sleep_until(look_at) => Wake::Poll,
                wake = election_hint => {
                    may_lead = wake == Wake::Hint && place == Some(1);
                    wake
                }
                () = predecessor_hint => {
                    look_at = self.clock.now();
                    hint = look_at;
                    Wake::Hint
                }
            };
            // A replica may stand still: what it shows delays nothing for longer than that.
            freshness = match wake {
                Wake::Poll if self.clock.now() < look_at => Freshness::MayBeStale,
                Wake::Poll | Wake::Hint => Freshness::Fresh,
            };
        }
    }

    /// Checks that the session has not been ended, as an operator may do, when its candidate becomes the leader.
    async fn check_own(&self) -> Result<(), BackendError> {
        match self.shared.client.read_session(&self.id, Freshness::Fresh).await? {
            Some((_, Session { state: State::Active { .. }, .. })) => Ok(()),
            _ => Err(session_gone(&self.id, "its record says so")),
        }
    }

    /// Removes the slot of a request, by a swap that is done (rule 5). No read concludes it, so that an enter that is carried out
    /// later fails on its version. The engine sends no enter after it.
    async fn withdraw(&self, election: &ElectionName, nonce: Nonce) -> Result<(), BackendError> {
        let freshness = match is_disabled(CasRule::NoReadConcludes) {
            true => Freshness::MayBeStale,
            false => Freshness::Fresh,
        };
        let client = &self.shared.client;
        if let Some((version, led)) = self.entries.take_led(nonce) {
            let epoch = client.epoch().await?;
            let next = led.without(epoch, |slot| slot.is(&self.id, nonce))?;
            if let Swap::Done(_) = client.swap_election(election, Some(&version), epoch, &next).await? {
                lock(&self.entries.0).remove(&nonce.0);
                return Ok(());
            }
            // It has changed meanwhile.
        }
        let change = client.change_election(election, freshness, |found, epoch| {
            let has_slot = found.is_some_and(|election| election.place(&self.id, nonce).is_some());
            let may_conclude = is_disabled(CasRule::NoReadConcludes)
                || is_disabled(CasRule::CreateOnWithdrawal) && found.is_none()
                || is_disabled(CasRule::BumpOnWithdrawal) && found.is_some();
            if !has_slot && may_conclude {
                return Ok(Change::Keep(()));
            }
            let absent = Election::default();
            let next = found.unwrap_or(&absent).without(epoch, |slot| slot.is(&self.id, nonce))?;
            Ok(Change::Swap(next, ()))
        });
        change.await?;
        lock(&self.entries.0).remove(&nonce.0);
        Ok(())
    }
}

fn entry_gone() -> BackendError {
    BackendError::new(BackendErrorKind::EntryGone, "the candidate's slot is not in the queue")
}

/// The longest pause of the candidate at this place.
fn debounce(place: usize) -> Duration {
    let between = u32::try_from(place - 1).unwrap_or(u32::MAX);
    DEBOUNCE_PER_CANDIDATE.saturating_mul(between).min(MAX_DEBOUNCE)
}

/// Full jitter: a random part of a limit that doubles with each conflict (rule 8).
fn pause_after(conflicts: u32) -> Duration {
    let limit = FIRST_PAUSE.saturating_mul(1 << conflicts.min(10)).min(MAX_PAUSE);
    limit.mul_f64(fastrand::f64())
}

#[async_trait]
impl<S: CasStore> BackendSession for CasSession<S> {
    fn id(&self) -> String {
        self.id.to_string()
    }

    async fn cluster(&self) -> Result<String, BackendError> {
        probe::store_identity(&self.shared.client).await
    }

    fn granted_ttl(&self) -> Duration {
        self.ttl
    }

    fn expires_after(&self) -> Duration {
        // The successor waits for the TTL and the drift bound from its last look, which may be a quarter of a TTL after the last
        // heartbeat.
        let waits = self.ttl.mul_f64(1.0 + self.drift) + self.ttl / 4;
        waits + self.shared.settings.poll_interval + Duration::from_secs(1)
    }

    fn only_heartbeats_extend(&self) -> bool {
        true
    }

    fn proof(&self) -> HeartbeatProof {
        // A linearizable swap.
        HeartbeatProof::Answer
    }

    async fn heartbeat(&self) -> Result<Heartbeat, BackendError> {
        if is_disabled(CasRule::OnlySessionSwapsExtend) && self.has_won.swap(false, SeqCst) {
            return Ok(Heartbeat::new(self.ttl));
        }
        self.beat().await?;
        Ok(Heartbeat::new(self.ttl))
    }

    async fn enter(&self, request: &EntryRequest) -> Result<Entered, BackendError> {
        match self.enter_queue(request).await {
            // The engine withdraws no request that was refused for good.
            Err(error) if error.is_permanent() && lock(&self.entries.0).contains_key(&request.nonce) => {
                match self.withdraw(&request.election, Nonce(request.nonce)).await {
                    Ok(()) => Err(error),
                    Err(failed) => {
                        let text = format!("{error}; its slot is not removed yet: {failed}");
                        Err(BackendError::new(BackendErrorKind::Unavailable, text))
                    }
                }
            }
            entered => entered,
        }
    }

    async fn wait_turn(
        &self,
        request: &EntryRequest,
        _entry: Option<&Entry>,
        position: &QueuePosition,
    ) -> Result<Won, BackendError> {
        self.wait(request, position).await
    }

    fn entry_watcher(&self) -> Box<dyn EntryWatcher> {
        let (shared, entries) = (Arc::clone(&self.shared), Arc::clone(&self.entries));
        let (id, ttl) = (self.id.clone(), self.ttl);
        Box::new(PerEntryWatcher::new(move |entry, for_resign_requests| {
            let (shared, entries) = (Arc::clone(&shared), Arc::clone(&entries));
            watcher::wait_event(shared, entries, (id.clone(), ttl), entry, for_resign_requests)
        }))
    }

    async fn update(&self, _entry: &Entry, request: &EntryRequest) -> Result<(), BackendError> {
        let client = &self.shared.client;
        let change = client.change_election(&request.election, Freshness::Fresh, |found, _| {
            match found.map(|election| election.with_value(&self.id, request)).transpose()?.flatten() {
                Some(next) => Ok(Change::Swap(next, true)),
                None => Ok(Change::Keep(false)),
            }
        });
        if change.await? { Ok(()) } else { Err(entry_gone()) }
    }

    async fn leave(&self, request: &EntryRequest, _entry: Option<&Entry>) -> Result<(), BackendError> {
        self.withdraw(&request.election, Nonce(request.nonce)).await
    }

    async fn close(&self) -> Result<(), BackendError> {
        self.garbage.abort();
        let ended = self.end().await;
        let entries = lock(&self.entries.0).clone();
        let withdrawals: Vec<_> =
            entries.iter().map(|(nonce, pending)| self.withdraw(&pending.election, Nonce(*nonce))).collect();
        let withdrawn: Vec<_> =
            stream::iter(withdrawals).buffer_unordered(CONCURRENT_WITHDRAWALS).collect().await;
        ended.and_then(|()| withdrawn.into_iter().collect::<Result<(), _>>())?;
        // Nobody finds a slot of the session any more. If this fails, a collection of garbage deletes the record later (rule 10).
        let version = self.own.lock().await.version.clone();
        if let Err(error) = self.shared.client.delete_session(&self.id, &version).await {
            debug!(%error, "cannot delete the record of a session that has ended");
        }
        Ok(())
    }
}

#[cfg(test)]
impl CasSession<crate::memory::MemoryCasClient> {
    /// The number of requests to enter that are remembered.
    pub(crate) fn pending(&self) -> usize {
        lock(&self.entries.0).len()
    }
}

#[cfg(any(test, all(tenure_mutants, feature = "memory")))]
impl CasSession<crate::memory::MemoryCasClient> {
    /// What a copy of this process has, as of a virtual machine that is resumed twice.
    pub(crate) async fn copy(&self) -> Self {
        let own = self.own.lock().await;
        let copied = OwnRecord { version: own.version.clone(), unanswered: own.unanswered.clone(), ..*own };
        Self {
            shared: Arc::clone(&self.shared),
            clock: Arc::clone(&self.clock),
            id: self.id.clone(),
            ttl: self.ttl,
            drift: self.drift,
            epoch: self.epoch,
            own: tokio::sync::Mutex::new(copied),
            entries: Arc::new(Entries(Mutex::new(lock(&self.entries.0).clone()))),
            has_won: AtomicBool::new(false),
            garbage: tokio::spawn(std::future::pending()),
        }
    }
}

impl<S> Drop for CasSession<S> {
    fn drop(&mut self) {
        self.garbage.abort();
    }
}

impl<S> fmt::Debug for CasSession<S> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("CasSession").field("id", &self.id).finish_non_exhaustive()
    }
}
