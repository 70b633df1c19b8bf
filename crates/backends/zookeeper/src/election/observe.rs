//! Reads the candidates and the leader of an election, and follows the leader.

use std::sync::Arc;

use futures::{StreamExt as _, TryStreamExt as _, future::join, stream};
use tenure_core::{
    Candidate, ElectionName,
    spi::{BackendError, Observation, foreign_leader_error, mark_resign_requested},
};
use zookeeper_client::{Error, Stat};

use super::{
    entry_stat::{age, fencing_token},
    entry_watcher::read_and_watch,
    queue::{MAX_CONCURRENT_READS, Queue, first_candidate, is_candidate},
    store::ElectionStore,
    wait::LEADER_RECHECK_INTERVAL,
};
use crate::transport::{
    connection::Connection,
    error::backend_error,
    reader_sessions::{reader_connection, reader_error},
    resumable_session::ResumableSession,
    watch::Watch,
    znode_stat::session_name,
};

/// An entry's path, data and stat.
type EntryData = (String, Vec<u8>, Stat);

/// All candidates in their order.
pub(crate) async fn candidates(
    store: &ElectionStore,
    election: &ElectionName,
) -> Result<Vec<Candidate>, BackendError> {
    let session = store.reader_session().await?;
    let connection = reader_connection(&session).await?;
    let parent = store.election_path(election);
    let Some(queue) = list(store, &connection, &parent).await? else { return Ok(Vec::new()) };
    let mut found = stream::iter(queue.paths())
        .map(|path| {
            let connection = &connection;
            async move {
                // A candidate whose entry may not be read is a candidate all the same.
                let found = read(connection, path, false).await.map_err(reading)?;
                let found = found.map(|(found, _)| found).filter(|(_, _, stat)| is_candidate(store, stat));
                // Decoded here, which shortens it: a foreign entry's data may be large.
                Ok(found.map(|(path, data, stat)| {
                    ((store.sequence_number(&path), stat.czxid), decode(&path, &data, &stat))
                }))
            }
        })
        .buffered(MAX_CONCURRENT_READS)
        .try_filter_map(async |found| Ok(found))
        .try_collect::<Vec<_>>()
        .await?;
    // Equal numbers are ordered by transaction.
    found.sort_by_key(|(place, _)| *place);
    Ok(found.into_iter().map(|(_, candidate)| candidate).collect())
}

/// The candidate that leads.
pub(crate) async fn leader(
    store: &ElectionStore,
    election: &ElectionName,
) -> Result<Option<Candidate>, BackendError> {
    let session = store.reader_session().await?;
    let connection = reader_connection(&session).await?;
    let parent = store.election_path(election);
    let found = leading_entry(store, &connection, &parent).await?;
    Ok(found.map(|(path, data, stat)| decode(&path, &data, &stat)))
}

/// The entry that leads.
async fn leading_entry(
    store: &ElectionStore,
    connection: &Connection,
    parent: &str,
) -> Result<Option<EntryData>, BackendError> {
    loop {
        let Some(queue) = list(store, connection, parent).await? else { return Ok(None) };
        match first(store, connection, &queue, false).await? {
            First::Found(found, _) => return Ok(Some(found)),
            First::Changed => {}
            First::Nobody => return Ok(None),
        }
    }
}

/// Writes a resign request into the leader's entry. A concurrent update of the entry is not overwritten.
pub(crate) async fn request_resign(
    store: &ElectionStore,
    election: &ElectionName,
) -> Result<Option<Candidate>, BackendError> {
    let session = store.reader_session().await?;
    let connection = reader_connection(&session).await?;
    let parent = store.election_path(election);
    loop {
        let found = leading_entry(store, &connection, &parent).await?;
        let Some((path, payload, stat)) = found else { return Ok(None) };
        let leader = decode(&path, &payload, &stat);
        let marked = mark_resign_requested(&payload).ok_or_else(|| foreign_leader_error(&leader))?;
        if connection.set_version(&path, &marked, stat.version).await.map_err(reading)? {
            return Ok(Some(leader));
        }
    }
}

pub(crate) fn reading(error: Error) -> BackendError {
    reader_error(backend_error("reading", &error))
}

/// Lists the candidates, after a `sync`.
async fn list(
    store: &ElectionStore,
    connection: &Connection,
    parent: &str,
) -> Result<Option<Queue>, BackendError> {
    let (synced, children) = join(connection.sync(), connection.children(parent)).await;
    synced.map_err(reading)?;
    let children = children.map_err(reading)?;
    Ok(children.map(|children| Queue::new(store, parent, children)))
}

fn decode(path: &str, data: &[u8], stat: &Stat) -> Candidate {
    let name = path.rsplit_once('/').map_or(path, |(_, name)| name);
    let token = u64::try_from(stat.czxid).ok().and_then(|version| fencing_token(version).ok());
    let mut candidate = Candidate::decode(name, session_name(stat.ephemeral_owner), data, token);
    candidate.age = age(stat);
    candidate
}

