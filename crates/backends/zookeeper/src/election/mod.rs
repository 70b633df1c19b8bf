//! The recipe of Curator's `LeaderLatch`: leader election over ephemeral sequential znodes.
//!
//! | step of the recipe | here |
//! |---|---|
//! | open a session; close it | `open` and `close` in [`session`] |
//! | create an ephemeral sequential znode | `enter` in [`entries`], named by [`layout`] |
//! | list the znodes: the lowest number leads | [`queue`] |
//! | otherwise watch the own entry and the two just ahead | `until_first` in [`wait`] |
//! | win: the token is the znode's `czxid` | `fencing_token` in [`entry_stat`] |
//! | the leader: watch the own entry, for its deletion and for resign requests | [`entry_watcher`] |
//! | keep the session alive | `heartbeat` in [`session`]: writes that are refused, and why they prove anything |
//! | change the value | `update` in [`entries`] |
//! | delete the znode to leave, also after a request without an answer | `leave` in [`entries`] |
//! | read and follow the leader, and ask it to resign | [`observe`] |
//!
//! Beyond the recipe: [`fenced`] writes while a candidate leads, [`earlier_session`] ends the session of a process that is dead,
//! [`listing`] finds the elections that exist, [`session_bounds`] has the accepted session timeouts, [`foreign_entries`] counts
//! znodes of others, and [`acl_audit`] checks who else has permissions. [`entry_stat`] reads an entry's stat, and [`store`] is
//! what all sessions and observers of a backend share.

pub(crate) mod acl_audit;
pub(crate) mod earlier_session;
mod entries;
mod entry_stat;
mod entry_watcher;
pub(crate) mod fenced;
mod foreign_entries;
pub(crate) mod layout;
pub(crate) mod listing;
pub(crate) mod observe;
pub(crate) mod queue;
pub(crate) mod session;
pub(crate) mod session_bounds;
pub(crate) mod store;
mod wait;

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::session_bounds::SessionBounds;

    /// Hazard Z23: behind an ObserverMaster a touch takes two ping hops, each up to half a tick.
    #[test]
    fn the_gap_is_a_whole_tick_from_four_ticks_on() {
        let tick = Duration::from_secs(2);
        for bounds in
            [SessionBounds::default(), SessionBounds { tick: Some(tick), ..SessionBounds::default() }]
        {
            assert!(bounds.heartbeat_gap(4 * tick) >= tick);
            assert!(bounds.heartbeat_gap(3 * tick) < tick, "the limitation in safety.md could go");
        }
    }
}
