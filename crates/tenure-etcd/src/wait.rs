//! Waiting for one's turn, and for one's entry to go.
//!
//! Read, watch what the answer rests on, read again (see [`crate::watch`]). Every
//! conclusion comes from a linearizable read that saw the entry itself, so that
//! nobody wins without an entry (hazards G13, E11).

use std::time::Duration;

use etcd_client::{GetOptions, KeyValue, SortOrder, SortTarget, Txn, TxnOp, TxnOpResponse};
use tenure_core::{
    FencingToken,
    spi::{BackendError, BackendErrorKind, Entry, Parting, is_asked},
};
use tokio::time::sleep;
use tracing::debug;

use crate::{
    Shared,
    error::malformed,
    keys::{is_candidate, token},
    members::{Call, kv},
    watch::{Following, Target},
};

/// Where an entry stands.
enum Place {
    Gone,
    Leads,
    /// Behind the candidate with this key, as of this revision.
    Behind(String, i64),
}

/// See [`BackendSession::wait_turn`](tenure_core::spi::BackendSession::wait_turn).
pub(crate) async fn wait_turn(
    shared: &Shared,
    lease: i64,
    entry: &Entry,
) -> Result<FencingToken, BackendError> {
    let mut watch = Following::default();
    loop {
        match persistently(|| Box::pin(place(shared, lease, entry))).await? {
            Place::Gone => return Err(gone(entry)),
            Place::Leads => return token(revision(entry)).ok_or_else(|| malformed("create revision")),
            Place::Behind(ahead, read_at) => {
                watch
                    .follow(&shared.watches, [Target::End(ahead), Target::End(entry.key.clone())], read_at)
                    .await;
            }
        }
    }
}

/// See [`BackendSession::wait_gone`](tenure_core::spi::BackendSession::wait_gone).
pub(crate) async fn wait_gone(shared: &Shared, lease: i64, entry: &Entry) -> Result<(), BackendError> {
    let mut watch = Following::default();
    watch.stand(&shared.watches, [Target::Key(entry.key.clone())]).await;
    while let Some((read_at, _)) = persistently(|| Box::pin(own(shared, lease, entry, true))).await? {
        watch.follow(&shared.watches, [Target::Key(entry.key.clone())], read_at).await;
    }
    Ok(())
}

/// See [`BackendSession::wait_parting`](tenure_core::spi::BackendSession::wait_parting).
pub(crate) async fn wait_parting(
    shared: &Shared,
    lease: i64,
    entry: &Entry,
) -> Result<Parting, BackendError> {
    let mut watch = Following::default();
    watch.stand(&shared.watches, [Target::Key(entry.key.clone())]).await;
    loop {
        let Some((read_at, payload)) = persistently(|| Box::pin(own(shared, lease, entry, false))).await?
        else {
            return Ok(Parting::Gone);
        };
        if is_asked(&payload) {
            return Ok(Parting::Asked);
        }
        watch.follow(&shared.watches, [Target::Key(entry.key.clone())], read_at).await;
    }
}

/// The error of an entry that is not there.
pub(crate) fn gone(entry: &Entry) -> BackendError {
    BackendError::new(
        BackendErrorKind::EntryGone,
        format!("the entry {} of revision {} is gone", entry.key, entry.version),
    )
}

/// An entry's version as etcd's create revision; zero, which no key has, when it is none.
pub(crate) fn revision(entry: &Entry) -> i64 {
    i64::try_from(entry.version).unwrap_or(0)
}

/// Whether `kv` is `entry` and still hangs on `lease`.
pub(crate) fn is_ours(kv: &KeyValue, lease: i64, entry: &Entry) -> bool {
    kv.create_revision() == revision(entry) && kv.lease() == lease
}

/// The key-values of each range of a transaction, in order.
pub(crate) fn ranges(responses: Vec<TxnOpResponse>) -> impl Iterator<Item = Vec<KeyValue>> {
    responses.into_iter().filter_map(|response| match response {
        TxnOpResponse::Get(mut range) => Some(range.take_kvs()),
        _ => None,
    })
}

