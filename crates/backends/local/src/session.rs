//! A session: entries that live until they are removed, the session is closed or dropped, or the process ends.

use std::{
    fmt,
    os::fd::OwnedFd,
    sync::Arc,
    time::{Duration, Instant},
};

use async_trait::async_trait;
use tenure_core::{
    ElectionName, FencingToken,
    spi::{
        BackendError, BackendErrorKind, BackendSession, Entered, Entry, EntryEvent, EntryRequest,
        EntryWatcher, Heartbeat, HeartbeatProof, PerEntryWatcher, QueuePosition, Won,
    },
};

use crate::{
    entry::OwnEntry,
    error::io_error,
    layout::{create_dir, entry_file, resign_request_file},
    queue::{self, QueuePosition as Position, queue_position},
    recheck::RecheckTimer,
    session_entries::{RequestState, SessionEntries, entry_gone, no_entry},
    store::Store,
    token_counter::TokenCounter,
    watch::{EventFilter, Subscription},
};

/// How long another process can hold the counter's lock before the store counts as unavailable.
const MAX_LOCK_WAIT: Duration = Duration::from_secs(2);
const MIN_LOCK_BACKOFF_MS: u64 = 1;
const MAX_LOCK_BACKOFF_MS: u64 = 16;

/// A session of this process in the store.
pub(crate) struct LocalSession {
    store: Arc<Store>,
    id: String,
    ttl: Duration,
    entries: Arc<SessionEntries>,
}

impl LocalSession {
    pub(crate) fn new(store: Arc<Store>, ttl: Duration) -> Self {
        let id = format!("{}-{:016x}", std::process::id(), fastrand::u64(..));
        Self { store, id, ttl, entries: Arc::default() }
    }

    /// A duplicate of the locked file of an entry.
    pub(crate) fn lock_file(&self, entry: &Entry) -> Result<OwnedFd, BackendError> {
        let own = self.entries.entry(entry)?;
        own.duplicate().map_err(|e| io_error("duplicate", own.path(), &e))
    }

    /// Determines the position of an entry, after making sure that the subscription watches the directory.
    async fn check_position(
        &self,
        election: &ElectionName,
        own: &Arc<OwnEntry>,
        mut subscription: Subscription,
    ) -> Result<(Subscription, Position), BackendError> {
        let (store, election, own) = (Arc::clone(&self.store), election.clone(), Arc::clone(own));
        let operation = move || {
            subscription.ensure_watching();
            let dir = store.layout.election(&election);
            let position = queue_position(&own, &dir).map_err(|e| io_error("read", &dir, &e))?;
            if position == (Position::First { dead_entries: true }) {
                sweep_if_unlocked(&store, &election);
            }
            Ok((subscription, position))
        };
        self.store.blocking_pool.run(operation).await
    }
}

/// Waits until the entry no longer exists or, if `for_resign_requests`, its candidate is requested to resign.
async fn wait_event(
    store: Arc<Store>,
    entries: Arc<SessionEntries>,
    entry: Entry,
    for_resign_requests: bool,
) -> Result<EntryEvent, BackendError> {
    let Ok(own) = entries.entry(&entry) else { return Ok(EntryEvent::Deleted) };
    let dir = store.layout.election(&entry.election);
    let mut subscription = Subscription::new(&store.watcher, dir);
    let files = vec![entry_file(own.number()), resign_request_file(own.number())];
    subscription.set_filter(EventFilter::Removal(files));
    let mut recheck = RecheckTimer::new();
    loop {
        let checked = Arc::clone(&own);
        let operation = move || {
            subscription.ensure_watching();
            let in_place = checked.is_in_place().map_err(|e| io_error("find", checked.path(), &e))?;
            Ok((subscription, in_place, for_resign_requests && checked.is_resign_requested()))
        };
        let (in_place, resign_requested);
        (subscription, in_place, resign_requested) = store.blocking_pool.run(operation).await?;
        if !in_place || entries.entry(&entry).is_err() {
            return Ok(EntryEvent::Deleted);
        }
        if resign_requested {
            return Ok(EntryEvent::ResignRequested);
        }
        recheck.wait(&subscription).await;
    }
}

