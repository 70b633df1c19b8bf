//! Who leads: read once, and followed.

use std::sync::Arc;

use etcd_client::{Compare, CompareOp, GetOptions, KeyValue, PutOptions, SortOrder, SortTarget, Txn, TxnOp};
use futures::{StreamExt as _, stream};
use tenure_core::{
    Candidate, ElectionName,
    spi::{BackendError, Observation, foreign_leader_error, mark_resign_requested},
};

use crate::{
    Shared,
    election::keys::{candidate, is_candidate},
    transport::error::malformed,
    transport::members::Call,
    transport::pages::Pages,
    transport::request::kv,
    transport::watch::target::Target,
    transport::watch::watcher::Following,
};

/// All candidates, in order of their create revisions.
pub(crate) async fn candidates(
    shared: &Shared,
    election: &ElectionName,
) -> Result<Vec<Candidate>, BackendError> {
    let election = shared.keys.election(election);
    let mut found = Vec::new();
    let mut pages = Pages::with_values(shared, &election);
    while let Some(page) = pages.next().await? {
        found.extend(page.iter().map(|kv| (kv.create_revision(), candidate(&election, kv))));
    }
    found.sort_by_key(|(created, _)| *created);
    Ok(found.into_iter().map(|(_, candidate)| candidate).collect())
}

/// The candidate with the lowest create revision.
pub(crate) async fn leader(
    shared: &Shared,
    election: &ElectionName,
) -> Result<Option<Candidate>, BackendError> {
    let election = shared.keys.election(election);
    let (head, _) = head(shared, &election).await?;
    Ok(head.map(|kv| candidate(&election, &kv)))
}

/// Writes into the leader's entry that it is asked to resign.
///
/// The entry keeps its lease and its create revision; whoever updates it beside us is not overwritten.
pub(crate) async fn request_resign(
    shared: &Shared,
    election: &ElectionName,
) -> Result<Option<Candidate>, BackendError> {
    let election = shared.keys.election(election);
    loop {
        let (head, _) = head(shared, &election).await?;
        let Some(head) = head else { return Ok(None) };
        let leader = candidate(&election, &head);
        let asked = &mark_resign_requested(head.value()).ok_or_else(|| foreign_leader_error(&leader))?;
        let (key, seen) = (head.key(), head.mod_revision());
        let won = shared
            .members
            .call("ask to resign", Call::Bulk, |client| async move {
                let put = TxnOp::put(key, asked.as_slice(), Some(PutOptions::new().with_ignore_lease()));
                let txn =
                    Txn::new().when([Compare::mod_revision(key, CompareOp::Equal, seen)]).and_then([put]);
                Ok(kv(&client).txn(txn).await?.succeeded())
            })
            .await?;
        if won.value {
            return Ok(Some(leader));
        }
    }
}

/// The leader now and at every change.
///
/// Each state is a linearizable read's, never put together from events (hazard E9).
/// While somebody leads only the leader's entry is watched, since nobody can come in
/// ahead of it; while nobody does, the whole election is. So one state is held,
/// whatever the number of candidates, and a candidate that only waits wakes no observer.
pub(crate) async fn observe(
    shared: Arc<Shared>,
    election: &ElectionName,
) -> Result<Observation, BackendError> {
    let election = shared.keys.election(election);
    let (first, read_at) = head(&shared, &election).await?;
    let observer =
        Observer { shared, election, seen: None, now: (first, read_at), watch: Following::default() };
    Ok(stream::unfold(Some(observer), |observer| async move {
        let mut observer = observer?;
        match observer.next().await {
            Ok(leader) => Some((Ok(leader), Some(observer))),
            Err(error) => Some((Err(error), None)),
        }
    })
    .boxed())
}

struct Observer {
    shared: Arc<Shared>,
    election: String,
    /// What was yielded last: the leader's create and modification revision.
    seen: Option<Option<(i64, i64)>>,
    /// What was read last, and at which revision.
    now: (Option<KeyValue>, i64),
    watch: Following,
}

impl Observer {
    async fn next(&mut self) -> Result<Option<Candidate>, BackendError> {
        loop {
            let (leader, read_at) = &self.now;
            let state = leader.as_ref().map(|kv| (kv.create_revision(), kv.mod_revision()));
            if self.seen != Some(state) {
                self.seen = Some(state);
                return Ok(leader.as_ref().map(|kv| candidate(&self.election, kv)));
            }
            let target = match leader {
                Some(kv) => Target::Key(String::from_utf8_lossy(kv.key()).into()),
                None => Target::Below(self.election.as_str().into()),
            };
            self.watch.follow(&self.shared.watches, [target], *read_at).await;
            self.now = Box::pin(head(&self.shared, &self.election)).await?;
        }
    }
}

/// The first candidate, and the revision it was read at.
async fn head(shared: &Shared, election: &str) -> Result<(Option<KeyValue>, i64), BackendError> {
    let first =
        GetOptions::new().with_prefix().with_limit(1).with_sort(SortTarget::Create, SortOrder::Ascend);
    let (found, read_at) = read(shared, election.as_bytes(), first).await?;
    match found {
        Some(kv) if !is_candidate(election, &kv) => {}
        head => return Ok((head, read_at)),
    }
    // The oldest key is a stranger's, which needs a look at all of them.
    let (mut head, mut pages) = (None::<KeyValue>, Pages::of_keys(shared, election, 0));
    while let Some(page) = pages.next().await? {
        head = head.into_iter().chain(page).min_by_key(KeyValue::create_revision);
    }
    let read_at = pages.read_at();
    let Some(head) = head else { return Ok((None, read_at)) };
    let (head, _) = read(shared, head.key(), GetOptions::new().with_revision(read_at)).await?;
    Ok((head, read_at))
}

/// The first key that `options` name, with its value, and the revision it was read at.
async fn read(
    shared: &Shared,
    key: &[u8],
    options: GetOptions,
) -> Result<(Option<KeyValue>, i64), BackendError> {
    let options = &options;
    let won = shared
        .members
        .call("read", Call::Bulk, |client| async move {
            let mut answer = kv(&client).get(key, Some(options.clone())).await?;
            let read_at = answer.header().ok_or_else(|| malformed("header"))?.revision();
            Ok((answer.take_kvs().into_iter().next(), read_at))
        })
        .await?;
    Ok(won.value)
}
