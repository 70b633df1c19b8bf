//! The recipe: leader election over ephemeral sequential znodes, as in Curator's `LeaderSelector` and `LeaderLatch`.
//!
//! A candidate's entry is an ephemeral sequential znode ([`layout`]). The entry with the lowest number leads ([`queue`]);
//! every other candidate watches its own entry and the two just ahead ([`wait`]). A candidate enters, updates and leaves in
//! [`entries`]. The [`session`] sends heartbeats by writing to a znode of its own ([`heartbeat_znode`]).
//! [`observe`] reads and follows the leader; [`listing`] finds the elections that exist.

pub(crate) mod acl_audit;
pub(crate) mod earlier_session;
mod entries;
mod entry_stat;
mod entry_watcher;
pub(crate) mod fenced;
mod foreign_entries;
mod heartbeat_znode;
pub(crate) mod layout;
pub(crate) mod listing;
pub(crate) mod observe;
pub(crate) mod queue;
pub(crate) mod session;
pub(crate) mod session_bounds;
pub(crate) mod store;
mod wait;