/// Removes the files of dead candidates, unless another candidate is entering, which removes them too.
fn sweep_if_unlocked(store: &Store, election: &ElectionName) {
    let swept = TokenCounter::try_lock(&store.layout, election)
        .and_then(|locked| locked.map(|l| queue::sweep(&store.layout.election(election), &l)).transpose());
    if let Err(error) = swept {
        tracing::debug!(%error, %election, "cannot remove dead entries; the next candidate removes them");
    }
}

/// Creates an entry. Returns it and whether it leads, or `None` if another process is entering. Never waits.
fn try_create_entry(
    store: &Store,
    session: &str,
    request: &EntryRequest,
) -> Result<Option<(Arc<OwnEntry>, bool)>, BackendError> {
    let layout = &store.layout;
    let counter_path = layout.counter(&request.election);
    layout.create_dirs().map_err(|e| io_error("create the directory", layout.root(), &e))?;
    let counter =
        TokenCounter::try_lock(layout, &request.election).map_err(|e| io_error("lock", &counter_path, &e))?;
    let Some(counter) = counter else { return Ok(None) };
    let dir = layout.election(&request.election);
    create_dir(&dir).map_err(|e| io_error("create the directory", &dir, &e))?;
    let swept = queue::sweep(&dir, &counter).map_err(|e| io_error("remove dead entries in", &dir, &e))?;
    let number = counter.next(swept.highest_number).map_err(|e| io_error("increment", &counter_path, &e))?;
    let own = OwnEntry::create(&dir, number, session, &request.payload())
        .map_err(|e| io_error("create an entry in", &dir, &e))?;
    // If the counter's file was deleted meanwhile, another candidate may have entered at the same time. This is checked
    // after the entry has become visible: a candidate that locks a new counter after this check finds the entry.
    if !counter.is_in_place().map_err(|e| io_error("find", &counter_path, &e))? {
        own.release().map_err(|e| io_error("remove", own.path(), &e))?;
        return Ok(None);
    }
    let leads = !swept.has_leader;
    tracing::debug!(election = %request.election, entry = number, leads, "entered the election");
    Ok(Some((Arc::new(own), leads)))
}

/// Finds the entry of the request or creates it; `None` if another process is entering. Never waits.
fn try_enter(
    store: &Store,
    entries: &SessionEntries,
    session: &str,
    request: &EntryRequest,
    state: &mut RequestState,
) -> Result<Option<Entered>, BackendError> {
    let (own, leads) = match state {
        RequestState::Withdrawn => {
            return Err(BackendError::new(
                BackendErrorKind::EntryGone,
                "the request to enter has been withdrawn",
            ));
        }
        RequestState::Entered(election, own) => {
            let dir = store.layout.election(election);
            let position = queue_position(own, &dir).map_err(|e| io_error("read", &dir, &e))?;
            (Arc::clone(own), matches!(position, Position::First { .. }))
        }
        RequestState::Pending => {
            let Some((own, leads)) = try_create_entry(store, session, request)? else { return Ok(None) };
            *state = RequestState::Entered(request.election.clone(), Arc::clone(&own));
            entries.insert(request.election.clone(), Arc::clone(&own));
            (own, leads)
        }
    };
    let key = format!("{}/{}", request.election, entry_file(own.number()));
    let entry = Entry { election: request.election.clone(), key: key.into(), version: own.number() };
    Ok(Some(match leads {
        true => Entered::Leads(Won::new(entry, token(&own)?)),
        false => Entered::Queued { entry: Some(entry) },
    }))
}

fn token(own: &OwnEntry) -> Result<FencingToken, BackendError> {
    FencingToken::new(own.number())
        .ok_or_else(|| BackendError::new(BackendErrorKind::Invalid, "an entry has the number zero"))
}

impl fmt::Debug for LocalSession {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("LocalSession").field("id", &self.id).finish_non_exhaustive()
    }
}

#[async_trait]
impl BackendSession for LocalSession {
    fn id(&self) -> String {
        self.id.clone()
    }

    fn granted_ttl(&self) -> Duration {
        self.ttl
    }

    fn only_heartbeats_extend(&self) -> bool {
        true
    }

    fn proof(&self) -> HeartbeatProof {
        HeartbeatProof::Process
    }

    async fn heartbeat(&self) -> Result<Heartbeat, BackendError> {
        self.entries.ensure_open()?;
        Ok(Heartbeat::new(self.ttl))
    }

