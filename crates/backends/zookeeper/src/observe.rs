//! Who stands in an election and who leads it: read once, and followed.

use std::{
    future::Future,
    sync::Arc,
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use futures::{StreamExt as _, TryStreamExt as _, future::join, stream};
use tenure_core::{
    Candidate, ElectionName,
    spi::{BackendError, BackendErrorKind, Observation, foreign_leader_error, mark_resign_requested},
};
use zookeeper_client::{Error, Stat};

use crate::{
    Shared,
    connection::{Connection, Watch, name_of},
    error::{failed, unknown},
    link::Link,
    queue::{AT_ONCE, Queue, by_transaction, first_candidate, is_candidate},
    session::token,
    wait::FOLLOWING,
};

/// All candidates in their order.
pub(crate) async fn candidates(
    shared: &Arc<Shared>,
    election: &ElectionName,
) -> Result<Vec<Candidate>, BackendError> {
    let link = shared.reader().await?;
    let connection = connection_of(&link).await?;
    let parent = shared.election(election);
    let Some(queue) = list(shared, &connection, &parent).await? else { return Ok(Vec::new()) };
    let mut found = stream::iter(queue.paths())
        .map(|path| {
            let connection = &connection;
            async move {
                // Whoever may not be read stands all the same.
                let found = read(connection, path).await.map_err(reading)?;
                let found = found.map(|(found, ())| found).filter(|(_, _, stat)| is_candidate(shared, stat));
                // Shortened here: what a stranger wrote may be large.
                Ok(found.map(|(path, data, stat)| {
                    ((shared.number(&path), stat.czxid), shown(&path, &data, &stat))
                }))
            }
        })
        .buffered(AT_ONCE)
        .try_filter_map(async |found| Ok(found))
        .try_collect::<Vec<_>>()
        .await?;
    // Where numbers are the same, by transaction.
    found.sort_by_key(|(place, _)| *place);
    Ok(found.into_iter().map(|(_, candidate)| candidate).collect())
}

/// The candidate that leads.
pub(crate) async fn leader(
    shared: &Arc<Shared>,
    election: &ElectionName,
) -> Result<Option<Candidate>, BackendError> {
    let link = shared.reader().await?;
    let connection = connection_of(&link).await?;
    let parent = shared.election(election);
    let found = head(shared, &connection, &parent).await?;
    Ok(found.map(|(path, data, stat)| shown(&path, &data, &stat)))
}

/// The entry that leads.
async fn head(shared: &Shared, connection: &Connection, parent: &str) -> Result<Option<Found>, BackendError> {
    loop {
        let Some(queue) = list(shared, connection, parent).await? else { return Ok(None) };
        match first(shared, connection, &queue, read).await? {
            First::Found(found, ()) => return Ok(Some(found)),
            First::Changed => {}
            First::Nobody => return Ok(None),
        }
    }
}

/// Writes into the leader's entry that it is asked to resign; whoever updates it beside us is not overwritten.
pub(crate) async fn request_resign(
    shared: &Arc<Shared>,
    election: &ElectionName,
) -> Result<Option<Candidate>, BackendError> {
    let link = shared.reader().await?;
    let connection = connection_of(&link).await?;
    let parent = shared.election(election);
    loop {
        let Some((path, payload, stat)) = head(shared, &connection, &parent).await? else { return Ok(None) };
        let leader = shown(&path, &payload, &stat);
        let asked = mark_resign_requested(&payload).ok_or_else(|| foreign_leader_error(&leader))?;
        if connection.set_version(&path, &asked, stat.version).await.map_err(reading)? {
            return Ok(Some(leader));
        }
    }
}

/// The connection that `link` has now.
pub(crate) async fn connection_of(link: &Link) -> Result<Arc<Connection>, BackendError> {
    link.connection().await.map_err(not_ours)
}

fn reading(error: Error) -> BackendError {
    not_ours(failed("reading", &error))
}

/// A session that is only read over is nobody's: when it ends, another one does as well.
pub(crate) fn not_ours(error: BackendError) -> BackendError {
    match error.kind() {
        BackendErrorKind::SessionGone => unknown(error.to_string()),
        _ => error,
    }
}

/// The candidates' names, as the whole ensemble has them.
async fn list(shared: &Shared, connection: &Connection, parent: &str) -> Result<Option<Queue>, BackendError> {
    let (synced, children) = join(connection.sync(), connection.children(parent)).await;
    synced.map_err(reading)?;
    let children = children.map_err(reading)?;
    Ok(children.map(|children| Queue::new(shared, parent, children)))
}

fn shown(path: &str, data: &[u8], stat: &Stat) -> Candidate {
    let name = path.rsplit_once('/').map_or(path, |(_, name)| name);
    let token = u64::try_from(stat.czxid).ok().and_then(|version| token(version).ok());
    let mut candidate = Candidate::decode(name, name_of(stat.ephemeral_owner), data, token);
    candidate.age = age(stat);
    candidate
}

/// By this machine's clock against the store's: for people, and for nothing else.
fn age(stat: &Stat) -> Option<Duration> {
    let created = UNIX_EPOCH + Duration::from_millis(u64::try_from(stat.ctime).ok()?);
    Some(SystemTime::now().duration_since(created).unwrap_or_default())
}

/// The leader now and at every change.
///
/// While somebody leads only that entry is watched, for nobody can come in ahead of it; while
/// nobody does, the whole election is. A candidate that only waits wakes no observer.
pub(crate) async fn observe(
    shared: Arc<Shared>,
    election: &ElectionName,
) -> Result<Observation, BackendError> {
    let link = shared.reader().await?;
    let observer = Observer { parent: shared.election(election), shared, link, seen: None };
    Ok(stream::unfold(Some(observer), |observer| async move {
        let mut observer = observer?;
        match Box::pin(observer.next()).await {
            Ok(leader) => Some((Ok(leader), Some(observer))),
            Err(error) => Some((Err(error), None)),
        }
    })
    .boxed())
}

struct Observer {
    shared: Arc<Shared>,
    link: Arc<Link>,
    parent: String,
    /// What was yielded last: the transactions that made the leader's entry and changed it last.
    seen: Option<Option<(i64, i64)>>,
}

impl Observer {
    async fn next(&mut self) -> Result<Option<Candidate>, BackendError> {
        loop {
            let connection = connection_of(&self.link).await?;
            let Some((leader, watch)) = look(&self.shared, &connection, &self.parent).await? else {
                continue;
            };
            let state = leader.as_ref().map(|(_, _, stat)| (stat.czxid, stat.mzxid));
            if self.seen != Some(state) {
                self.seen = Some(state);
                return Ok(leader.map(|(path, data, stat)| shown(&path, &data, &stat)));
            }
            watch.fired_or_due(FOLLOWING).await;
        }
    }
}

/// A leader's path, data and stat.
type Found = (String, Vec<u8>, Stat);

/// The leader, and a watch for what can change who leads; `None` when it changed meanwhile.
async fn look<'a>(
    shared: &Shared,
    connection: &'a Connection,
    parent: &str,
) -> Result<Option<(Option<Found>, Watch<'a>)>, BackendError> {
    if let Some(queue) = list(shared, connection, parent).await? {
        match first(shared, connection, &queue, watch).await? {
            First::Found(found, watch) => return Ok(Some((Some(found), watch))),
            First::Changed => return Ok(None),
            First::Nobody => {}
        }
    }
    // Nobody led just now; whoever enters from here on fires the watch.
    let Some((children, watch)) = connection.watch_children(parent).await.map_err(reading)? else {
        let created = connection.watch_creation(parent).await.map_err(reading)?;
        return Ok(created.map(|watch| (None, watch)));
    };
    let queue = Queue::new(shared, parent, children);
    let anybody = first_candidate(shared, connection, queue.paths().collect()).await.map_err(reading)?;
    Ok(anybody.is_none().then_some((None, watch)))
}

