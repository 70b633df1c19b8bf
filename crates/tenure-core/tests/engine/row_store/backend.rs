//! A store with one row per election, its sessions, and a candidate's connection to it.

use std::{
    collections::BTreeMap,
    future::pending,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicBool, AtomicUsize, Ordering::SeqCst},
    },
    time::Duration,
};

use async_trait::async_trait;
use tenure_core::{
    Candidate, Clock, ElectionName, FencingToken,
    spi::{
        Backend, BackendError, BackendErrorKind, BackendSession, Capabilities, Entered, Entry, EntryEvent,
        EntryRequest, EntryWatcher, Heartbeat, HeartbeatProof, Observation, PerEntryWatcher, QueuePosition,
        SessionOptions, SessionScope, Stamp, Won,
    },
};
use tokio::time::Instant;

use crate::host::sleep;

/// The interval at which a waiting candidate polls the row.
const POLL: Duration = Duration::from_millis(10);

/// What a heartbeat renews.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Recipe {
    /// Each election's row has an expiry of its own. A heartbeat renews the rows that the backend knows it has.
    KnownRows,
    /// The same, but a heartbeat also renews the rows that the session may have: those asked for without an answer yet.
    PossibleRows,
    /// A session serves one election, whose row has the expiry. A heartbeat renews that row.
    RowPerSession,
    /// A record per session has the expiry; an election's row names its owner's session. A heartbeat renews the record.
    SessionRecord,
}

/// A store with rows, each request one atomic step.
#[derive(Debug)]
pub(crate) struct RowStore {
    recipe: Recipe,
    tables: Mutex<Tables>,
}

#[derive(Debug, Default)]
struct Tables {
    /// When each session expires; only [`Recipe::SessionRecord`] uses it.
    sessions: BTreeMap<u64, Instant>,
    rows: BTreeMap<ElectionName, Row>,
    last_session: u64,
    last_token: u64,
}

#[derive(Debug)]
struct Row {
    session: u64,
    nonce: u128,
    token: u64,
    /// Not used by [`Recipe::SessionRecord`].
    expires: Instant,
}

fn gone(kind: BackendErrorKind) -> BackendError {
    BackendError::new(kind, "expired, or taken over")
}

impl RowStore {
    pub(crate) fn new(recipe: Recipe) -> Arc<Self> {
        Arc::new(Self { recipe, tables: Mutex::default() })
    }

    fn tables(&self) -> MutexGuard<'_, Tables> {
        self.tables.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(crate) fn open(&self, ttl: Duration) -> u64 {
        let mut tables = self.tables();
        tables.last_session += 1;
        let session = tables.last_session;
        tables.sessions.insert(session, Instant::now() + ttl);
        session
    }

    /// Takes the election's row if it is free. Returns the token if `session` has the row now.
    pub(crate) fn take(
        &self,
        session: u64,
        request: &EntryRequest,
        ttl: Duration,
    ) -> Result<Option<FencingToken>, BackendError> {
        let now = Instant::now();
        let mut tables = self.tables();
        if self.recipe == Recipe::SessionRecord && tables.sessions.get(&session).is_none_or(|end| *end <= now)
        {
            return Err(gone(BackendErrorKind::SessionGone));
        }
        if let Some(row) = tables.rows.get(&request.election) {
            let owner = row.session;
            if (owner, row.nonce) == (session, request.nonce) {
                return Ok(FencingToken::new(row.token));
            }
            let expires = match self.recipe {
                Recipe::KnownRows | Recipe::PossibleRows | Recipe::RowPerSession => Some(row.expires),
                Recipe::SessionRecord => tables.sessions.get(&owner).copied(),
            };
            if expires.is_some_and(|expires| expires > now) {
                return Ok(None);
            }
            // In this order: no heartbeat renews the session of a row that was taken over.
            tables.sessions.remove(&owner);
        }
        tables.last_token += 1;
        let token = tables.last_token;
        let row = Row { session, nonce: request.nonce, token, expires: now + ttl };
        tables.rows.insert(request.election.clone(), row);
        Ok(FencingToken::new(token))
    }

    /// Renews a session. `rows` are the elections and nonces that it requested, and whether an answer has said that it has the
    /// row.
    fn renew(
        &self,
        session: u64,
        rows: &[(ElectionName, u128, bool)],
        ttl: Duration,
    ) -> Result<(), BackendError> {
        let expires = Instant::now() + ttl;
        let mut tables = self.tables();
        if self.recipe == Recipe::SessionRecord {
            let record =
                tables.sessions.get_mut(&session).ok_or_else(|| gone(BackendErrorKind::SessionGone))?;
            *record = expires;
            return Ok(());
        }
        for (election, nonce, known) in rows {
            match tables.rows.get_mut(election) {
                _ if !known && self.recipe != Recipe::PossibleRows => {}
                Some(row) if row.nonce == *nonce => row.expires = expires,
                _ if *known => return Err(gone(BackendErrorKind::SessionGone)),
                _ => {}
            }
        }
        Ok(())
    }

