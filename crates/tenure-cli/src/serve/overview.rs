//! All elections whose names begin with a prefix: read once, or live as server-sent events. The web page shows the latter.
//!
//! Viewers of the same prefix share one [`Poller`], which reads while one of them is connected, and [`LINGER`] longer. What they
//! are sent is made once for all of them. A viewer that reads slowly gets the latest, and misses what was in between.

use std::{
    collections::HashMap,
    convert::Infallible,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::{Duration, SystemTime},
};

use axum::{
    body::{Body, Bytes},
    extract::{FromRequestParts, Query, State},
    http::{
        HeaderValue, StatusCode,
        header::{CONTENT_LENGTH, CONTENT_TYPE},
        request::Parts,
    },
    response::{IntoResponse, Response},
};
use futures::stream;
use serde::{Deserialize, Serialize};
use serde_json::json;
use tenure::Elector;
use tokio::{
    sync::{OwnedSemaphorePermit, Semaphore, watch},
    task::spawn_blocking,
    time::{Instant, sleep, sleep_until, timeout},
};

use super::{
    api::{Sidecar, no_answer},
    error::ApiError,
    events::{KEEP_ALIVE, MAX_SUBSCRIPTION},
};
use crate::{
    args,
    elections::{Limits, Poller, Snapshot, Term, TrackedElection, read},
    listing::{self, ElectionJson},
};

/// How much is read.
const LIMITS: Limits = Limits { elections: 500, candidates: 25, value_bytes: 512 };
/// How many viewers there can be, those of single readings included. They are no subscribers, so that pages do not keep programs from observing.
const MAX_VIEWERS: usize = 16;
/// How many prefixes can be read live at the same time.
const MAX_FEEDS: usize = 4;
/// How many single readings there can be at the same time, and how long each may take.
const MAX_READINGS: usize = 2;
const READING_TIMEOUT: Duration = Duration::from_secs(10);
/// How long the elections are read after the last viewer has gone. A page that is loaded again still has the last changes.
const LINGER: Duration = Duration::from_secs(15);
/// A snapshot of more bytes than this is sent without the candidates that wait.
const MAX_SNAPSHOT_BYTES: usize = 4 << 20;

/// What the readers of all elections share.
#[derive(Debug)]
pub(super) struct Overview {
    elector: Arc<dyn Elector>,
    store: String,
    /// By prefix. Each has a task.
    feeds: Mutex<HashMap<String, watch::Sender<Option<Arc<Update>>>>>,
    viewers: Arc<Semaphore>,
    readings: Semaphore,
}

/// The latest that viewers can be sent.
#[derive(Debug)]
struct Update {
    /// The event with everything.
    snapshot: Bytes,
    /// Differs between snapshots.
    number: u64,
    /// When the elections were read; `None` until they were.
    read_at: Option<SystemTime>,
}

/// The data of the event `snapshot`. It changes only when something has happened.
#[derive(Serialize)]
struct SnapshotJson<'a> {
    store: &'a str,
    prefix: &'a str,
    total: usize,
    truncated: bool,
    elections: Vec<TrackedJson<'a>>,
    /// The newest first.
    changes: Vec<ChangeJson<'a>>,
    outage: Option<OutageJson<'a>>,
}

#[derive(Serialize)]
struct TrackedJson<'a> {
    #[serde(flatten)]
    election: ElectionJson<'a>,
    since: String,
    start_observed: bool,
}

#[derive(Serialize)]
struct ChangeJson<'a> {
    time: String,
    election: &'a str,
    leader: Option<TermJson<'a>>,
    previous: Option<TermJson<'a>>,
}

#[derive(Serialize)]
struct TermJson<'a> {
    id: &'a str,
    token: Option<u64>,
}

#[derive(Serialize)]
struct OutageJson<'a> {
    since: String,
    error: Option<&'a str>,
}