/// The leader now and at every change.
///
/// While there is a leader, only its entry is watched, because no candidate can enter ahead of it. While
/// there is none, the whole election is watched. A waiting candidate wakes no observer.
pub(crate) async fn observe(
    store: Arc<ElectionStore>,
    election: &ElectionName,
) -> Result<Observation, BackendError> {
    let session = store.reader_session().await?;
    let observer = Observer { parent: store.election_path(election), store, session, last_yielded: None };
    let states = stream::try_unfold(observer, |mut observer| async move {
        Ok(Some((Box::pin(observer.next()).await?, observer)))
    });
    Ok(states.boxed())
}

/// What distinguishes two states of the leader: the transactions that created and last changed its entry.
#[derive(Clone, Copy, PartialEq, Eq)]
enum LeaderState {
    NoLeader,
    Leader { czxid: i64, mzxid: i64 },
}

struct Observer {
    store: Arc<ElectionStore>,
    session: Arc<ResumableSession>,
    parent: String,
    last_yielded: Option<LeaderState>,
}

impl Observer {
    async fn next(&mut self) -> Result<Option<Candidate>, BackendError> {
        loop {
            let connection = reader_connection(&self.session).await?;
            let Some((leader, watch)) = watch_leader(&self.store, &connection, &self.parent).await? else {
                continue;
            };
            let state = leader.as_ref().map_or(LeaderState::NoLeader, |(_, _, stat)| LeaderState::Leader {
                czxid: stat.czxid,
                mzxid: stat.mzxid,
            });
            if self.last_yielded != Some(state) {
                self.last_yielded = Some(state);
                return Ok(leader.map(|(path, data, stat)| decode(&path, &data, &stat)));
            }
            watch.fired_or_recheck_due(LEADER_RECHECK_INTERVAL).await;
        }
    }
}

/// The leader, and a watch for what can change the leader; `None` if it changed meanwhile.
async fn watch_leader<'a>(
    store: &ElectionStore,
    connection: &'a Connection,
    parent: &str,
) -> Result<Option<(Option<EntryData>, Watch<'a>)>, BackendError> {
    if let Some(queue) = list(store, connection, parent).await? {
        match first(store, connection, &queue, true).await? {
            First::Found(found, watch) => return Ok(watch.map(|watch| (Some(found), watch))),
            First::Changed => return Ok(None),
            First::Nobody => {}
        }
    }
    // There was no leader just now; a candidate that enters from here on fires the watch.
    let Some((children, watch)) = connection.watch_children(parent).await.map_err(reading)? else {
        let created = connection.watch_creation(parent).await.map_err(reading)?;
        return Ok(created.map(|watch| (None, watch)));
    };
    let queue = Queue::new(store, parent, children);
    let candidate = first_candidate(store, connection, queue.paths().collect()).await.map_err(reading)?;
    Ok(candidate.is_none().then_some((None, watch)))
}

/// The first entry of a queue, and a watch on it if that was asked for.
enum First<'a> {
    Found(EntryData, Option<Watch<'a>>),
    /// It was listed, and is deleted: list again.
    Changed,
    Nobody,
}

/// The first entry of `queue` that is a candidate's, and not only named like one.
async fn first<'a>(
    store: &ElectionStore,
    connection: &'a Connection,
    queue: &Queue,
    with_watch: bool,
) -> Result<First<'a>, BackendError> {
    let mut rest = queue.in_order(connection).await.map_err(reading)?.into_iter();
    let Some(path) = rest.next() else { return Ok(First::Nobody) };
    match read(connection, path, with_watch).await.map_err(reading)? {
        Some((found, watch)) if is_candidate(store, &found.2) => return Ok(First::Found(found, watch)),
        Some(_) => {}
        None => return Ok(First::Changed),
    }
    let at = first_candidate(store, connection, rest.as_slice().to_vec()).await.map_err(reading)?;
    let Some(path) = at.and_then(|at| rest.nth(at)) else { return Ok(First::Nobody) };
    match read(connection, path, with_watch).await.map_err(reading)? {
        Some((found, watch)) if is_candidate(store, &found.2) => Ok(First::Found(found, watch)),
        _ => Ok(First::Changed),
    }
}

/// The data and stat of a znode, with a [watch](read_and_watch) if `with_watch`. The data is empty if the user may not read it.
async fn read(
    connection: &Connection,
    path: String,
    with_watch: bool,
) -> Result<Option<(EntryData, Option<Watch<'_>>)>, Error> {
    if with_watch {
        let found = read_and_watch(connection, &path).await?;
        return Ok(found.map(|(data, stat, watch)| ((path, data, stat), Some(watch))));
    }
    let found = match connection.get(&path).await {
        Err(Error::NoAuth) => connection.stat(&path).await?.map(|stat| (Vec::new(), stat)),
        found => found?,
    };
    Ok(found.map(|(data, stat)| ((path, data, stat), None)))
}
