//! What becomes of the entries that lead, all of a session's by one watcher.
//!
//! Each is watched from whenever its watch stands, and read after that; so whatever happened before is seen too. Every word of a
//! watch says "look again" and no more (see [`crate::transport::watch::watcher`]): what is told of an entry comes from a read.

use std::{
    collections::{BTreeMap, BTreeSet, VecDeque},
    sync::Arc,
    time::Duration,
};

use async_trait::async_trait;
use futures::{StreamExt as _, future::BoxFuture, stream::FuturesUnordered};
use tenure_core::spi::{
    BackendError, BackendErrorKind, Entry, EntryEvent, EntryWatcher, is_resign_requested,
};
use tokio::{
    sync::mpsc,
    time::{Instant, sleep_until},
};
use tracing::debug;

use crate::{
    Shared,
    election::position_reader::{Look, Seen},
    election::wait::{is_it, persistently, revision, see},
    transport::watch::subscriber::{Bell, Word},
    transport::watch::target::Target,
};

/// How long a watch may take to stand before its entry is read all the same.
const STAND: Duration = Duration::from_secs(1);
/// How many entries are read at a time: as many as go into the transactions that are under way.
const READS: usize = 480;
/// How many words are taken at a time.
const MANY: usize = 256;

/// How often each entry is read although nothing was heard: etcd can lose an event around a compaction (issue 18089).
const AGAIN: Duration = Duration::from_secs(30);
/// How long to wait before an entry is read again whose read was refused, as while permissions are changed;
const REFUSED: Duration = Duration::from_secs(2);
/// and one whose watch was over before it stood, as at a member that ends all of them.
const UNSTOOD: Duration = Duration::from_millis(200);
/// The least time between two such reads, of whichever entries.
const PACE: Duration = Duration::from_millis(200);

/// Watches the entries of `lease` that lead.
pub(crate) struct EtcdPartings {
    shared: Arc<Shared>,
    lease: i64,
    watched: BTreeMap<u64, Watched>,
    words: (mpsc::UnboundedSender<Word>, mpsc::UnboundedReceiver<Word>),
    heard: Vec<Word>,
    /// Watches that may not stand yet, in the order in which they were begun.
    young: VecDeque<(Instant, u64)>,
    /// What could not be read, or watched, and when to try again.
    owed: BTreeSet<(Instant, u64)>,
    /// What is to be read, and whether with its payload.
    wanted: VecDeque<(u64, bool)>,
    reads: FuturesUnordered<BoxFuture<'static, Read>>,
    /// Whose turn it is to be read although nothing was heard, and when.
    next: u64,
    next_at: Instant,
}

/// An entry.
struct Watched {
    key: Arc<str>,
    /// Its create revision.
    created: i64,
    /// Of its watch; zero without one.
    id: i64,
    /// Whether it stands.
    stands: bool,
    /// Whether its candidate may still be asked to resign.
    heeds: bool,
}

/// A read that was answered, or refused.
struct Read {
    number: u64,
    with_payload: bool,
    outcome: Result<Seen, BackendError>,
}

impl EtcdPartings {
    pub(crate) fn new(shared: Arc<Shared>, lease: i64) -> Self {
        Self {
            shared,
            lease,
            watched: BTreeMap::new(),
            words: mpsc::unbounded_channel(),
            heard: Vec::new(),
            young: VecDeque::new(),
            owed: BTreeSet::new(),
            wanted: VecDeque::new(),
            reads: FuturesUnordered::new(),
            next: 0,
            next_at: Instant::now() + AGAIN,
        }
    }

    /// Watches the entry from now on.
    fn watch(&mut self, number: u64) {
        let Some(watched) = self.watched.get_mut(&number) else { return };
        let bell = Bell::new(number, self.words.0.clone());
        watched.id = self.shared.watches.ring(Target::Key(Arc::clone(&watched.key)), bell);
        watched.stands = false;
        self.young.push_back((Instant::now() + STAND, number));
    }

    fn hear(&mut self, word: &Word) {
        // Of an entry's own: the next watch is begun only when the one before was heard to be over.
        let Some(watched) = self.watched.get_mut(&word.number) else { return };
        let stood = std::mem::replace(&mut watched.stands, word.stands);
        if !word.stands {
            watched.id = 0;
        }
        match stood || word.stands {
            true => self.wanted.push_back((word.number, false)),
            false => self.owe(word.number, UNSTOOD),
        }
    }

    /// Asks for what is to be read, as much at a time as goes together.
    fn read(&mut self) {
        while self.reads.len() < READS
            && let Some((number, with_payload)) = self.wanted.pop_front()
        {
            let Some(watched) = self.watched.get(&number) else { continue };
            let look = Look { key: Arc::clone(&watched.key), payload: with_payload, ahead: None };
            let shared = Arc::clone(&self.shared);
            self.reads.push(Box::pin(async move {
                let outcome = persistently(|| Box::pin(see(&shared, look.clone()))).await;
                Read { number, with_payload, outcome }
            }));
        }
    }

    /// What a read tells.
    fn judge(&mut self, read: Read) -> Result<Option<(u64, EntryEvent)>, BackendError> {
        let Read { number, with_payload, outcome } = read;
        let Some(watched) = self.watched.get_mut(&number) else { return Ok(None) };
        let seen = match outcome {
            Ok(seen) => seen,
            Err(error) if error.kind() == BackendErrorKind::SessionGone => return Err(error),
            Err(error) => {
                debug!(entry = &*watched.key, %error, "the own entry cannot be read");
                self.owe(number, REFUSED);
                return Ok(None);
            }
        };
        let Some(own) = seen.own.filter(|kv| is_it(kv, self.lease, watched.created)) else {
            self.remove(number);
            return Ok(Some((number, EntryEvent::Deleted)));
        };
        if watched.heeds && with_payload && is_resign_requested(own.value()) {
            watched.heeds = false;
            self.keep_watching(number);
            return Ok(Some((number, EntryEvent::ResignRequested)));
        }
        // The payload may be large, and is as it was made, mostly.
        if watched.heeds && !with_payload && own.mod_revision() != own.create_revision() {
            self.wanted.push_front((number, true));
            return Ok(None);
        }
        self.keep_watching(number);
        Ok(None)
    }

