//! The store: sessions that expire, and a queue of entries per election, within this process.

use std::{
    collections::BTreeMap,
    sync::Mutex,
    time::{Duration, Instant},
};

use tenure_core::{
    Candidate, ElectionName, FencingToken,
    spi::{BackendError, BackendErrorKind, Entry, EntryRequest, Won},
};

#[derive(Debug, Default)]
pub(crate) struct Store(Mutex<State>);

#[derive(Debug, Default)]
pub(crate) struct State {
    /// The last number of a session or an entry. No number is used twice.
    last: u64,
    /// The TTL of each session, and when it expires.
    pub(crate) sessions: BTreeMap<u64, (Duration, Instant)>,
    /// The entries. The first one of an election leads.
    pub(crate) entries: BTreeMap<u64, StoredEntry>,
}

#[derive(Debug)]
pub(crate) struct StoredEntry {
    session: u64,
    pub(crate) request: EntryRequest,
    pub(crate) payload: Vec<u8>,
}

impl Store {
    /// Executes a request as one atomic step, after removing sessions that have expired and entries without a session.
    pub(crate) fn execute<T>(&self, request: impl FnOnce(&mut State) -> T) -> T {
        let mut state = self.0.lock().expect("no request panics");
        let State { sessions, entries, .. } = &mut *state;
        sessions.retain(|_, (_, expiry)| *expiry > Instant::now());
        entries.retain(|_, entry| sessions.contains_key(&entry.session));
        request(&mut state)
    }

    /// Repeats a request until it returns a value: this store has no notifications.
    pub(crate) async fn poll<T>(&self, request: impl Fn(&mut State) -> Option<T>) -> T {
        loop {
            if let Some(value) = self.execute(&request) {
                return value;
            }
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    }
}

impl State {
    pub(crate) fn open(&mut self, ttl: Duration) -> u64 {
        self.last += 1;
        self.sessions.insert(self.last, (ttl, Instant::now() + ttl));
        self.last
    }

    /// Extends a session, and with it all of its entries. Returns the TTL.
    pub(crate) fn renew(&mut self, session: u64) -> Result<Duration, BackendError> {
        let (ttl, expiry) =
            self.sessions.get_mut(&session).ok_or_else(|| gone(BackendErrorKind::SessionGone))?;
        *expiry = Instant::now() + *ttl;
        Ok(*ttl)
    }

    /// The number of the entry that `request` creates, or has created before: it is repeated when its answer is lost.
    pub(crate) fn enter(&mut self, session: u64, request: &EntryRequest) -> Result<u64, BackendError> {
        self.sessions.get(&session).ok_or_else(|| gone(BackendErrorKind::SessionGone))?;
        if let Some((number, _)) = self.entries.iter().find(|(_, entry)| entry.request.nonce == request.nonce)
        {
            return Ok(*number);
        }
        self.last += 1;
        let entry = StoredEntry { session, request: request.clone(), payload: request.payload() };
        self.entries.insert(self.last, entry);
        Ok(self.last)
    }

    pub(crate) fn find(&self, session: u64, entry: &Entry) -> Option<&StoredEntry> {
        self.entries.get(&entry.version).filter(|found| found.session == session)
    }

    /// The win of this entry, if it leads. Its number is the fencing token.
    pub(crate) fn turn(&self, entry: &Entry) -> Option<Won> {
        let first = self.entries.iter().find(|(_, other)| other.request.election == entry.election);
        let number = *first?.0;
        let won = Won::new(entry.clone(), FencingToken::new(number)?);
        (number == entry.version).then_some(won)
    }

    pub(crate) fn candidates(&self, election: &ElectionName) -> impl Iterator<Item = Candidate> {
        self.entries.iter().filter(|(_, entry)| entry.request.election == *election).map(|(number, entry)| {
            let (session, token) = (entry.session.to_string(), FencingToken::new(*number));
            Candidate::decode(&number.to_string(), session, &entry.payload, token)
        })
    }
}

pub(crate) fn gone(kind: BackendErrorKind) -> BackendError {
    BackendError::new(kind, "the session or the entry does not exist")
}