    fn has(&self, election: &ElectionName, nonce: u128) -> bool {
        self.tables().rows.get(election).is_some_and(|row| row.nonce == nonce)
    }

    fn token(&self, election: &ElectionName, nonce: u128) -> Option<FencingToken> {
        let tables = self.tables();
        let row = tables.rows.get(election).filter(|row| row.nonce == nonce)?;
        FencingToken::new(row.token)
    }

    fn release(&self, request: &EntryRequest) {
        if self.has(&request.election, request.nonce) {
            self.tables().rows.remove(&request.election);
        }
    }

    fn close(&self, session: u64) {
        let mut tables = self.tables();
        tables.rows.retain(|_, row| row.session != session);
        tables.sessions.remove(&session);
    }

    /// The numbers of open sessions and of rows.
    pub(crate) fn left(&self) -> (usize, usize) {
        let tables = self.tables();
        (tables.sessions.len(), tables.rows.len())
    }

    /// The session that has the row of an election.
    pub(crate) fn owner(&self, election: &ElectionName) -> Option<u64> {
        self.tables().rows.get(election).map(|row| row.session)
    }
}

/// The connection of one candidate to the store. Requests have no delay.
#[derive(Debug)]
pub(crate) struct Connection {
    store: Arc<RowStore>,
    cut: AtomicBool,
    drops_requests: AtomicBool,
    /// The delay of the first answer that the row was taken.
    first_row_delay: Mutex<Option<Duration>>,
    /// The delay before a row is released.
    pub(crate) release_delay: Mutex<Option<Duration>>,
    /// The number of heartbeats, and of those sent while a row was being released.
    pub(crate) heartbeats: AtomicUsize,
    pub(crate) late_heartbeats: AtomicUsize,
    is_releasing: AtomicBool,
}

impl Connection {
    pub(crate) fn new(store: &Arc<RowStore>, first_row_delay: Option<Duration>) -> Arc<Self> {
        Arc::new(Self {
            store: Arc::clone(store),
            cut: AtomicBool::new(false),
            drops_requests: AtomicBool::new(false),
            first_row_delay: Mutex::new(first_row_delay),
            release_delay: Mutex::default(),
            heartbeats: AtomicUsize::new(0),
            late_heartbeats: AtomicUsize::new(0),
            is_releasing: AtomicBool::new(false),
        })
    }

    /// Drops all requests and answers from now on.
    pub(crate) fn cut(&self) {
        self.cut.store(true, SeqCst);
    }

    /// Drops all requests from now on. Answers arrive.
    pub(crate) fn drop_requests(&self) {
        self.drops_requests.store(true, SeqCst);
    }

    /// Sends a request, whose answer is delayed by `late`.
    async fn send<T>(
        &self,
        request: impl FnOnce(&RowStore) -> T,
        late: impl FnOnce(&T) -> Option<Duration>,
    ) -> T {
        if self.cut.load(SeqCst) || self.drops_requests.load(SeqCst) {
            pending::<()>().await;
        }
        let answer = request(&self.store);
        if let Some(late) = late(&answer) {
            sleep(late).await;
        }
        if self.cut.load(SeqCst) {
            pending::<()>().await;
        }
        answer
    }

    fn delay_once<E>(&self, taken: &Result<Option<FencingToken>, E>) -> Option<Duration> {
        let mut late = self.first_row_delay.lock().unwrap_or_else(PoisonError::into_inner);
        if matches!(taken, Ok(Some(_))) { late.take() } else { None }
    }
}

#[derive(Debug)]
pub(crate) struct RowBackend(pub(crate) Arc<Connection>);

#[async_trait]
impl Backend for RowBackend {
    fn capabilities(&self) -> Capabilities {
        let scope = match self.0.store.recipe {
            Recipe::RowPerSession => SessionScope::Election,
            _ => SessionScope::Elector,
        };
        Capabilities::QUEUE.ordered(false).early_token(false).session_scope(scope)
    }

    async fn open_session(&self, options: &SessionOptions) -> Result<Box<dyn BackendSession>, BackendError> {
        let (ttl, clock) = (options.ttl, Arc::clone(&options.clock));
        let id = self.0.send(|store| store.open(ttl), |_| None).await;
        let connection = Arc::clone(&self.0);
        Ok(Box::new(RowSession { connection, id, ttl, clock, candidacies: Mutex::default() }))
    }

    // Not used here.
    async fn candidates(&self, _election: &ElectionName) -> Result<Vec<Candidate>, BackendError> {
        Ok(Vec::new())
    }

    async fn observe(&self, _election: &ElectionName) -> Result<Observation, BackendError> {
        Ok(Box::pin(futures::stream::pending()))
    }
}

#[derive(Debug)]
struct RowSession {
    connection: Arc<Connection>,
    id: u64,
    ttl: Duration,
    clock: Arc<dyn Clock>,
    candidacies: Mutex<BTreeMap<ElectionName, Candidacy>>,
}

