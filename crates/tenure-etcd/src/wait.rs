//! Waiting for one's turn, and for one's entry to go.
//!
//! Read, watch what the answer rests on, read again (see [`crate::watch`]). Every
//! conclusion comes from a linearizable read that saw the entry itself, so that
//! nobody wins without an entry (hazards G13, E11).

use std::time::Duration;

use etcd_client::{KeyValue, TxnOpResponse};
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
    looking::{Ahead, Look, Seen},
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
    while let Some(seen) = persistently(|| Box::pin(own(shared, lease, entry, false))).await? {
        let read_at = seen.read_at;
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
        let Some(mut seen) = persistently(|| Box::pin(own(shared, lease, entry, false))).await? else {
            return Ok(Parting::Gone);
        };
        // The payload may be large, and is as it was made, mostly.
        if seen.changed {
            match persistently(|| Box::pin(own(shared, lease, entry, true))).await? {
                Some(with_payload) => seen = with_payload,
                None => return Ok(Parting::Gone),
            }
        }
        let read_at = seen.read_at;
        if is_asked(&seen.payload) {
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
    let ahead = |nearest| Ahead { election: election.clone(), before: revision(entry), nearest };
    let Some((read_at, nearest)) = look(shared, lease, entry, ahead(true)).await? else {
        return Ok(Place::Gone);
    };
    match nearest.first() {
        None => return Ok(Place::Leads),
        Some(kv) if is_candidate(&election, kv) => return Ok(behind(kv, read_at)),
        Some(_) => {}
    }
    // Keys that no candidate made are passed over, which needs a look at all of them.
    let Some((read_at, all)) = look(shared, lease, entry, ahead(false)).await? else {
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
    ahead: Ahead,
) -> Result<Option<(i64, Vec<KeyValue>)>, BackendError> {
    let seen = see(shared, Look { key: entry.key.clone(), payload: false, ahead: Some(ahead) }).await?;
    let ours = seen.own.first().is_some_and(|kv| is_ours(kv, lease, entry));
    Ok(ours.then_some((seen.read_at, seen.ahead)))
}

async fn see(shared: &Shared, look: Look) -> Result<Seen, BackendError> {
    Ok(shared.looking.ask(look).await.map_err(|refused| refused.error)?.value)
}

fn behind(kv: &KeyValue, read_at: i64) -> Place {
    Place::Behind(String::from_utf8_lossy(kv.key()).into_owned(), read_at)
}

/// An entry that is there and ours, as it was read.
struct Own {
    read_at: i64,
    /// Whether it was written to since it was made.
    changed: bool,
    /// Empty when it was not asked for.
    payload: Vec<u8>,
}

/// Reads `entry`, with its payload or without; `None` when it is not there, or not ours.
async fn own(shared: &Shared, lease: i64, entry: &Entry, payload: bool) -> Result<Option<Own>, BackendError> {
    let Seen { read_at, own, .. } =
        see(shared, Look { key: entry.key.clone(), payload, ahead: None }).await?;
    let ours = own.into_iter().find(|kv| is_ours(kv, lease, entry));
    Ok(ours.map(|kv| Own {
        read_at,
        changed: kv.mod_revision() != kv.create_revision(),
        payload: kv.value().to_vec(),
    }))
}