    /// Has the entry read after so long.
    fn owe(&mut self, number: u64, after: Duration) {
        self.owed.insert((Instant::now() + after.mul_f64(0.75 + fastrand::f64() / 2.0), number));
    }

    /// Watches the entry again whose watch has had its word.
    fn keep_watching(&mut self, number: u64) {
        if self.watched.get(&number).is_some_and(|watched| watched.id == 0) {
            self.watch(number);
        }
    }

    /// Has those read that it is time for, and tells when it is time for the next.
    fn due(&mut self) -> Instant {
        let now = Instant::now();
        while let Some((at, number)) = self.young.front().copied()
            && (at <= now || self.watched.get(&number).is_none_or(|watched| watched.stands))
        {
            self.young.pop_front();
            if self.watched.get(&number).is_some_and(|watched| !watched.stands) {
                self.wanted.push_back((number, false));
            }
        }
        while let Some((_, number)) = self.owed.first().copied().filter(|(at, _)| *at <= now) {
            self.owed.pop_first();
            self.wanted.push_back((number, false));
        }
        if self.next_at <= now {
            let after = self.watched.range(self.next..).next().or_else(|| self.watched.iter().next());
            if let Some(number) = after.map(|(number, _)| *number) {
                self.wanted.push_back((number, false));
                self.next = number + 1;
            }
            let count = u32::try_from(self.watched.len()).unwrap_or(u32::MAX).max(1);
            self.next_at = now + (AGAIN / count).max(PACE).mul_f64(0.75 + fastrand::f64() / 2.0);
        }
        // There may have been thousands.
        if self.young.is_empty() && self.wanted.is_empty() {
            self.young.shrink_to(MANY);
            self.wanted.shrink_to(MANY);
        }
        let others = self.young.front().into_iter().chain(self.owed.first());
        others.fold(self.next_at, |next, (at, _)| next.min(*at))
    }
}

#[async_trait]
impl EntryWatcher for EtcdPartings {
    fn add(&mut self, number: u64, entry: &Entry) {
        let (key, created) = (Arc::clone(&entry.key), revision(entry));
        self.watched.insert(number, Watched { key, created, id: 0, stands: false, heeds: true });
        self.watch(number);
    }

    fn remove(&mut self, number: u64) {
        if let Some(watched) = self.watched.remove(&number)
            && watched.id != 0
        {
            self.shared.watches.hush(watched.id);
        }
    }

    async fn next(&mut self) -> Result<(u64, EntryEvent), BackendError> {
        loop {
            let due = self.due();
            self.read();
            tokio::select! {
                biased;
                Some(read) = self.reads.next(), if !self.reads.is_empty() => {
                    if let Some(parting) = self.judge(read)? {
                        return Ok(parting);
                    }
                }
                _ = self.words.1.recv_many(&mut self.heard, MANY) => {
                    let mut heard = std::mem::take(&mut self.heard);
                    heard.drain(..).for_each(|word| self.hear(&word));
                    self.heard = heard;
                }
                () = sleep_until(due) => {}
            }
        }
    }
}

impl Drop for EtcdPartings {
    fn drop(&mut self) {
        for watched in self.watched.values().filter(|watched| watched.id != 0) {
            self.shared.watches.hush(watched.id);
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use tenure_core::ElectionName;
    use tokio::time::advance;

    use super::*;
    use crate::{EtcdBackend, EtcdConfig};

    /// A watcher of one entry, whose watch stands.
    fn standing() -> (EtcdBackend, EtcdPartings) {
        let backend = EtcdBackend::new(EtcdConfig::new(["127.0.0.1:1"])).unwrap();
        let mut partings = EtcdPartings::new(Arc::clone(&backend.shared), 7);
        let election = ElectionName::new("e").unwrap();
        partings.add(1, &Entry { election, key: "/t/e/7".into(), version: 5 });
        partings.hear(&Word { number: 1, stands: true });
        partings.wanted.clear();
        (backend, partings)
    }

    fn refused() -> Read {
        let outcome = Err(BackendError::new(BackendErrorKind::Unauthorized, "permission denied"));
        Read { number: 1, with_payload: false, outcome }
    }

    /// Hazard G12: the entry is read again soon, whatever the store had against it once.
    #[tokio::test(start_paused = true)]
    async fn a_refused_read_is_repeated() {
        let (_backend, mut partings) = standing();
        advance(STAND * 2).await;
        partings.due();
        partings.hear(&Word { number: 1, stands: false });
        partings.wanted.clear();
        assert!(partings.judge(refused()).unwrap().is_none());
        advance(REFUSED * 2).await;
        partings.due();
        assert_eq!(partings.wanted, [(1, false)]);
    }

    #[tokio::test(start_paused = true)]
    async fn a_watch_that_never_stood_is_not_begun_anew_at_once() {
        let (_backend, mut partings) = standing();
        partings.watch(1);
        partings.hear(&Word { number: 1, stands: false });
        partings.due();
        assert!(partings.wanted.is_empty());
        advance(UNSTOOD * 2).await;
        partings.due();
        assert_eq!(partings.wanted, [(1, false)]);
    }
}
