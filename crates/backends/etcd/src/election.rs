//! The election recipe on etcd, compatible with Go's `client/v3/concurrency`.
//!
//! | Go | here |
//! |---|---|
//! | `NewSession`: a lease and its keepalives | [`session`], [`keepalive`] |
//! | `Election.Campaign`: put if absent, wait for all older keys | [`entering`], [`wait`] with [`position_reader`] |
//! | `Election.Resign`: delete by create revision | [`withdrawal`] |
//! | `Election.Leader`, `Election.Observe` | [`observe`] |
//! | (none) | [`probe_entries`]: the session's entries, which confirming reads look for |
//! | (none) | [`entry_watcher`]: the deletion of leaders' entries, and resign requests |
//! | (none) | [`earlier_session`]: ends the session of a process that is dead |
//! | (none) | [`listing`]: the elections that exist |
//!
//! [`keys`] is the key layout, [`entry`] tells entries apart, [`candidate_pages`] lists the candidates of an
//! election, and [`store`] is what a backend's sessions and observers have in common.

pub(crate) mod candidate_pages;
pub(crate) mod earlier_session;
pub(crate) mod entering;
pub(crate) mod entry;
pub(crate) mod entry_watcher;
pub(crate) mod keepalive;
pub(crate) mod keys;
pub(crate) mod listing;
pub(crate) mod observe;
pub(crate) mod position_reader;
pub(crate) mod probe_entries;
pub(crate) mod session;
pub(crate) mod store;
pub(crate) mod wait;
pub(crate) mod withdrawal;