impl Overview {
    /// Reads through `elector`, whose store has the name `store`.
    pub(super) fn new(elector: Arc<dyn Elector>, store: String) -> Self {
        Self {
            elector,
            store,
            feeds: Mutex::default(),
            viewers: Arc::new(Semaphore::new(MAX_VIEWERS)),
            readings: Semaphore::new(MAX_READINGS),
        }
    }

    fn feeds(&self) -> MutexGuard<'_, HashMap<String, watch::Sender<Option<Arc<Update>>>>> {
        self.feeds.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn admit(&self) -> Result<OwnedSemaphorePermit, ApiError> {
        Arc::clone(&self.viewers).try_acquire_owned().map_err(|_| {
            let message = format!("{MAX_VIEWERS} viewers are connected");
            too_many("too_many_viewers", message, Duration::from_secs(10))
        })
    }

    /// The updates of a prefix. The first viewer starts the readings.
    ///
    /// # Errors
    /// When too many other prefixes are read.
    fn subscribe(self: &Arc<Self>, prefix: &str) -> Result<watch::Receiver<Option<Arc<Update>>>, ApiError> {
        let mut feeds = self.feeds();
        if let Some(feed) = feeds.get(prefix) {
            return Ok(feed.subscribe());
        }
        if feeds.len() >= MAX_FEEDS {
            let message = format!("the elections of {MAX_FEEDS} other prefixes are read already");
            return Err(too_many("too_many_prefixes", message, LINGER));
        }
        let (sender, receiver) = watch::channel(None);
        feeds.insert(prefix.to_owned(), sender.clone());
        tokio::spawn(Arc::clone(self).feed(prefix.to_owned(), sender));
        Ok(receiver)
    }

    /// Reads until nobody has looked for a while.
    async fn feed(self: Arc<Self>, prefix: String, updates: watch::Sender<Option<Arc<Update>>>) {
        let mut poller = Poller::start(Arc::clone(&self.elector), prefix.clone(), LIMITS, None);
        let publish = async {
            loop {
                let snapshot = poller.latest();
                // Before the first reading nothing is known.
                if snapshot.read_at.is_some() || snapshot.outage.is_some() {
                    let previous = updates.borrow().clone();
                    let (overview, prefix) = (Arc::clone(&self), prefix.clone());
                    let made = spawn_blocking(move || overview.update(&prefix, &snapshot, previous)).await;
                    let Ok(Ok(update)) = made else { return };
                    updates.send_replace(Some(Arc::new(update)));
                }
                if !poller.changed().await {
                    return;
                }
            }
        };
        tokio::select! {
            () = publish => drop(self.feeds().remove(&prefix)),
            () = self.abandoned(&prefix, &updates) => {}
        }
    }

    /// Waits until nobody has looked for [`LINGER`], and removes the feed.
    async fn abandoned(&self, prefix: &str, updates: &watch::Sender<Option<Arc<Update>>>) {
        loop {
            updates.closed().await;
            sleep(LINGER).await;
            let mut feeds = self.feeds();
            // Nobody can subscribe while it is locked.
            if updates.receiver_count() == 0 {
                feeds.remove(prefix);
                return;
            }
        }
    }

    /// What comes after `previous`: the same snapshot, if only the time of the reading has changed.
    fn update(
        &self,
        prefix: &str,
        snapshot: &Snapshot,
        previous: Option<Arc<Update>>,
    ) -> serde_json::Result<Update> {
        let mut json = SnapshotJson::new(&self.store, prefix, snapshot);
        let mut text = serde_json::to_string(&json)?;
        if text.len() > MAX_SNAPSHOT_BYTES {
            json.elections = json
                .elections
                .into_iter()
                .map(|it| TrackedJson { election: it.election.leader_only(), ..it })
                .collect();
            text = serde_json::to_string(&json)?;
        }
        let event = Bytes::from(event("snapshot", &text));
        let read_at = snapshot.read_at;
        Ok(match previous {
            Some(previous) if previous.snapshot == event => {
                Update { snapshot: previous.snapshot.clone(), number: previous.number, read_at }
            }
            previous => {
                let number = previous.map_or(1, |previous| previous.number + 1);
                Update { snapshot: event, number, read_at }
            }
        })
    }
}