    async fn enter(&self, request: &EntryRequest) -> Result<Entered, BackendError> {
        let mut state = self.entries.request_or_default(request.nonce)?.lock_owned().await;
        let began = Instant::now();
        let mut backoff_ms = MIN_LOCK_BACKOFF_MS;
        loop {
            let (store, entries) = (Arc::clone(&self.store), Arc::clone(&self.entries));
            let (session, request) = (self.id.clone(), request.clone());
            let election = request.election.clone();
            let operation = move || {
                let entered = try_enter(&store, &entries, &session, &request, &mut state)?;
                Ok((state, entered))
            };
            let entered;
            (state, entered) = self.store.blocking_pool.run(operation).await?;
            if let Some(entered) = entered {
                return Ok(entered);
            }
            if began.elapsed() > MAX_LOCK_WAIT {
                return Err(BackendError::new(
                    BackendErrorKind::Unavailable,
                    format!(
                        "cannot enter the election {election}: another process has held its lock for more than {} s; \
                         check whether a process is stopped",
                        MAX_LOCK_WAIT.as_secs()
                    ),
                ));
            }
            tokio::time::sleep(Duration::from_millis(fastrand::u64(1..=backoff_ms))).await;
            backoff_ms = (backoff_ms * 2).min(MAX_LOCK_BACKOFF_MS);
        }
    }

    async fn wait_turn(
        &self,
        _request: &EntryRequest,
        entry: Option<&Entry>,
        _position: &QueuePosition,
    ) -> Result<Won, BackendError> {
        let entry = entry.ok_or_else(no_entry)?;
        let own = self.entries.entry(entry)?;
        let dir = self.store.layout.election(&entry.election);
        let mut subscription = Subscription::new(&self.store.watcher, dir);
        let mut recheck = RecheckTimer::new();
        loop {
            let position;
            (subscription, position) = self.check_position(&entry.election, &own, subscription).await?;
            match position {
                Position::First { .. } => return Ok(Won::new(entry.clone(), token(&own)?)),
                Position::Gone => return Err(entry_gone(entry)),
                Position::Behind(predecessor) => {
                    let files = vec![entry_file(predecessor), entry_file(own.number())];
                    subscription.set_filter(EventFilter::Removal(files));
                }
            }
            recheck.wait(&subscription).await;
        }
    }

    fn entry_watcher(&self) -> Box<dyn EntryWatcher> {
        let (store, entries) = (Arc::clone(&self.store), Arc::clone(&self.entries));
        Box::new(PerEntryWatcher::new(move |entry, for_resign_requests| {
            wait_event(Arc::clone(&store), Arc::clone(&entries), entry, for_resign_requests)
        }))
    }

    async fn update(&self, entry: &Entry, request: &EntryRequest) -> Result<(), BackendError> {
        self.entries.entry(entry)?;
        // Does not create a state: a withdrawn request stays withdrawn.
        let state = self.entries.request(request.nonce);
        let state = state.ok_or_else(|| entry_gone(entry))?.lock_owned().await;
        let (entry, payload) = (entry.clone(), request.payload());
        let operation = move || {
            let RequestState::Entered(_, own) = &*state else { return Err(entry_gone(&entry)) };
            if !own.is_in_place().map_err(|e| io_error("find", own.path(), &e))? {
                return Err(entry_gone(&entry));
            }
            own.replace_payload(&payload).map_err(|e| io_error("write", own.path(), &e))
        };
        self.store.blocking_pool.run(operation).await
    }

    async fn leave(&self, request: &EntryRequest, _entry: Option<&Entry>) -> Result<(), BackendError> {
        let (entries, nonce) = (Arc::clone(&self.entries), request.nonce);
        let Some(state) = entries.request(nonce) else { return Ok(()) };
        let mut state = state.lock_owned().await;
        self.store.blocking_pool.run(move || entries.withdraw(nonce, &mut state)).await
    }

    async fn close(&self) -> Result<(), BackendError> {
        for (nonce, state) in self.entries.close() {
            let mut state = state.lock_owned().await;
            let entries = Arc::clone(&self.entries);
            self.store.blocking_pool.run(move || entries.withdraw(nonce, &mut state)).await?;
        }
        Ok(())
    }
}
