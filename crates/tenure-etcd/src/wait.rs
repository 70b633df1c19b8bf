//! Waiting for one's turn, and for one's entry to go.
//!
//! Read, watch what the answer rests on, read again (see [`crate::watch`]). Whoever
//! is second in line leads when its watch says that the leader has gone and its own entry has not.
//! Every other conclusion comes from a read that saw the entry itself, so that nobody wins
//! without an entry (hazards G13, E11).
//!
//! # What a member may answer alone
//!
//! When a candidate ahead has gone, the member that said so is asked where the entry
//! stands, without a quorum's word. Its answer
//! counts when it is of that departure's revision or a later one. What it then concludes
//! cannot be out of date: that nobody is ahead stays true, for candidates ahead can only
//! leave; that the entry has gone stays true, for it never comes back; and that the entry was
//! there when the last one ahead left is all that a quorum's answer would say for certain, too. How long
//! it may be assumed to be there since is for the session's deadline, which rests on confirmed heartbeats alone. Anything
//! else (a first look, a watch that has broken off or heard nothing) asks a quorum.

use std::{sync::Arc, time::Duration};

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
    watch::{Following, Target, Turn, Woken},
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
    let mut since = None;
    loop {
        match persistently(|| Box::pin(place(shared, lease, entry, since))).await? {
            Place::Gone => return Err(gone(entry)),
            Place::Leads => return token(revision(entry)).ok_or_else(|| malformed("create revision")),
            Place::Behind { ahead, read_at } => {
                let own: Arc<str> = entry.key.as_str().into();
                let targets = match ahead {
                    Ahead::Leader(ahead) => {
                        vec![Target::Turn(Box::new(Turn { own, ahead, entered: revision(entry) }))]
                    }
                    Ahead::Others { nearest, next } => {
                        vec![Target::End(nearest), Target::Farther(next), Target::End(own)]
                    }
                };
                since = match watch.follow(&shared.watches, targets, read_at).await {
                    Woken::Turn => return token(revision(entry)).ok_or_else(|| malformed("create revision")),
                    Woken::Event(revision) => Some(revision),
                    Woken::Anyhow => None,
                };
            }
        }
    }
}

/// See [`BackendSession::wait_gone`](tenure_core::spi::BackendSession::wait_gone).
pub(crate) async fn wait_gone(shared: &Shared, lease: i64, entry: &Entry) -> Result<(), BackendError> {
    let own_key = Target::Key(entry.key.as_str().into());
    let mut watch = Following::default();
    watch.stand(&shared.watches, [own_key.clone()]).await;
    while let Some((read_at, _)) = persistently(|| Box::pin(own(shared, lease, entry, true))).await? {
        watch.follow(&shared.watches, [own_key.clone()], read_at).await;
    }
    Ok(())
}

/// See [`BackendSession::wait_parting`](tenure_core::spi::BackendSession::wait_parting).
pub(crate) async fn wait_parting(
    shared: &Shared,
    lease: i64,
    entry: &Entry,
) -> Result<Parting, BackendError> {
    let own_key = Target::Key(entry.key.as_str().into());
    let mut watch = Following::default();
    watch.stand(&shared.watches, [own_key.clone()]).await;
    loop {
        let Some((read_at, payload)) = persistently(|| Box::pin(own(shared, lease, entry, false))).await?
        else {
            return Ok(Parting::Gone);
        };
        if is_asked(&payload) {
            return Ok(Parting::Asked);
        }
        watch.follow(&shared.watches, [own_key.clone()], read_at).await;
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

/// Reads where `entry` stands: since a revision that a watch has told of, or by the word of a quorum.
async fn place(
    shared: &Shared,
    lease: i64,
    entry: &Entry,
    since: Option<i64>,
) -> Result<Place, BackendError> {
    let election = shared.keys.election(&entry.election);
    // A bound of zero would be none; etcd's first key has create revision 2.
    if revision(entry) < 2 {
        return Ok(Place::Gone);
    }
    let ahead =
        GetOptions::new().with_prefix().with_keys_only().with_max_create_revision(revision(entry) - 1);
    let nearest = ahead.clone().with_sort(SortTarget::Create, SortOrder::Descend).with_limit(FOLLOWED);
    let own = |look: &Look| look.own.iter().any(|kv| is_ours(kv, lease, entry));
    let here = match since {
        Some(since) => look(shared, entry, &election, &nearest, true).await.ok().filter(|look| {
            let needed = since.max(revision(entry));
            look.read_at >= needed
        }),
        None => None,
    };
    let seen = match here {
        Some(look) => look,
        None => look(shared, entry, &election, &nearest, false).await?,
    };
    if !own(&seen) {
        return Ok(Place::Gone);
    }
    let Look { read_at, ahead: nearest, .. } = seen;
    if nearest.iter().all(|kv| is_candidate(&election, kv)) {
        return Ok(behind(&nearest, read_at));
    }
    // Keys that no candidate made are passed over, which needs a look at all of them.
    let seen = look(shared, entry, &election, &ahead, false).await?;
    if !own(&seen) {
        return Ok(Place::Gone);
    }
    let Look { read_at, ahead: all, .. } = seen;
    shared.note_strangers(&election, &all);
    let mut candidates: Vec<_> = all.into_iter().filter(|kv| is_candidate(&election, kv)).collect();
    candidates.sort_by_key(|kv| std::cmp::Reverse(kv.create_revision()));
    candidates.truncate(FOLLOWED as usize);
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

/// What one transaction has shown.
struct Look {
    read_at: i64,
    own: Vec<KeyValue>,
    ahead: Vec<KeyValue>,
}

/// Reads, in one transaction, `entry` and the keys `ahead` of it: what one member knows, or
/// by the word of a quorum.
async fn look(
    shared: &Shared,
    entry: &Entry,
    election: &str,
    ahead: &GetOptions,
    here: bool,
) -> Result<Look, BackendError> {
    let options = |options: GetOptions| if here { options.with_serializable() } else { options };
    let call = if here { Call::Local } else { Call::Bulk };
    let won = shared
        .members
        .call("wait", call, |client| async move {
            let txn = Txn::new().and_then([
                TxnOp::get(entry.key.as_str(), Some(options(GetOptions::new().with_keys_only()))),
                TxnOp::get(election, Some(options(ahead.clone()))),
            ]);
            let answer = kv(&client).txn(txn).await?;
            let read_at = answer.header().ok_or_else(|| malformed("header"))?.revision();
            let mut found = ranges(answer.op_responses());
            match (found.next(), found.next()) {
                (Some(own), Some(ahead)) => Ok(Look { read_at, own, ahead }),
                _ => Err(malformed("ranges").into()),
            }
        })
        .await?;
    Ok(won.value)
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