impl<'a> SnapshotJson<'a> {
    fn new(store: &'a str, prefix: &'a str, snapshot: &'a Snapshot) -> Self {
        let tracked = |tracked: &'a TrackedElection| TrackedJson {
            election: ElectionJson::new(&tracked.election).without_ages(),
            since: rfc3339(tracked.since_time),
            start_observed: tracked.start_observed,
        };
        let changes = snapshot.changes.iter().map(|change| ChangeJson {
            time: rfc3339(change.time),
            election: change.election.as_str(),
            leader: change.leader.as_ref().map(TermJson::new),
            previous: change.previous.as_ref().map(TermJson::new),
        });
        Self {
            store,
            prefix,
            total: snapshot.total,
            truncated: snapshot.is_truncated,
            elections: snapshot.elections.iter().map(tracked).collect(),
            changes: changes.collect(),
            outage: snapshot.outage.as_ref().map(|outage| OutageJson {
                since: rfc3339(
                    SystemTime::now().checked_sub(outage.since.elapsed()).unwrap_or(SystemTime::UNIX_EPOCH),
                ),
                error: outage.error.as_deref(),
            }),
        }
    }
}

impl<'a> TermJson<'a> {
    fn new(term: &'a Term) -> Self {
        Self { id: &term.id, token: term.token }
    }
}

fn rfc3339(time: SystemTime) -> String {
    humantime::format_rfc3339_millis(time).to_string()
}

/// A server-sent event. JSON on one line has no line break.
fn event(name: &str, json: &str) -> String {
    format!("event: {name}\ndata: {json}\n\n")
}

fn too_many(code: &'static str, message: String, after: Duration) -> ApiError {
    let advice = "try again once others have gone";
    let seconds = after.as_secs().try_into().unwrap_or(u16::MAX);
    ApiError::new(StatusCode::TOO_MANY_REQUESTS, code, message, advice).retry_after(seconds)
}

/// The prefix that the query names; empty without one.
pub(super) struct Prefix(String);

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct PrefixQuery {
    #[serde(default)]
    prefix: String,
}

impl<S: Send + Sync> FromRequestParts<S> for Prefix {
    type Rejection = ApiError;

    async fn from_request_parts(parts: &mut Parts, state: &S) -> Result<Self, ApiError> {
        let Ok(Query(PrefixQuery { prefix })) = Query::from_request_parts(parts, state).await else {
            let (message, advice) = ("the query is not what is expected", "prefix=PREFIX, once, or no query");
            return Err(ApiError::new(StatusCode::BAD_REQUEST, "invalid_query", message, advice));
        };
        args::prefix(&prefix).map(Self).map_err(|problem| {
            let message = format!("the prefix is not allowed: {problem}");
            ApiError::new(
                StatusCode::BAD_REQUEST,
                "invalid_prefix",
                message,
                "the beginning of a name, or nothing",
            )
        })
    }
}

