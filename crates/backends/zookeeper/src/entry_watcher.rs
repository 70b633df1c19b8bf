//! What becomes of the entries that lead, all of a session's by one watcher.
//!
//! Every watch is for one event and for one connection: after a reconnect every entry is looked at again (hazards Z6, Z7,
//! Z11). What is told of an entry comes from a look at it, never from an event.

use std::{
    collections::{BTreeMap, VecDeque},
    panic::{AssertUnwindSafe, catch_unwind},
    pin::Pin,
    sync::Arc,
    task::{Context, Poll},
    time::Duration,
};

use async_trait::async_trait;
use futures::{FutureExt as _, StreamExt as _, future::BoxFuture, stream::FuturesUnordered};
use tenure_core::spi::{
    BackendError, BackendErrorKind, Entry, EntryEvent, EntryWatcher, is_resign_requested,
};
use tokio::time::{Instant, sleep, sleep_until};
use tracing::debug;
use zookeeper_client::{Error, Stat};

use crate::{
    connection::{Connection, Event},
    error::{failed, gone},
    link::Link,
    wait::{FOLLOWING, is_ours},
};

/// How many entries are looked at at a time.
const LOOKS: usize = 256;
/// The least time between two looks at entries of which nothing was heard, whichever they are.
const PACE: Duration = Duration::from_millis(200);
/// How long to wait before asking again what was refused, for whatever reason.
const PAUSE: Duration = Duration::from_secs(1);

/// Watches the entries of one session that lead.
pub(crate) struct ZookeeperPartings {
    link: Arc<Link>,
    watched: BTreeMap<u64, Watched>,
    /// The connection that the watches are on.
    connection: Option<Arc<Connection>>,
    /// What is to be looked at, and whether with a watch.
    wanted: VecDeque<(u64, bool)>,
    looks: FuturesUnordered<BoxFuture<'static, Looked>>,
    /// What was refused, and when to ask again.
    later: VecDeque<(Instant, u64)>,
    watches: FuturesUnordered<Armed>,
    /// Whose turn it is to be looked at although nothing was heard, and when.
    next: u64,
    next_at: Instant,
}

struct Watched {
    entry: Entry,
    /// Whether its candidate may still be asked to resign.
    heeds: bool,
}

/// What a look at an entry has shown.
struct Looked {
    number: u64,
    with_watch: bool,
    outcome: Result<Option<Found>, Error>,
}

struct Found {
    payload: Vec<u8>,
    stat: Stat,
    event: Option<Event>,
}

/// A watch on the entry of this number; ready when it says "look again".
struct Armed {
    number: u64,
    event: Event,
}

impl Future for Armed {
    type Output = u64;

    fn poll(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<u64> {
        // A panic is the end of the connection, which has to be looked behind as well.
        match catch_unwind(AssertUnwindSafe(|| self.event.poll_unpin(context))) {
            Ok(Poll::Pending) => Poll::Pending,
            Ok(Poll::Ready(_)) | Err(_) => Poll::Ready(self.number),
        }
    }
}

impl ZookeeperPartings {
    pub(crate) fn new(link: Arc<Link>) -> Self {
        Self {
            link,
            watched: BTreeMap::new(),
            connection: None,
            wanted: VecDeque::new(),
            looks: FuturesUnordered::new(),
            later: VecDeque::new(),
            watches: FuturesUnordered::new(),
            next: 0,
            next_at: Instant::now() + FOLLOWING,
        }
    }

    /// The connection, and everything wanted anew when it is another than before.
    async fn connect(&mut self) -> Result<Arc<Connection>, BackendError> {
        if let Some(connection) = self.connection.as_ref().filter(|connection| connection.is_unbroken()) {
            return Ok(Arc::clone(connection));
        }
        self.connection = None;
        self.looks.clear();
        self.later.clear();
        self.watches.clear();
        let connection = loop {
            match self.link.connection().await {
                Ok(connection) => break connection,
                Err(error) if error.kind() == BackendErrorKind::SessionGone => return Err(error),
                Err(error) => debug!(%error, "the own entries cannot be looked at"),
            }
            sleep(PAUSE).await;
        };
        self.wanted = self.watched.keys().map(|number| (*number, true)).collect();
        self.connection = Some(Arc::clone(&connection));
        Ok(connection)
    }

    /// Looks at what is wanted, as much at a time as is bearable.
    fn look(&mut self, connection: &Arc<Connection>) {
        while self.looks.len() < LOOKS
            && let Some((number, with_watch)) = self.wanted.pop_front()
        {
            let Some(watched) = self.watched.get(&number) else { continue };
            let (path, connection) = (Arc::clone(&watched.entry.key), Arc::clone(connection));
            self.looks.push(Box::pin(async move {
                let outcome = see(&connection, &path, with_watch).await;
                Looked { number, with_watch, outcome }
            }));
        }
        // There may have been thousands.
        if self.wanted.is_empty() {
            self.wanted.shrink_to(LOOKS);
        }
    }

