//! A session: the entries that live as long as it, and this process, do.

use std::{
    collections::HashMap,
    fmt,
    os::fd::OwnedFd,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::{Duration, Instant},
};

use async_trait::async_trait;
use tenure_core::{
    ElectionName, FencingToken,
    spi::{
        BackendError, BackendErrorKind, BackendSession, Entered, Entry, EntryEvent, EntryRequest, Heartbeat,
        HeartbeatProof,
    },
};
use tokio::sync::{Mutex as AsyncMutex, OwnedMutexGuard};

use crate::{
    backend::Store,
    counter::Counter,
    entry::Held,
    fault::fault,
    layout::{entry_file, make_dir, resign_file},
    pace::Pace,
    queue::{self, Standing, standing},
    watch::{Interest, Subscription},
};

/// How long another process may be in the middle of entering before we call the store unavailable.
const BUSY_LIMIT: Duration = Duration::from_secs(2);
const BUSY_PAUSE_MS: u64 = 1;
const BUSY_PAUSE_MAX_MS: u64 = 16;

/// One bond with the directory.
pub(crate) struct LocalSession {
    store: Arc<Store>,
    id: String,
    ttl: Duration,
    book: Arc<Book>,
}

/// The session's entries.
#[derive(Debug, Default)]
struct Book {
    pages: Mutex<Pages>,
}

#[derive(Debug, Default)]
struct Pages {
    closed: bool,
    /// What became of each request, by nonce. Whoever works at a request has its lock, a
    /// job on another thread too, so that a later call waits for what an earlier, dropped
    /// one had begun.
    attempts: HashMap<u128, Arc<AsyncMutex<Attempt>>>,
    held: HashMap<(ElectionName, u64), Arc<Held>>,
}

/// What became of a request to enter.
#[derive(Debug, Default)]
enum Attempt {
    /// No entry has been made.
    #[default]
    Open,
    /// This one has.
    Made(ElectionName, Arc<Held>),
    /// It was withdrawn, for good.
    Over,
}

impl Book {
    fn pages(&self) -> MutexGuard<'_, Pages> {
        self.pages.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn attempt(&self, nonce: u128) -> Result<Arc<AsyncMutex<Attempt>>, BackendError> {
        let mut pages = self.pages();
        if pages.closed {
            return Err(gone(BackendErrorKind::SessionGone, "the session has been closed"));
        }
        Ok(Arc::clone(pages.attempts.entry(nonce).or_default()))
    }

    fn held(&self, entry: &Entry) -> Result<Arc<Held>, BackendError> {
        let pages = self.pages();
        if let Some(held) = pages.held.get(&(entry.election.clone(), entry.version)) {
            return Ok(Arc::clone(held));
        }
        Err(match pages.closed {
            true => gone(BackendErrorKind::SessionGone, "the session has been closed"),
            false => entry_gone(entry),
        })
    }

    /// Ends an attempt and the life of the entry it made.
    fn withdraw(&self, nonce: u128, attempt: &mut Attempt) -> Result<(), BackendError> {
        if let Attempt::Made(election, held) = &*attempt {
            held.release().map_err(|e| fault("remove", held.path(), e))?;
            tracing::debug!(%election, entry = held.number(), "left");
            self.pages().held.remove(&(election.clone(), held.number()));
        }
        *attempt = Attempt::Over;
        self.pages().attempts.remove(&nonce);
        Ok(())
    }
}

impl LocalSession {
    pub(crate) fn new(store: Arc<Store>, ttl: Duration) -> Self {
        let id = format!("{}-{:016x}", std::process::id(), fastrand::u64(..));
        Self { store, id, ttl, book: Arc::default() }
    }

    /// Waits until the entry has gone, or its candidate has been asked to resign and `heeds` that.
    async fn part(&self, entry: &Entry, heeds: bool) -> Result<EntryEvent, BackendError> {
        let Ok(held) = self.book.held(entry) else { return Ok(EntryEvent::Deleted) };
        let dir = self.store.layout.election(&entry.election);
        let mut subscription = Subscription::new(&self.store.watcher, dir);
        let files = vec![entry_file(held.number()), resign_file(held.number())];
        subscription.narrow(Interest::Going(files));
        let mut pace = Pace::new();
        loop {
            let looked_at = Arc::clone(&held);
            let job = move || {
                subscription.renew();
                let here = looked_at.is_in_place().map_err(|e| fault("find", looked_at.path(), e))?;
                Ok((subscription, here, heeds && looked_at.is_asked_to_resign()))
            };
            let (here, asked);
            (subscription, here, asked) = self.store.jobs.run(job).await?;
            if !here || self.book.held(entry).is_err() {
                return Ok(EntryEvent::Deleted);
            }
            if asked {
                return Ok(EntryEvent::ResignRequested);
            }
            pace.wait(&subscription).await;
        }
    }