/// Reads all elections once.
pub(super) async fn listing(
    State(sidecar): State<Arc<Sidecar>>,
    Prefix(prefix): Prefix,
) -> Result<Response, ApiError> {
    let overview = &sidecar.overview;
    let viewer = overview.admit()?;
    let Ok(_permit) = overview.readings.try_acquire() else {
        let message = format!("{MAX_READINGS} others read all elections");
        return Err(too_many("too_many_readings", message, Duration::from_secs(1)));
    };
    let reading = match timeout(READING_TIMEOUT, read(&overview.elector, &prefix, LIMITS, || {})).await {
        Ok(reading) => reading.map_err(|error| ApiError::of_elector(&error))?,
        Err(_) => return Err(no_answer(&sidecar)),
    };
    let store = overview.store.clone();
    let json = spawn_blocking(move || listing::json(&store, &prefix, &reading, MAX_SNAPSHOT_BYTES)).await;
    let Ok(Ok(json)) = json else {
        let message = "the elections cannot be written as JSON";
        return Err(ApiError::new(StatusCode::INTERNAL_SERVER_ERROR, "internal", message, "try again"));
    };
    let headers = [
        (CONTENT_TYPE, HeaderValue::from_static("application/json")),
        (CONTENT_LENGTH, HeaderValue::from(json.len())),
    ];
    // A slow reader stays a viewer until all is sent.
    let body = stream::unfold((Some(json), viewer), async |(json, viewer)| {
        Some((Ok::<_, Infallible>(json?), (None, viewer)))
    });
    Ok((headers, Body::from_stream(body)).into_response())
}

/// All elections now, and again at every change; in between, when they were read. Ends after ten minutes, or when the sidecar is
/// being stopped.
pub(super) async fn events(
    State(sidecar): State<Arc<Sidecar>>,
    Prefix(prefix): Prefix,
) -> Result<Response, ApiError> {
    let permit = sidecar.overview.admit()?;
    let stopping = sidecar.leases.stopping();
    let viewer = Viewer {
        updates: sidecar.overview.subscribe(&prefix)?,
        number: 0,
        read_at: None,
        end: Instant::now() + MAX_SUBSCRIPTION,
    };
    let events = stream::unfold((viewer, permit), move |(mut viewer, permit)| {
        let mut stopping = stopping.clone();
        async move {
            tokio::select! {
                event = viewer.next() => Some((Ok::<_, Infallible>(event?), (viewer, permit))),
                // The sender lives as long as the sidecar.
                _ = stopping.wait_for(|stopping| *stopping) => None,
            }
        }
    });
    Ok(([(CONTENT_TYPE, "text/event-stream")], Body::from_stream(events)).into_response())
}

/// Who is sent events.
struct Viewer {
    updates: watch::Receiver<Option<Arc<Update>>>,
    /// The snapshot that was sent last; 0 is none.
    number: u64,
    /// The last reading that the viewer knows of.
    read_at: Option<SystemTime>,
    end: Instant,
}

