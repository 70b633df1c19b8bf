//! What the stat of an entry's znode says: its version, fencing token, owner and age.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use tenure_core::{
    FencingToken,
    spi::{BackendError, Entry},
};
use zookeeper_client::Stat;

use crate::transport::{error::unavailable, resumable_session::ResumableSession};

/// The version of an entry: its `czxid`.
pub(crate) fn version(stat: &Stat) -> Result<u64, BackendError> {
    u64::try_from(stat.czxid).map_err(|_| unavailable("ZooKeeper's answer has no czxid"))
}

/// The fencing token of an entry: the number of the transaction that created it, which rises across the whole ensemble.
pub(crate) fn fencing_token(version: u64) -> Result<FencingToken, BackendError> {
    FencingToken::new(version).ok_or_else(|| unavailable("ZooKeeper's answer has a czxid of zero"))
}

/// Whether `stat` is that of `entry`, and it belongs to `session`.
pub(crate) fn is_own_entry(session: &ResumableSession, stat: &Stat, entry: &Entry) -> bool {
    stat.ephemeral_owner == session.id() && u64::try_from(stat.czxid) == Ok(entry.version)
}

/// The age of an entry, by this machine's clock compared with the store's. For display only.
pub(crate) fn age(stat: &Stat) -> Option<Duration> {
    let created = UNIX_EPOCH + Duration::from_millis(u64::try_from(stat.ctime).ok()?);
    Some(SystemTime::now().duration_since(created).unwrap_or_default())
}
