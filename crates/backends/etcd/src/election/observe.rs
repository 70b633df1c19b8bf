//! Reads the candidates and the leader of an election, and follows the leader.

use std::{sync::Arc, time::Duration};

use etcd_client::{Compare, CompareOp, GetOptions, KeyValue, PutOptions, SortOrder, SortTarget, Txn, TxnOp};
use futures::{StreamExt as _, stream};
use tenure_core::{
    Candidate, ElectionName,
    spi::{BackendError, BackendErrorKind, Observation, foreign_leader_error, mark_resign_requested},
};
use tokio::time::timeout;

use crate::{
    election::{
        keys::{decode_candidate, is_candidate},
        store::ElectionStore,
    },
    transport::{
        error::{OUT_OF_SPACE, status_contains},
        members::CallClass,
        pages::Pages,
        request::kv,
        watch::Subscription,
    },
};

/// Why a resign request cannot be written, and what to do.
const NO_SPACE: &str = "etcd has no space (NOSPACE alarm) and refuses writes, a resign request as well: compact and \
                        defragment it and disarm the alarm, or end the leader's process, which can resign by itself";

/// How often an observer reads without a signal: etcd can lose an event around a compaction (issue 18089).
const MIN_REREAD_INTERVAL: Duration = Duration::from_secs(30);

/// All candidates, by create revision.
pub(crate) async fn candidates(
    store: &ElectionStore,
    election: &ElectionName,
) -> Result<Vec<Candidate>, BackendError> {
    let election_prefix = store.keys.election_prefix(election);
    let mut found = Vec::new();
    let pages = Pages::with_values(&store.members, &election_prefix);
    let add = |kv: KeyValue| found.push((kv.create_revision(), decode_candidate(&election_prefix, &kv)));
    store.read_candidates(&election_prefix, pages, add).await?;
    found.sort_by_key(|(create_revision, _)| *create_revision);
    Ok(found.into_iter().map(|(_, candidate)| candidate).collect())
}

/// The candidate with the lowest create revision.
pub(crate) async fn leader(
    store: &ElectionStore,
    election: &ElectionName,
) -> Result<Option<Candidate>, BackendError> {
    let election_prefix = store.keys.election_prefix(election);
    let first = first_candidate(store, &election_prefix).await?;
    Ok(first.map(|kv| decode_candidate(&election_prefix, &kv)))
}

/// Writes a resign request into the leader's entry.
///
/// The entry keeps its lease and its create revision. A concurrent update of it is not overwritten.
pub(crate) async fn request_resign(
    store: &ElectionStore,
    election: &ElectionName,
) -> Result<Option<Candidate>, BackendError> {
    let election_prefix = store.keys.election_prefix(election);
    loop {
        let first = first_candidate(store, &election_prefix).await?;
        let Some(first) = first else { return Ok(None) };
        let leader = decode_candidate(&election_prefix, &first);
        let payload = &mark_resign_requested(first.value()).ok_or_else(|| foreign_leader_error(&leader))?;
        let (key, mod_revision) = (first.key(), first.mod_revision());
        let is_written = store
            .members
            .call("request resign", CallClass::Bulk, |client| async move {
                let put = TxnOp::put(key, payload.as_slice(), Some(PutOptions::new().with_ignore_lease()));
                let unchanged = Compare::mod_revision(key, CompareOp::Equal, mod_revision);
                let txn = Txn::new().when([unchanged]).and_then([put]);
                match kv(&client).txn(txn).await {
                    Ok(mut response) => Ok((response.take_header(), response.succeeded())),
                    // The alarm applies to the whole cluster: no other member is tried.
                    Err(error) if status_contains(&error, OUT_OF_SPACE) => {
                        Err(BackendError::new(BackendErrorKind::Invalid, NO_SPACE).into())
                    }
                    Err(error) => Err(error.into()),
                }
            })
            .await?;
        if is_written {
            return Ok(Some(leader));
        }
    }
}

/// The leader now, and at every change.
///
/// Each state comes from a linearizable read, never from events (hazard E9). While there is a leader only its entry
/// is watched, since no candidate can enter ahead of it; while there is none, the whole election is. So an observer
/// holds one state, whatever the number of candidates, and a waiting candidate wakes no observer.
pub(crate) async fn observe(
    store: Arc<ElectionStore>,
    election: &ElectionName,
) -> Result<Observation, BackendError> {
    let mut observer = Observer { election_prefix: store.keys.election_prefix(election), store, watch: None };
    let first = observer.next().await?;
    let later = stream::try_unfold(observer, |mut observer| async move {
        let leader = observer.next().await?;
        Ok(Some((leader, observer)))
    });
    Ok(stream::iter([Ok(first)]).chain(later).boxed())
}

struct Observer {
    store: Arc<ElectionStore>,
    election_prefix: String,
    /// The watch of the key or prefix whose change is waited for.
    watch: Option<(Arc<str>, Subscription)>,
}

impl Observer {
    /// The leader now, or after the watch that the last call opened reports a change. It may be the same leader again.
    async fn next(&mut self) -> Result<Option<Candidate>, BackendError> {
        let watcher = &self.store.watcher;
        if let Some((_, watch)) = &self.watch {
            let _ = timeout(watcher.reread_interval(MIN_REREAD_INTERVAL), watch.changed()).await;
        }
        let leader = Box::pin(first_candidate(&self.store, &self.election_prefix)).await?;
        let target: Arc<str> = match &leader {
            Some(kv) => String::from_utf8_lossy(kv.key()).into(),
            None => self.election_prefix.as_str().into(),
        };
        self.watch.take_if(|(watched, watch)| *watched != target || watch.is_lost());
        self.watch.get_or_insert_with(|| (Arc::clone(&target), watcher.changes(target, leader.is_none())));
        Ok(leader.map(|kv| decode_candidate(&self.election_prefix, &kv)))
    }
}

/// The candidate with the lowest create revision.
async fn first_candidate(
    store: &ElectionStore,
    election_prefix: &str,
) -> Result<Option<KeyValue>, BackendError> {
    let first =
        GetOptions::new().with_prefix().with_limit(1).with_sort(SortTarget::Create, SortOrder::Ascend);
    match read(store, election_prefix.as_bytes(), first).await? {
        Some(kv) if !is_candidate(election_prefix, &kv) => {}
        first => return Ok(first),
    }
    // The oldest key is foreign, which needs a read of all keys.
    let mut first = None::<KeyValue>;
    let pages = Pages::keys_at_revision(&store.members, election_prefix, 0);
    let add = |kv| first = first.take().into_iter().chain([kv]).min_by_key(KeyValue::create_revision);
    let revision = store.read_candidates(election_prefix, pages, add).await?;
    let Some(first) = first else { return Ok(None) };
    read(store, first.key(), GetOptions::new().with_revision(revision)).await
}

/// The first key that `options` select, with its value.
async fn read(
    store: &ElectionStore,
    key: &[u8],
    options: GetOptions,
) -> Result<Option<KeyValue>, BackendError> {
    let options = &options;
    store
        .members
        .call("read", CallClass::Bulk, |client| async move {
            let mut response = kv(&client).get(key, Some(options.clone())).await?;
            Ok((response.take_header(), response.take_kvs().into_iter().next()))
        })
        .await
}