#[derive(Debug)]
struct Candidacy {
    nonce: u128,
    /// Whether an answer has said that the row belongs to this session.
    has_row: bool,
    /// When the first attempt to take the row was sent that may have taken it, or may do so later.
    sent: Option<Stamp>,
    /// The number of attempts that were not answered.
    unanswered: usize,
}

impl RowSession {
    fn candidacies(&self) -> MutexGuard<'_, BTreeMap<ElectionName, Candidacy>> {
        self.candidacies.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Takes the row if it is free.
    async fn take(&self, request: &EntryRequest) -> Result<Option<Won>, BackendError> {
        let sent = {
            let mut candidacies = self.candidacies();
            let new = || Candidacy { nonce: request.nonce, has_row: false, sent: None, unanswered: 0 };
            let candidacy = candidacies.entry(request.election.clone()).or_insert_with(new);
            if candidacy.nonce != request.nonce {
                *candidacy = new();
            }
            candidacy.unanswered += 1;
            *candidacy.sent.get_or_insert_with(|| Stamp::now(&*self.clock))
        };
        let taking = |store: &RowStore| store.take(self.id, request, self.ttl);
        let token = self.connection.send(taking, |taken| self.connection.delay_once(taken)).await?;
        if let Some(candidacy) = self.candidacies().get_mut(&request.election) {
            candidacy.has_row = token.is_some();
            candidacy.unanswered -= 1;
            // The row is another's, and no attempt can take it any more: a later one does.
            if token.is_none() && candidacy.unanswered == 0 {
                candidacy.sent = None;
            }
        }
        let key = request.nonce.to_string().into();
        let entry = Entry { election: request.election.clone(), key, version: 0 };
        Ok(token.map(|token| Won::new(entry, token).sent(sent)))
    }
}

#[async_trait]
impl BackendSession for RowSession {
    fn id(&self) -> String {
        self.id.to_string()
    }

    fn granted_ttl(&self) -> Duration {
        self.ttl
    }

    fn only_heartbeats_extend(&self) -> bool {
        true
    }

    fn proof(&self) -> HeartbeatProof {
        HeartbeatProof::Answer
    }

    async fn heartbeat(&self) -> Result<Heartbeat, BackendError> {
        let is_late = self.connection.is_releasing.load(SeqCst);
        self.connection.heartbeats.fetch_add(1, SeqCst);
        self.connection.late_heartbeats.fetch_add(usize::from(is_late), SeqCst);
        let rows: Vec<_> = {
            let candidacies = self.candidacies();
            candidacies.iter().map(|(election, it)| (election.clone(), it.nonce, it.has_row)).collect()
        };
        self.connection.send(|store| store.renew(self.id, &rows, self.ttl), |_| None).await?;
        Ok(Heartbeat::new(self.ttl))
    }

    async fn enter(&self, request: &EntryRequest) -> Result<Entered, BackendError> {
        Ok(match self.take(request).await? {
            Some(won) => Entered::Leads(won),
            None => {
                let owner = Candidate::decode("row", "another", &[], None);
                Entered::HeldBy(Box::new(owner))
            }
        })
    }

    async fn wait_turn(
        &self,
        request: &EntryRequest,
        entry: Option<&Entry>,
        _position: &QueuePosition,
    ) -> Result<Won, BackendError> {
        if let Some(entry) = entry {
            let found = self.connection.send(|store| store.token(&entry.election, request.nonce), |_| None);
            let token = found.await.ok_or_else(|| gone(BackendErrorKind::EntryGone))?;
            return Ok(Won::new(entry.clone(), token));
        }
        loop {
            if let Some(won) = self.take(request).await? {
                return Ok(won);
            }
            sleep(POLL).await;
        }
    }

    fn entry_watcher(&self) -> Box<dyn EntryWatcher> {
        let connection = Arc::clone(&self.connection);
        Box::new(PerEntryWatcher::new(move |entry, _| {
            let connection = Arc::clone(&connection);
            async move {
                let nonce = entry.key.parse().unwrap();
                while connection.send(|store| store.has(&entry.election, nonce), |_| None).await {
                    sleep(POLL).await;
                }
                Ok(EntryEvent::Deleted)
            }
        }))
    }

    async fn update(&self, _entry: &Entry, _request: &EntryRequest) -> Result<(), BackendError> {
        Err(BackendError::new(BackendErrorKind::Invalid, "values are not kept"))
    }

    async fn leave(&self, request: &EntryRequest, _entry: Option<&Entry>) -> Result<(), BackendError> {
        let delay = *self.connection.release_delay.lock().unwrap_or_else(PoisonError::into_inner);
        self.connection.is_releasing.store(true, SeqCst);
        if let Some(delay) = delay {
            sleep(delay).await;
        }
        self.connection.send(|store| store.release(request), |_| None).await;
        self.connection.is_releasing.store(false, SeqCst);
        self.candidacies().retain(|_, candidacy| candidacy.nonce != request.nonce);
        Ok(())
    }

    async fn close(&self) -> Result<(), BackendError> {
        self.connection.send(|store| store.close(self.id), |_| None).await;
        Ok(())
    }
}