    /// Looks where the held entry stands, with the subscription renewed before.
    async fn look(
        &self,
        election: &ElectionName,
        held: &Arc<Held>,
        mut subscription: Subscription,
    ) -> Result<(Subscription, Standing), BackendError> {
        let (store, election, held) = (Arc::clone(&self.store), election.clone(), Arc::clone(held));
        let job = move || {
            subscription.renew();
            let dir = store.layout.election(&election);
            let standing = standing(&held, &dir).map_err(|e| fault("read", &dir, e))?;
            if standing == (Standing::First { tidy: true }) {
                tidy(&store, &election);
            }
            Ok((subscription, standing))
        };
        self.store.jobs.run(job).await
    }
}

/// Removes what dead candidates have left, unless somebody is entering, who does it as well.
fn tidy(store: &Store, election: &ElectionName) {
    let swept = Counter::try_lock(&store.layout, election)
        .and_then(|locked| locked.map(|l| queue::sweep(&store.layout.election(election), &l)).transpose());
    if let Err(error) = swept {
        tracing::debug!(%error, %election, "dead entries stay for the next candidate to remove");
    }
}

/// Makes an entry; `None` when another process is in the middle of it. Never waits.
fn make(
    store: &Store,
    session: &str,
    request: &EntryRequest,
) -> Result<Option<(Arc<Held>, bool)>, BackendError> {
    let layout = &store.layout;
    layout.make().map_err(|e| fault("make the directory", layout.root(), e))?;
    let counter = Counter::try_lock(layout, &request.election)
        .map_err(|e| fault("lock", &layout.counter(&request.election), e))?;
    let Some(counter) = counter else { return Ok(None) };
    let dir = layout.election(&request.election);
    make_dir(&dir).map_err(|e| fault("make the directory", &dir, e))?;
    let swept = queue::sweep(&dir, &counter).map_err(|e| fault("clean up", &dir, e))?;
    let number =
        counter.next(swept.highest).map_err(|e| fault("raise", &layout.counter(&request.election), e))?;
    let held = Held::make(&dir, number, session, &request.payload())
        .map_err(|e| fault("make an entry in", &dir, e))?;
    // Were the counter deleted meanwhile, another could have entered beside us. Asked once
    // the entry can be seen: whoever locks a new counter after this finds it.
    if !counter.is_in_place().map_err(|e| fault("find", &layout.counter(&request.election), e))? {
        held.release().map_err(|e| fault("remove", held.path(), e))?;
        return Ok(None);
    }
    tracing::debug!(election = %request.election, entry = number, leads = !swept.taken, "entered");
    Ok(Some((Arc::new(held), !swept.taken)))
}

/// Finds the attempt's entry or makes it; `None` when another process is in the way.
fn enter_once(
    store: &Store,
    book: &Book,
    session: &str,
    request: &EntryRequest,
    attempt: &mut OwnedMutexGuard<Attempt>,
) -> Result<Option<Entered>, BackendError> {
    let (held, leads) = match &**attempt {
        Attempt::Over => {
            return Err(gone(BackendErrorKind::EntryGone, "the request to enter has been withdrawn"));
        }
        Attempt::Made(election, held) => {
            let dir = store.layout.election(election);
            let standing = standing(held, &dir).map_err(|e| fault("read", &dir, e))?;
            (Arc::clone(held), matches!(standing, Standing::First { .. }))
        }
        Attempt::Open => {
            let Some((held, leads)) = make(store, session, request)? else { return Ok(None) };
            **attempt = Attempt::Made(request.election.clone(), Arc::clone(&held));
            book.pages().held.insert((request.election.clone(), held.number()), Arc::clone(&held));
            (held, leads)
        }
    };
    let key = format!("{}/{}", request.election, entry_file(held.number()));
    let entry = Entry { election: request.election.clone(), key: key.into(), version: held.number() };
    Ok(Some(Entered { entry, leads: if leads { Some(token(&held)?) } else { None } }))
}

fn token(held: &Held) -> Result<FencingToken, BackendError> {
    FencingToken::new(held.number())
        .ok_or_else(|| BackendError::new(BackendErrorKind::Invalid, "an entry has the number zero"))
}

fn entry_gone(entry: &Entry) -> BackendError {
    gone(BackendErrorKind::EntryGone, format!("the entry {} is no longer there", entry.key))
}

