//! Waiting for one's turn.
//!
//! Read, watch what the answer rests on, read again (see [`crate::transport::watch::watcher`]). Whoever
//! is second in line leads when its watch says that the leader has gone and its own entry has not.
//! Every other conclusion comes from a read that saw the entry itself, so that nobody wins
//! without an entry (hazards G13, E11).

use std::{sync::Arc, time::Duration};

use etcd_client::{KeyValue, TxnOpResponse};
use tenure_core::{
    FencingToken,
    spi::{BackendError, BackendErrorKind, Entry},
};
use tokio::time::sleep;
use tracing::debug;

use crate::{
    Shared,
    election::keys::{is_candidate, token},
    election::position_reader::{Ahead as Older, Look, Seen},
    transport::error::malformed,
    transport::pages::Pages,
    transport::watch::target::{Target, Turn},
    transport::watch::watcher::{Following, Woken},
};

/// Where an entry stands.
enum Place {
    Gone,
    Leads,
    /// Behind others, as of this revision.
    Behind {
        ahead: Ahead,
        read_at: i64,
    },
}

/// Who stands before an entry.
enum Ahead {
    /// The leader, and nobody else.
    Leader(Arc<str>),
    /// The nearest, the one before it, and perhaps more.
    Others { nearest: Arc<str>, next: Arc<str> },
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
            Place::Behind { ahead, read_at } => {
                let own: Arc<str> = Arc::clone(&entry.key);
                let targets = match ahead {
                    Ahead::Leader(ahead) => {
                        vec![Target::Turn(Box::new(Turn { own, ahead, entered: revision(entry) }))]
                    }
                    Ahead::Others { nearest, next } => {
                        vec![Target::End(nearest), Target::Farther(next), Target::End(own)]
                    }
                };
                if let Woken::Turn = watch.follow(&shared.watches, targets, read_at).await {
                    return token(revision(entry)).ok_or_else(|| malformed("create revision"));
                }
            }
        }
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
    is_it(kv, lease, revision(entry))
}

/// Whether `kv` is the entry that this revision made and still hangs on `lease`.
pub(crate) fn is_it(kv: &KeyValue, lease: i64, created: i64) -> bool {
    kv.create_revision() == created && kv.lease() == lease
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
pub(crate) async fn persistently<T, F, Fut>(mut read: F) -> Result<T, BackendError>
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
    // A bound of zero would be none; etcd's first key has create revision 2.
    if revision(entry) < 2 {
        return Ok(Place::Gone);
    }
    let election = shared.keys.election(&entry.election);
    let Some((read_at, nearest)) = ahead(shared, lease, entry, &election).await? else {
        return Ok(Place::Gone);
    };
    if nearest.iter().all(|kv| is_candidate(&election, kv)) {
        return Ok(behind(&nearest, read_at));
    }
    // Keys that no candidate made are passed over, which needs a look at all of them, as they were then.
    let mut candidates = Vec::<KeyValue>::new();
    let mut pages = Pages::of_keys(shared, &election, read_at);
    while let Some(page) = pages.next().await? {
        candidates.extend(page.into_iter().filter(|kv| kv.create_revision() < revision(entry)));
        candidates.sort_by_key(|kv| std::cmp::Reverse(kv.create_revision()));
        candidates.truncate(FOLLOWED as usize);
    }
    Ok(behind(&candidates, read_at))
}

/// How many of those ahead a candidate follows: the nearest, after which it may be its turn; and the one before
/// that, after which it may be second in line, and has time to find that out before its turn comes.
const FOLLOWED: i64 = 2;

/// Where an entry stands behind `nearest`, of all those ahead the nearest ones.
fn behind(nearest: &[KeyValue], read_at: i64) -> Place {
    let key = |kv: &KeyValue| Arc::from(String::from_utf8_lossy(kv.key()));
    let ahead = match nearest {
        [] => return Place::Leads,
        [leader] => Ahead::Leader(key(leader)),
        [nearest, next, ..] => Ahead::Others { nearest: key(nearest), next: key(next) },
    };
    Place::Behind { ahead, read_at }
}

/// Reads the newest few keys ahead of `entry`, and at which revision; `None` when the entry is not there.
async fn ahead(
    shared: &Shared,
    lease: i64,
    entry: &Entry,
    election: &str,
) -> Result<Option<(i64, Vec<KeyValue>)>, BackendError> {
    let ahead = Older { election: election.to_owned(), before: revision(entry), most: FOLLOWED };
    let look = Look { key: entry.key.clone(), payload: false, ahead: Some(ahead) };
    let Seen { read_at, own, ahead } = see(shared, look).await?;
    let ours = own.is_some_and(|kv| is_ours(&kv, lease, entry));
    Ok(ours.then_some((read_at, ahead)))
}

/// Reads what a look is for, together with others who look, or alone when that fails.
pub(crate) async fn see(shared: &Shared, look: Look) -> Result<Seen, BackendError> {
    let seen = match shared.looking.ask(look.clone()).await {
        // It may be for the sake of those whom it was asked together with.
        Err(refused) if refused.error.is_retryable() => shared.looking.ask_alone(&look).await,
        outcome => outcome,
    };
    Ok(seen.map_err(|refused| refused.error)?.value)
}