impl Viewer {
    /// The next event, or a comment after some time without any. `None` at the end.
    async fn next(&mut self) -> Option<Bytes> {
        loop {
            if Instant::now() >= self.end {
                return None;
            }
            let update = self.updates.borrow_and_update().clone();
            if let Some(update) = update {
                if update.number != self.number {
                    self.number = update.number;
                    return Some(update.snapshot.clone());
                }
                if let Some(read_at) = update.read_at.filter(|read_at| Some(*read_at) != self.read_at) {
                    self.read_at = Some(read_at);
                    let json = json!({ "time": rfc3339(read_at) }).to_string();
                    return Some(Bytes::from(event("reading", &json)));
                }
            }
            tokio::select! {
                changed = self.updates.changed() => changed.ok()?,
                () = sleep(KEEP_ALIVE) => return Some(Bytes::from_static(b":\n\n")),
                () = sleep_until(self.end) => return None,
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use serde_json::Value;
    use tenure::{Candidate, Config, ElectionName, FencingToken};
    use tenure_core::memory::MemoryStore;
    use tenure_testkit::simulated;

    use super::*;
    use crate::elections::{Election, History, Reading};

    fn overview(store: &MemoryStore) -> (Arc<Overview>, Arc<dyn Elector>) {
        let elector: Arc<dyn Elector> = Arc::new(simulated::elector(store.backend(), Config::new()).unwrap());
        (Arc::new(Overview::new(Arc::clone(&elector), "memory:x".to_owned())), elector)
    }

    /// A snapshot after readings of so many elections, each with so many candidates of this value.
    fn snapshot(readings: &[(usize, usize)], value: &str) -> Snapshot {
        let (mut history, time) = (History::new(500), SystemTime::UNIX_EPOCH);
        for (elections, candidates) in readings {
            let candidate =
                Candidate::decode("x", "s", value.as_bytes(), Some(FencingToken::new(1).unwrap()));
            let elections: Vec<_> = (0..*elections)
                .map(|number| Election {
                    name: ElectionName::new(&format!("e{number:04}")).unwrap(),
                    candidates: vec![candidate.clone(); *candidates],
                    candidate_count: *candidates,
                })
                .collect();
            let reading = Reading { total: elections.len(), is_truncated: false, elections };
            history.add(reading, Instant::now(), time);
        }
        history.snapshot(Some(time))
    }

    fn data(update: &Update) -> Value {
        let text = std::str::from_utf8(&update.snapshot).unwrap();
        let data = text.strip_prefix("event: snapshot\ndata: ").unwrap().strip_suffix("\n\n").unwrap();
        serde_json::from_str(data).unwrap()
    }

    #[tokio::test(start_paused = true)]
    async fn elections_are_read_only_while_somebody_looks() {
        let store = MemoryStore::new();
        let (overview, elector) = overview(&store);
        let readers = || Arc::strong_count(&elector) - 2;
        sleep(LINGER).await;
        assert_eq!(readers(), 0);
        let mut first = overview.subscribe("").unwrap();
        first.changed().await.unwrap();
        assert_eq!(readers(), 1);
        let second = overview.subscribe("").unwrap();
        assert_eq!(readers(), 1, "they share one");
        drop(first);
        sleep(2 * LINGER).await;
        assert_eq!(readers(), 1, "one still looks");
        drop(second);
        sleep(LINGER / 2).await;
        // The page was loaded again.
        let mut third = overview.subscribe("").unwrap();
        sleep(LINGER).await;
        assert_eq!(readers(), 1);
        third.changed().await.unwrap();
        drop(third);
        sleep(3 * LINGER).await;
        assert_eq!((readers(), overview.feeds().len()), (0, 0));
    }

    #[tokio::test]
    async fn a_reading_of_the_same_makes_no_new_snapshot() {
        let (overview, _elector) = overview(&MemoryStore::new());
        let first = overview.update("", &snapshot(&[(2, 1)], "v"), None).unwrap();
        let later = Snapshot { read_at: Some(SystemTime::now()), ..snapshot(&[(2, 1)], "v") };
        let same = overview.update("", &later, Some(Arc::new(first))).unwrap();
        assert_eq!((same.number, same.read_at), (1, later.read_at));
        let other = overview.update("", &snapshot(&[(2, 1), (1, 1)], "v"), Some(Arc::new(same))).unwrap();
        assert_eq!(other.number, 2);
        let data = data(&other);
        assert_eq!(data["elections"][1]["leader"], Value::Null);
        assert_eq!(data["changes"][0]["previous"], json!({ "id": "x", "token": 1 }));
    }

    /// Values of control characters are six times as long in JSON.
    #[tokio::test]
    async fn a_snapshot_has_a_limited_size() {
        let (overview, _elector) = overview(&MemoryStore::new());
        let value = "\u{1}".repeat(LIMITS.value_bytes);
        let snapshot = snapshot(&[(LIMITS.elections, LIMITS.candidates)], &value);
        let update = overview.update("", &snapshot, None).unwrap();
        assert!(update.snapshot.len() <= MAX_SNAPSHOT_BYTES, "{}", update.snapshot.len());
        let data = data(&update);
        let last = &data["elections"][LIMITS.elections - 1];
        assert_eq!((&last["candidate_count"], &last["leader"]["value"]), (&json!(25), &json!(value)));
        assert_eq!(last["candidates"].as_array().unwrap().len(), 1);
    }
}
