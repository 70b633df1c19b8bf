//! Reads the candidates and the leader of an election, and follows the leader.

use std::sync::Arc;

use etcd_client::{Compare, CompareOp, GetOptions, KeyValue, PutOptions, SortOrder, SortTarget, Txn, TxnOp};
use futures::{StreamExt as _, stream};
use tenure_core::{
    Candidate, ElectionName,
    spi::{BackendError, Observation, foreign_leader_error, mark_resign_requested},
};

use crate::{
    election::{
        candidate_pages::CandidatePages,
        keys::{decode_candidate, is_candidate},
        store::ElectionStore,
    },
    transport::{
        error::malformed,
        members::CallClass,
        request::kv,
        watch::{reusable::ReusableSubscription, target::WatchTarget},
    },
};

/// All candidates, by create revision.
pub(crate) async fn candidates(
    store: &ElectionStore,
    election: &ElectionName,
) -> Result<Vec<Candidate>, BackendError> {
    let election_prefix = store.keys.election_prefix(election);
    let mut found = Vec::new();
    let mut pages = CandidatePages::with_values(store, &election_prefix);
    while let Some(page) = pages.next().await? {
        found.extend(page.iter().map(|kv| (kv.create_revision(), decode_candidate(&election_prefix, kv))));
    }
    found.sort_by_key(|(create_revision, _)| *create_revision);
    Ok(found.into_iter().map(|(_, candidate)| candidate).collect())
}

/// The candidate with the lowest create revision.
pub(crate) async fn leader(
    store: &ElectionStore,
    election: &ElectionName,
) -> Result<Option<Candidate>, BackendError> {
    let election_prefix = store.keys.election_prefix(election);
    let (first, _) = first_candidate(store, &election_prefix).await?;
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
        let (first, _) = first_candidate(store, &election_prefix).await?;
        let Some(first) = first else { return Ok(None) };
        let leader = decode_candidate(&election_prefix, &first);
        let payload = &mark_resign_requested(first.value()).ok_or_else(|| foreign_leader_error(&leader))?;
        let (key, mod_revision) = (first.key(), first.mod_revision());
        let response = store
            .members
            .call("request resign", CallClass::Bulk, |client| async move {
                let put = TxnOp::put(key, payload.as_slice(), Some(PutOptions::new().with_ignore_lease()));
                let unchanged = Compare::mod_revision(key, CompareOp::Equal, mod_revision);
                let txn = Txn::new().when([unchanged]).and_then([put]);
                Ok(kv(&client).txn(txn).await?.succeeded())
            })
            .await?;
        if response.value {
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
    let election_prefix = store.keys.election_prefix(election);
    let last_read = first_candidate(&store, &election_prefix).await?;
    let subscription = ReusableSubscription::default();
    let observer = Observer { store, election_prefix, last_yielded: None, last_read, subscription };
    Ok(stream::unfold(Some(observer), |observer| async move {
        let mut observer = observer?;
        match observer.next().await {
            Ok(leader) => Some((Ok(leader), Some(observer))),
            Err(error) => Some((Err(error), None)),
        }
    })
    .boxed())
}

/// What distinguishes two states of the leader.
#[derive(Clone, Copy, PartialEq, Eq)]
enum LeaderState {
    NoLeader,
    Leader { create_revision: i64, mod_revision: i64 },
}

struct Observer {
    store: Arc<ElectionStore>,
    election_prefix: String,
    last_yielded: Option<LeaderState>,
    /// What was read last, and at which revision.
    last_read: (Option<KeyValue>, i64),
    subscription: ReusableSubscription,
}

impl Observer {
    async fn next(&mut self) -> Result<Option<Candidate>, BackendError> {
        loop {
            let (leader, read_at) = &self.last_read;
            let state = leader.as_ref().map_or(LeaderState::NoLeader, |kv| LeaderState::Leader {
                create_revision: kv.create_revision(),
                mod_revision: kv.mod_revision(),
            });
            if self.last_yielded != Some(state) {
                self.last_yielded = Some(state);
                return Ok(leader.as_ref().map(|kv| decode_candidate(&self.election_prefix, kv)));
            }
            let target = match leader {
                Some(kv) => WatchTarget::Key(String::from_utf8_lossy(kv.key()).into()),
                None => WatchTarget::Prefix(self.election_prefix.as_str().into()),
            };
            self.subscription.wait(&self.store.watcher, [target], *read_at).await;
            self.last_read = Box::pin(first_candidate(&self.store, &self.election_prefix)).await?;
        }
    }
}

/// The candidate with the lowest create revision, and the revision of the read.
async fn first_candidate(
    store: &ElectionStore,
    election_prefix: &str,
) -> Result<(Option<KeyValue>, i64), BackendError> {
    let first =
        GetOptions::new().with_prefix().with_limit(1).with_sort(SortTarget::Create, SortOrder::Ascend);
    let (found, read_at) = read(store, election_prefix.as_bytes(), first).await?;
    match found {
        Some(kv) if !is_candidate(election_prefix, &kv) => {}
        first => return Ok((first, read_at)),
    }
    // The oldest key is foreign, which needs a read of all keys.
    let (mut first, mut pages) =
        (None::<KeyValue>, CandidatePages::keys_at_revision(store, election_prefix, 0));
    while let Some(page) = pages.next().await? {
        first = first.into_iter().chain(page).min_by_key(KeyValue::create_revision);
    }
    let read_at = pages.revision();
    let Some(first) = first else { return Ok((None, read_at)) };
    let (first, _) = read(store, first.key(), GetOptions::new().with_revision(read_at)).await?;
    Ok((first, read_at))
}

/// The first key that `options` select, with its value, and the revision of the read.
async fn read(
    store: &ElectionStore,
    key: &[u8],
    options: GetOptions,
) -> Result<(Option<KeyValue>, i64), BackendError> {
    let options = &options;
    let response = store
        .members
        .call("read", CallClass::Bulk, |client| async move {
            let mut response = kv(&client).get(key, Some(options.clone())).await?;
            let read_at = response.header().ok_or_else(|| malformed("header"))?.revision();
            Ok((response.take_kvs().into_iter().next(), read_at))
        })
        .await?;
    Ok(response.value)
}
