//! The stat of a znode that the user may not read, and the printed form of session ids.

use zookeeper_client::{SessionId, Stat};

/// Stands for the stat of a znode that exists and that the user may not read.
pub(crate) const UNREADABLE: Stat = Stat {
    // Before any other transaction: what may be a candidate ahead is waited for.
    czxid: 0,
    mzxid: 0,
    pzxid: 0,
    ctime: -1,
    mtime: -1,
    version: 0,
    cversion: 0,
    aversion: 0,
    ephemeral_owner: -1,
    data_length: 0,
    num_children: 0,
};

/// Whether `stat` is [`UNREADABLE`].
pub(crate) fn is_unreadable(stat: &Stat) -> bool {
    stat.ephemeral_owner == UNREADABLE.ephemeral_owner
}

/// A session id as ZooKeeper prints it.
pub(crate) fn session_name(session: i64) -> String {
    if session == UNREADABLE.ephemeral_owner {
        return "unknown".to_owned();
    }
    SessionId(session).to_string()
}