    /// What a look tells.
    fn judge(&mut self, looked: Looked) -> Result<Option<(u64, EntryEvent)>, BackendError> {
        let Looked { number, with_watch, outcome } = looked;
        let Some(watched) = self.watched.get_mut(&number) else { return Ok(None) };
        let found = match outcome {
            Ok(Some(found)) => found,
            Ok(None) => {
                self.watched.remove(&number);
                return Ok(Some((number, EntryEvent::Deleted)));
            }
            Err(error) => {
                let error = failed("watching the own entry", &error);
                debug!(path = &*watched.entry.key, %error, "looking again");
                if error.kind() == BackendErrorKind::SessionGone {
                    return Err(error);
                }
                // When the connection is at fault, everything is looked at again over the next.
                if with_watch {
                    self.later.push_back((Instant::now() + PAUSE, number));
                }
                return Ok(None);
            }
        };
        if !is_ours(&self.link, &found.stat, &watched.entry) {
            return Err(gone("the entry belongs to another session"));
        }
        if let Some(event) = found.event {
            self.watches.push(Armed { number, event });
        }
        if watched.heeds && is_resign_requested(&found.payload) {
            watched.heeds = false;
            return Ok(Some((number, EntryEvent::ResignRequested)));
        }
        Ok(None)
    }

    /// Has the one looked at that it is time for, and tells when it is time for the next.
    fn due(&mut self) -> Instant {
        let now = Instant::now();
        while let Some((_, number)) = self.later.front().copied().filter(|(at, _)| *at <= now) {
            self.later.pop_front();
            self.wanted.push_back((number, true));
        }
        if self.next_at <= now {
            let after = self.watched.range(self.next..).next().or_else(|| self.watched.iter().next());
            if let Some(number) = after.map(|(number, _)| *number) {
                self.wanted.push_back((number, false));
                self.next = number + 1;
            }
            let count = u32::try_from(self.watched.len()).unwrap_or(u32::MAX).max(1);
            self.next_at = now + (FOLLOWING / count).max(PACE).mul_f64(0.75 + fastrand::f64() / 2.0);
        }
        self.later.front().map_or(self.next_at, |(at, _)| self.next_at.min(*at))
    }
}

/// Looks at an entry, and watches it.
async fn see(connection: &Connection, path: &str, with_watch: bool) -> Result<Option<Found>, Error> {
    let found = match with_watch {
        true => connection.watch_data(path).await.map(|found| {
            found.map(|(payload, stat, watch)| Found { payload, stat, event: watch.into_event() })
        }),
        false => connection
            .get(path)
            .await
            .map(|found| found.map(|(payload, stat)| Found { payload, stat, event: None })),
    };
    // Whoever may not read its own entry is asked to resign in vain.
    let unread = |stat, event| Found { payload: Vec::new(), stat, event };
    match found {
        Err(Error::NoAuth) if with_watch => {
            let found = connection.watch_end(path).await?;
            Ok(found.map(|(stat, watch)| unread(stat, watch.into_event())))
        }
        Err(Error::NoAuth) => Ok(connection.stat(path).await?.map(|stat| unread(stat, None))),
        found => found,
    }
}

#[async_trait]
impl EntryWatcher for ZookeeperPartings {
    fn add(&mut self, number: u64, entry: &Entry) {
        self.watched.insert(number, Watched { entry: entry.clone(), heeds: true });
        self.wanted.push_back((number, true));
    }

    /// Its watch is left to fire with the end of the entry, which follows.
    fn remove(&mut self, number: u64) {
        self.watched.remove(&number);
    }

    async fn next(&mut self) -> Result<(u64, EntryEvent), BackendError> {
        loop {
            let connection = self.connect().await?;
            let due = self.due();
            self.look(&connection);
            let watches = &mut self.watches;
            // Not polled once the client's task has ended: its watches panic then.
            let fired = std::future::poll_fn(|context| match connection.has_ended() {
                true => Poll::Pending,
                false => watches.poll_next_unpin(context),
            });
            tokio::select! {
                biased;
                () = connection.lost() => {}
                Some(number) = fired => self.wanted.push_back((number, true)),
                Some(looked) = self.looks.next(), if !self.looks.is_empty() => {
                    if let Some(parting) = self.judge(looked)? {
                        return Ok(parting);
                    }
                }
                () = sleep_until(due) => {}
            }
        }
    }
}