/// Repeats `read` until the store answers.
///
/// Reads are boxed: a wait lasts for hours and should not hold the room for a read.
async fn persistently<T, F, Fut>(mut read: F) -> Result<T, BackendError>
where
    F: FnMut() -> Fut,
    Fut: Future<Output = Result<T, BackendError>>,
{
    let mut pause = Duration::from_millis(50);
    loop {
        match read().await {
            Err(error) if error.is_retryable() => {
                debug!(%error, "etcd cannot be asked; asking again");
                sleep(pause.mul_f64(0.5 + fastrand::f64())).await;
                pause = (pause * 2).min(Duration::from_secs(2));
            }
            outcome => return outcome,
        }
    }
}

/// Reads where `entry` stands.
async fn place(shared: &Shared, lease: i64, entry: &Entry) -> Result<Place, BackendError> {
    let election = shared.keys.election(&entry.election);
    // A bound of zero would be none; etcd's first key has create revision 2.
    if revision(entry) < 2 {
        return Ok(Place::Gone);
    }
    let ahead =
        GetOptions::new().with_prefix().with_keys_only().with_max_create_revision(revision(entry) - 1);
    let nearest = ahead.clone().with_sort(SortTarget::Create, SortOrder::Descend).with_limit(1);
    let Some((read_at, nearest)) = look(shared, lease, entry, &election, &nearest).await? else {
        return Ok(Place::Gone);
    };
    match nearest.first() {
        None => return Ok(Place::Leads),
        Some(kv) if is_candidate(&election, kv) => return Ok(behind(kv, read_at)),
        Some(_) => {}
    }
    // Keys that no candidate made are passed over, which needs a look at all of them.
    let Some((read_at, all)) = look(shared, lease, entry, &election, &ahead).await? else {
        return Ok(Place::Gone);
    };
    shared.note_strangers(&election, &all);
    let candidates = all.iter().filter(|kv| is_candidate(&election, kv));
    Ok(candidates.max_by_key(|kv| kv.create_revision()).map_or(Place::Leads, |kv| behind(kv, read_at)))
}

/// Reads, in one linearizable transaction, `entry` and the keys `ahead` of it; `None`
/// when the entry is gone. With them comes the revision they were read at.
async fn look(
    shared: &Shared,
    lease: i64,
    entry: &Entry,
    election: &str,
    ahead: &GetOptions,
) -> Result<Option<(i64, Vec<KeyValue>)>, BackendError> {
    let (read_at, own, ahead) = shared
        .members
        .call("wait", Call::Bulk, |client| async move {
            let txn = Txn::new().and_then([
                TxnOp::get(entry.key.as_str(), Some(GetOptions::new().with_keys_only())),
                TxnOp::get(election, Some(ahead.clone())),
            ]);
            let answer = kv(&client).txn(txn).await?;
            let read_at = answer.header().ok_or_else(|| malformed("header"))?.revision();
            let mut found = ranges(answer.op_responses());
            match (found.next(), found.next()) {
                (Some(own), Some(ahead)) => Ok((read_at, own, ahead)),
                _ => Err(malformed("ranges").into()),
            }
        })
        .await?
        .value;
    let ours = own.first().is_some_and(|kv| is_ours(kv, lease, entry));
    Ok(ours.then_some((read_at, ahead)))
}

fn behind(kv: &KeyValue, read_at: i64) -> Place {
    Place::Behind(String::from_utf8_lossy(kv.key()).into_owned(), read_at)
}

/// Reads `entry`, without its payload when it is to be `brief`; the revision it was read at, and the payload, when
/// it is there and ours.
async fn own(
    shared: &Shared,
    lease: i64,
    entry: &Entry,
    brief: bool,
) -> Result<Option<(i64, Vec<u8>)>, BackendError> {
    let answer = shared
        .members
        .call("look", Call::Bulk, |client| async move {
            let options = GetOptions::new();
            let options = if brief { options.with_keys_only() } else { options };
            Ok(kv(&client).get(entry.key.as_str(), Some(options)).await?)
        })
        .await?
        .value;
    let read_at = answer.header().ok_or_else(|| malformed("header"))?.revision();
    let ours = answer.kvs().first().filter(|kv| is_ours(kv, lease, entry));
    Ok(ours.map(|kv| (read_at, kv.value().to_vec())))
}
