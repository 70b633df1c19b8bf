//! The election recipe on etcd, compatible with Go's `client/v3/concurrency`.
//!
//! | Go | here |
//! |---|---|
//! | `NewSession`: a lease | `open` in [`session`] |
//! | its keepalives | `heartbeat` and `confirm` in [`session`]; [`keepalive`], with the proof |
//! | `Election.Campaign`: put if absent | `enter` in [`session`], `create_all` in [`entering`] |
//! | `Election.Campaign`: wait for all older keys | `wait_turn` in [`wait`], with [`position_reader`] |
//! | `Election.Rev`, the token | `fencing_token` in [`keys`] |
//! | `Election.Proclaim` | `update` in [`session`] |
//! | `Election.Resign`: delete by create revision | `leave` in [`withdrawal`], also after a request without an answer |
//! | `Election.Leader`, `Election.Observe` | [`observe`], which also asks a leader to resign |
//! | `Session.Close` | `close` in [`session`] |
//! | (none) | [`calls`]: attempts to enter whose answers are late |
//! | (none) | [`probe_entries`]: the session's entries, which confirming reads look for |
//! | (none) | [`entry_watcher`]: the deletion of leaders' entries, and resign requests |
//! | (none) | [`earlier_session`]: ends the session of a process that is dead |
//! | (none) | [`listing`]: the elections that exist |
//!
//! [`keys`] is the key layout, [`entry`] tells entries apart, and [`store`] is what a backend's sessions and observers
//! have in common.

pub(crate) mod calls;
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