/// Whoever stands first in a queue, and what was had with it: a watch, or nothing.
enum First<W> {
    /// A candidate.
    Found(Found, W),
    /// It was there when the candidates were listed, and is gone: list again.
    Changed,
    Nobody,
}

/// The first in `queue` that is a candidate, and not only named like one, as `look` finds it.
async fn first<'a, W, F>(
    shared: &Shared,
    connection: &'a Connection,
    queue: &Queue,
    look: impl Fn(&'a Connection, String) -> F,
) -> Result<First<W>, BackendError>
where
    F: Future<Output = Result<Option<(Found, W)>, Error>>,
{
    let mut rest = in_order(shared, connection, queue).await?.into_iter();
    let Some(path) = rest.next() else { return Ok(First::Nobody) };
    match look(connection, path).await.map_err(reading)? {
        Some((found, with)) if is_candidate(shared, &found.2) => return Ok(First::Found(found, with)),
        Some(_) => {}
        None => return Ok(First::Changed),
    }
    let at = first_candidate(shared, connection, rest.as_slice().to_vec()).await.map_err(reading)?;
    let Some(path) = at.and_then(|at| rest.nth(at)) else { return Ok(First::Nobody) };
    match look(connection, path).await.map_err(reading)? {
        Some((found, with)) if is_candidate(shared, &found.2) => Ok(First::Found(found, with)),
        _ => Ok(First::Changed),
    }
}

/// The data and stat of a znode; of one that we may not read, no data.
async fn read(connection: &Connection, path: String) -> Result<Option<(Found, ())>, Error> {
    let found = match connection.get(&path).await {
        Err(Error::NoAuth) => connection.stat(&path).await?.map(|stat| (Vec::new(), stat)),
        found => found?,
    };
    Ok(found.map(|(data, stat)| ((path, data, stat), ())))
}

/// The same, with a watch for its change or its end; of one that we may not read, for its end.
async fn watch(connection: &Connection, path: String) -> Result<Option<(Found, Watch<'_>)>, Error> {
    let found = match connection.watch_data(&path).await {
        Err(Error::NoAuth) => {
            connection.watch_end(&path).await?.map(|(stat, watch)| (Vec::new(), stat, watch))
        }
        found => found?,
    };
    Ok(found.map(|(data, stat, watch)| ((path, data, stat), watch)))
}

/// The candidates' paths; the first ones by transaction where their numbers are the same.
async fn in_order(
    shared: &Shared,
    connection: &Connection,
    queue: &Queue,
) -> Result<Vec<String>, BackendError> {
    let mut paths: Vec<_> = queue.paths().collect();
    let first = paths.first().map(|path| shared.number(path));
    let tied = paths.iter().take_while(|path| Some(shared.number(path)) == first).count();
    if tied > 1 {
        let ties: Vec<_> = paths.drain(..tied).collect();
        let ties = by_transaction(connection, ties).await.map_err(reading)?;
        paths.splice(..0, ties.into_iter().map(|(_, path)| path));
    }
    Ok(paths)
}
