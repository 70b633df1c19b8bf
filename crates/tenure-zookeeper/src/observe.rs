//! Who stands in an election and who leads it: read once, and followed.

use std::{
    sync::Arc,
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use futures::{StreamExt as _, TryStreamExt as _, future::join, stream};
use tenure_core::{
    Candidate, ElectionName,
    spi::{BackendError, BackendErrorKind, Observation, asked, does_not_listen},
};
use zookeeper_client::{Error, Stat};

use crate::{
    Shared,
    connection::{Connection, Watch, name_of},
    error::{failed, unknown},
    link::Link,
    queue::{Queue, is_candidate},
    session::token,
};

/// How many candidates are asked for at a time.
const AT_ONCE: usize = 64;

/// All candidates in their order.
pub(crate) async fn candidates(
    shared: &Shared,
    election: &ElectionName,
) -> Result<Vec<Candidate>, BackendError> {
    let link = shared.reader().await?;
    let connection = connection_of(&link).await?;
    let parent = shared.election(election);
    let Some(queue) = list(shared, &connection, &parent).await? else { return Ok(Vec::new()) };
    let found = stream::iter(queue.paths())
        .map(|path| {
            let connection = &connection;
            async move {
                let found = match connection.get(&path).await {
                    // Whoever may not be read stands all the same.
                    Err(Error::NoAuth) => {
                        connection.stat(&path).await.map(|stat| stat.map(|stat| (Vec::new(), stat)))
                    }
                    found => found,
                };
                let found = found.map_err(reading)?;
                Ok(found.map(|(data, stat)| (path, data, stat)))
            }
        })
        .buffered(AT_ONCE)
        .try_filter_map(async |found| Ok(found))
        .try_collect::<Vec<_>>()
        .await?;
    let mut found: Vec<_> = found.into_iter().filter(|(_, _, stat)| is_candidate(shared, stat)).collect();
    // Where numbers are the same, by transaction.
    found.sort_by_key(|(path, _, stat)| (shared.number(path), stat.czxid));
    Ok(found.iter().map(|(path, data, stat)| shown(path, data, stat)).collect())
}

/// Writes into the leader's entry that it is asked to resign; whoever updates it beside us is not overwritten.
pub(crate) async fn ask_to_resign(
    shared: &Shared,
    election: &ElectionName,
) -> Result<Option<Candidate>, BackendError> {
    let link = shared.reader().await?;
    let connection = connection_of(&link).await?;
    let parent = shared.election(election);
    'changed: loop {
        let Some(queue) = list(shared, &connection, &parent).await? else { return Ok(None) };
        for path in in_order(shared, &connection, &queue).await? {
            let Some((payload, stat)) = connection.get(&path).await.map_err(reading)? else {
                continue 'changed;
            };
            if !is_candidate(shared, &stat) {
                continue;
            }
            let leader = shown(&path, &payload, &stat);
            let asked = asked(&payload).ok_or_else(|| does_not_listen(&leader))?;
            match connection.set_version(&path, &asked, stat.version).await.map_err(reading)? {
                true => return Ok(Some(leader)),
                false => continue 'changed,
            }
        }
        return Ok(None);
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
            watch.fired().await;
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
        for path in in_order(shared, connection, &queue).await? {
            let found = match connection.watch_data(&path).await {
                Err(Error::NoAuth) => {
                    let found = connection.watch_end(&path).await;
                    found.map(|found| found.map(|(stat, watch)| (Vec::new(), stat, watch)))
                }
                found => found,
            };
            let found = found.map_err(reading)?;
            let Some((data, stat, watch)) = found else { return Ok(None) };
            if is_candidate(shared, &stat) {
                return Ok(Some((Some((path, data, stat)), watch)));
            }
        }
    }
    // Nobody led just now; whoever enters from here on fires the watch.
    let Some((children, watch)) = connection.watch_children(parent).await.map_err(reading)? else {
        let created = connection.watch_creation(parent).await.map_err(reading)?;
        return Ok(created.map(|watch| (None, watch)));
    };
    let queue = Queue::new(shared, parent, children);
    for path in queue.paths() {
        let stat = connection.stat(&path).await.map_err(reading)?;
        if stat.is_some_and(|stat| is_candidate(shared, &stat)) {
            return Ok(None);
        }
    }
    Ok(Some((None, watch)))
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
        let mut ties = Vec::with_capacity(tied);
        for path in paths.drain(..tied) {
            let stat = connection.stat(&path).await.map_err(reading)?;
            ties.push((stat.map_or(i64::MAX, |stat| stat.czxid), path));
        }
        ties.sort_unstable();
        paths.splice(..0, ties.into_iter().map(|(_, path)| path));
    }
    Ok(paths)
}