fn gone(kind: BackendErrorKind, message: impl Into<String>) -> BackendError {
    BackendError::new(kind, message)
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

    fn proof(&self) -> HeartbeatProof {
        HeartbeatProof::Process
    }

    async fn heartbeat(&self) -> Result<Heartbeat, BackendError> {
        if self.book.pages().closed {
            return Err(gone(BackendErrorKind::SessionGone, "the session has been closed"));
        }
        Ok(Heartbeat { ttl: self.ttl, epoch: 0 })
    }

    async fn enter(&self, request: &EntryRequest) -> Result<Entered, BackendError> {
        let mut attempt = self.book.attempt(request.nonce)?.lock_owned().await;
        let began = Instant::now();
        let mut pause = BUSY_PAUSE_MS;
        loop {
            let (store, book, session) = (Arc::clone(&self.store), Arc::clone(&self.book), self.id.clone());
            let asked = request.clone();
            let job = move || {
                let entered = enter_once(&store, &book, &session, &asked, &mut attempt)?;
                Ok((attempt, entered))
            };
            let (back, entered) = self.store.jobs.run(job).await?;
            attempt = back;
            if let Some(entered) = entered {
                return Ok(entered);
            }
            if began.elapsed() > BUSY_LIMIT {
                return Err(BackendError::new(
                    BackendErrorKind::Unavailable,
                    format!(
                        "another process has been entering the election {} for more than {} s; is one stopped?",
                        request.election,
                        BUSY_LIMIT.as_secs()
                    ),
                ));
            }
            tokio::time::sleep(Duration::from_millis(fastrand::u64(1..=pause))).await;
            pause = (pause * 2).min(BUSY_PAUSE_MAX_MS);
        }
    }

    async fn wait_turn(&self, entry: &Entry) -> Result<FencingToken, BackendError> {
        let held = self.book.held(entry)?;
        let dir = self.store.layout.election(&entry.election);
        let mut subscription = Subscription::new(&self.store.watcher, dir);
        let mut pace = Pace::new();
        loop {
            let standing;
            (subscription, standing) = self.look(&entry.election, &held, subscription).await?;
            match standing {
                Standing::First { .. } => return token(&held),
                Standing::Gone => return Err(entry_gone(entry)),
                Standing::Behind(ahead) => {
                    subscription.narrow(Interest::Going(vec![entry_file(ahead), entry_file(held.number())]));
                }
            }
            pace.wait(&subscription).await;
        }
    }

    async fn wait_deleted(&self, entry: &Entry) -> Result<(), BackendError> {
        self.part(entry, false).await.map(drop)
    }

    async fn wait_entry_event(&self, entry: &Entry) -> Result<EntryEvent, BackendError> {
        self.part(entry, true).await
    }

    async fn update(&self, entry: &Entry, request: &EntryRequest) -> Result<(), BackendError> {
        self.book.held(entry)?;
        // Looked up, not made: a withdrawn request stays withdrawn.
        let attempt = self.book.pages().attempts.get(&request.nonce).cloned();
        let mut attempt = attempt.ok_or_else(|| entry_gone(entry))?.lock_owned().await;
        let (entry, payload) = (entry.clone(), request.payload());
        let job = move || {
            let Attempt::Made(_, held) = &mut *attempt else { return Err(entry_gone(&entry)) };
            if !held.is_in_place().map_err(|e| fault("find", held.path(), e))? {
                return Err(entry_gone(&entry));
            }
            held.replace(&payload).map_err(|e| fault("write", held.path(), e))
        };
        self.store.jobs.run(job).await
    }

    async fn leave(&self, request: &EntryRequest, _entry: Option<&Entry>) -> Result<(), BackendError> {
        let (book, nonce) = (Arc::clone(&self.book), request.nonce);
        let Some(attempt) = book.pages().attempts.get(&nonce).cloned() else { return Ok(()) };
        let mut attempt = attempt.lock_owned().await;
        self.store.jobs.run(move || book.withdraw(nonce, &mut attempt)).await
    }

    fn lock_file(&self, entry: &Entry) -> Result<Option<OwnedFd>, BackendError> {
        let held = self.book.held(entry)?;
        held.duplicate().map(Some).map_err(|e| fault("duplicate", held.path(), e))
    }

    async fn close(&self) -> Result<(), BackendError> {
        let attempts: Vec<_> = {
            let mut pages = self.book.pages();
            pages.closed = true;
            pages.attempts.iter().map(|(nonce, attempt)| (*nonce, Arc::clone(attempt))).collect()
        };
        for (nonce, attempt) in attempts {
            let mut attempt = attempt.lock_owned().await;
            let book = Arc::clone(&self.book);
            self.store.jobs.run(move || book.withdraw(nonce, &mut attempt)).await?;
        }
        Ok(())
    }
}
