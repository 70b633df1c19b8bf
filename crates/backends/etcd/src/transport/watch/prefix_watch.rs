//! One watch of every end below the prefix, in place of a watch for each when very many are waited for.
//!
//! A holder of ten thousand elections goes: etcd tells that to ten thousand watches one by one, with a message for each,
//! and finds each of them anew whose messages do not fit into a stream's queue of 128. One watch is told of all of it in
//! a message. The price is that a process that has a common watch hears of every departure below its prefix, and
//! not only of those that it waits for; so there is none while few are waited for.
//!
//! # Why it tells as much as a watch of one's own
//!
//! The events of one watch come by revision. So whoever was told of all up to some revision is told later of
//! every event after that. Who asks for ends from a later revision on is told of them as they come, and of none before;
//! who asks for ends from an earlier one is late, as with a watch of its own that begins in the past, and looks again
//! ([`Watches::watch`](crate::transport::watch::watcher::Watches::watch)). Who asks for them from now on is told that its watch stands, and looks at what was before.

use std::time::Duration;

use etcd_client::{WatchFilterType, WatchOptions, WatchResponse};
use tokio::time::Instant;
use tracing::debug;

use crate::transport::watch::table::{Open, Watch};

/// After how long a common watch that was refused is asked for again. A refusal can end the stream, and all have to look again.
const AGAIN: Duration = Duration::from_secs(3600);

/// In the words of a refusal that a new login mends.
const PASSING: &str = "auth token";

/// The common watch of a stream.
pub(crate) struct Common {
    /// It is begun once so many watch ends alone.
    from: usize,
    state: State,
    /// Ids of other watches count upward from [`FIRST_ID`](crate::transport::watch::watcher::FIRST_ID).
    next_id: i64,
}

enum State {
    None,
    /// Asked for under this id.
    Asked(i64),
    Stands {
        id: i64,
        /// All events up to this revision have been told of.
        told: i64,
        /// Whether anybody has made use of it.
        used: bool,
    },
    /// This etcd did not allow it then, or has ended it.
    Refused(Instant),
}

/// What became of a watch that is asked for.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Taken {
    /// It is part of the common watch.
    In,
    /// It would have begun in the past.
    Late,
    /// It is to be watched alone.
    Not,
}

impl Common {
    pub(crate) fn new(from: usize) -> Self {
        Self { from, state: State::None, next_id: i64::MAX }
    }

    /// For a new stream.
    pub(crate) fn renew(&mut self) {
        self.state = match self.state {
            // It may be what ended the stream before.
            State::Asked(_) => State::Refused(Instant::now()),
            State::Refused(at) => State::Refused(at),
            State::None | State::Stands { .. } => State::None,
        };
    }

    /// Whether this is the id of the common watch.
    pub(crate) fn is(&self, id: i64) -> bool {
        matches!(self.state, State::Asked(own) | State::Stands { id: own, .. } if own == id)
    }

    /// The id to ask for the common watch with, if it is time for that.
    pub(crate) fn wanted(&mut self, open: &Open) -> Option<i64> {
        let may_be_had = match self.state {
            State::None => true,
            State::Refused(at) => at.elapsed() >= AGAIN,
            State::Asked(_) | State::Stands { .. } => false,
        };
        if !may_be_had || open.alone() < self.from {
            return None;
        }
        let id = self.next_id;
        self.next_id -= 1;
        self.state = State::Asked(id);
        Some(id)
    }

    /// The id of the common watch, when nobody needs it any more: it is forgotten here.
    pub(crate) fn unneeded(&mut self, open: &Open) -> Option<i64> {
        match self.state {
            State::Stands { id, used, .. }
                if !open.needs_common() && (used || open.alone() < (self.from / 2).max(1)) =>
            {
                self.state = State::None;
                Some(id)
            }
            _ => None,
        }
    }

    /// Makes `watch` a part of the common watch, if that can be and it stands.
    pub(crate) fn take_in(&mut self, watch: &mut Watch) -> Taken {
        let State::Stands { told, used, .. } = &mut self.state else { return Taken::Not };
        if !watch.target.is_of_ends() {
            return Taken::Not;
        }
        if watch.from_now {
            watch.from = told.saturating_add(1);
            watch.hearer.stands();
        } else if watch.from <= *told {
            return Taken::Late;
        }
        watch.in_common = true;
        *used = true;
        Taken::In
    }

    /// A refusal has come that does not say of what: perhaps of the common watch, if it was asked for.
    pub(crate) fn refuse_unheard(&mut self, reason: &str) {
        if matches!(self.state, State::Asked(_)) {
            self.state = refused(reason.contains(PASSING));
        }
    }

    /// The common watch has something to say; whether it is over.
    pub(crate) fn hear(&mut self, response: &WatchResponse, open: &mut Open) -> bool {
        if response.canceled() {
            let reason = response.cancel_reason();
            debug!(reason, "etcd's common watch is over; each end is watched alone");
            self.over(open, response.compact_revision() != 0 || reason.contains(PASSING));
            return true;
        }
        if response.created()
            && let Some(header) = response.header()
        {
            self.stands(header.revision());
        }
        let events = response.events().iter().filter_map(etcd_client::Event::kv);
        let ended: Vec<_> = events.map(|kv| (kv.key(), kv.mod_revision())).collect();
        self.tell(&ended, open);
        false
    }

    /// It stands, and tells of what comes after this revision.
    fn stands(&mut self, revision: i64) {
        if let State::Asked(id) = self.state {
            self.state = State::Stands { id, told: revision, used: false };
        }
    }

    /// It is over, perhaps for a reason that passes, and whoever heard of it looks again.
    fn over(&mut self, open: &mut Open, passes: bool) {
        self.state = refused(passes);
        for id in open.in_common() {
            if let Some(watch) = open.remove(id) {
                watch.hearer.over();
            }
        }
    }

    /// Tells each watch of those ends that it is there for, all of them at once.
    fn tell(&mut self, ended: &[(&[u8], i64)], open: &mut Open) {
        if let State::Stands { told, .. } = &mut self.state {
            *told = ended.iter().map(|(_, revision)| *revision).fold(*told, i64::max);
        }
        let mut told: Vec<(i64, usize)> = Vec::new();
        for (at, (key, _)) in ended.iter().enumerate() {
            told.extend(open.of(key).iter().map(|id| (*id, at)));
        }
        told.sort_unstable();
        for of_one in told.chunk_by(|(a, _), (b, _)| a == b) {
            let Some((id, _)) = of_one.first().copied() else { continue };
            let Some(watch) = open.get(id) else { continue };
            let its = of_one.iter().map(|(_, at)| ended[*at]).filter(|(_, revision)| *revision >= watch.from);
            // Of nothing there is nothing to tell.
            if its.clone().next().is_some() && watch.hears(its) {
                open.remove(id);
            }
        }
    }
}

fn refused(passes: bool) -> State {
    if passes { State::None } else { State::Refused(Instant::now()) }
}

/// Of a watch of all ends below a prefix, from now on.
///
/// Not in fragments: those are cut in the middle of a revision, and whoever's own entry ends with the leader's has to be told of
/// both at once.
pub(crate) fn options(id: i64) -> WatchOptions {
    WatchOptions::new().with_watch_id(id).with_prefix().with_filters([WatchFilterType::NoPut])
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use tokio::time::advance;

    use super::*;
    use crate::{
        transport::watch::subscriber::{Hearer, Signal},
        transport::watch::target::{Target, Turn},
        transport::watch::watcher::{FIRST_ID, NOW},
    };

    /// A common watch that stands since revision 100.
    fn standing() -> (Common, Open) {
        let mut common = Common::new(0);
        let open = Open::default();
        let id = common.wanted(&open).unwrap();
        assert!(common.is(id) && common.wanted(&open).is_none());
        common.stands(100);
        (common, open)
    }

    fn turn(entered: i64) -> Target {
        Target::Turn(Box::new(Turn { own: "e/5".into(), ahead: "e/9".into(), entered }))
    }

    /// Asks for `target` from a revision on.
    fn ask(common: &mut Common, open: &mut Open, id: i64, target: Target, from: i64) -> (Taken, Arc<Signal>) {
        let signal = Arc::new(Signal::default());
        let mut watch = Watch::of(target, from, Hearer::Waits(Arc::clone(&signal)));
        let taken = common.take_in(&mut watch);
        if taken == Taken::In {
            open.insert(id, watch);
        }
        (taken, signal)
    }

    fn ends(common: &mut Common, open: &mut Open, ended: &[(&str, i64)]) {
        let ended: Vec<_> = ended.iter().map(|(key, revision)| (key.as_bytes(), *revision)).collect();
        common.tell(&ended, open);
    }

    /// Hazard E15: whoever asks from a revision on is told of what comes after it, of nothing before, or that it is late.
    #[test]
    fn ends_are_told_from_the_revision_that_was_asked_for() {
        let (mut common, mut open) = standing();
        let end = || Target::End("e/9".into());
        assert_eq!(ask(&mut common, &mut open, FIRST_ID, end(), 100).0, Taken::Late);
        let (taken, signal) = ask(&mut common, &mut open, FIRST_ID, end(), 105);
        assert_eq!(taken, Taken::In);
        ends(&mut common, &mut open, &[("e/8", 106), ("e/9", 104)]);
        assert!(!signal.is_over(), "that was an earlier one");
        assert_eq!(ask(&mut common, &mut open, 7, end(), 106).0, Taken::Late);
        ends(&mut common, &mut open, &[("e/9", 107)]);
        assert!(signal.is_over() && open.is_empty() && !open.needs_common());
        assert!(common.unneeded(&open).is_some());
    }

    /// Hazard G13: who asks from now on is told to look, and leads by what comes after that look alone.
    #[test]
    fn who_starts_now_looks_first() {
        for looked in [false, true] {
            let (mut common, mut open) = standing();
            let (taken, signal) = ask(&mut common, &mut open, FIRST_ID, turn(90), NOW);
            assert!(taken == Taken::In && signal.is_standing());
            ends(&mut common, &mut open, &[("e/9", 100)]);
            assert!(!signal.is_over(), "it had ended before");
            if looked {
                signal.looked();
            }
            ends(&mut common, &mut open, &[("e/9", 101)]);
            assert!(signal.is_over());
            assert_eq!(signal.is_turn(), looked);
        }
    }

    /// Hazard G13: whose own entry has gone in the same breath does not lead, in whatever order that is told.
    #[test]
    fn both_ends_of_a_message_count() {
        for ended in [[("e/9", 101), ("e/5", 101)], [("e/5", 101), ("e/9", 102)]] {
            let (mut common, mut open) = standing();
            let (_, signal) = ask(&mut common, &mut open, FIRST_ID, turn(90), 101);
            ends(&mut common, &mut open, &ended);
            assert!(signal.is_over() && !signal.is_turn());
        }
        let (mut common, mut open) = standing();
        let (_, signal) = ask(&mut common, &mut open, FIRST_ID, turn(90), 101);
        ends(&mut common, &mut open, &[("e/7", 101), ("e/9", 101)]);
        assert!(signal.is_turn());
    }

    /// Two who wait for one key are both told, and whoever has gone is not.
    #[test]
    fn all_who_wait_for_a_key_are_told() {
        let (mut common, mut open) = standing();
        let end = || Target::End("e/9".into());
        let signals: Vec<_> =
            (FIRST_ID..FIRST_ID + 4).map(|id| ask(&mut common, &mut open, id, end(), 101).1).collect();
        open.remove(FIRST_ID + 2);
        ends(&mut common, &mut open, &[("e/9", 101)]);
        let told: Vec<_> = signals.iter().map(|signal| signal.is_over()).collect();
        assert_eq!(told, [true, true, false, true]);
    }

    /// When it is refused, everybody looks again and is watched alone, on the next stream too; for an hour.
    #[tokio::test(start_paused = true)]
    async fn what_is_refused_is_not_asked_for_again_soon() {
        let (mut common, mut open) = standing();
        let (_, signal) = ask(&mut common, &mut open, FIRST_ID, turn(90), 101);
        common.over(&mut open, false);
        assert!(signal.is_over() && !signal.is_turn() && open.is_empty());
        common.renew();
        assert_eq!(common.wanted(&open), None);
        assert_eq!(ask(&mut common, &mut open, FIRST_ID, turn(90), 101).0, Taken::Not);
        advance(AGAIN).await;
        assert!(common.wanted(&open).is_some());
        common.renew();
        assert_eq!(common.wanted(&open), None, "it may have ended the stream");
    }

    /// An expired login is made anew, and a compaction happens once.
    #[test]
    fn a_refusal_that_passes_is_forgotten() {
        let (mut common, mut open) = standing();
        let (_, signal) = ask(&mut common, &mut open, FIRST_ID, turn(90), 101);
        common.over(&mut open, true);
        assert!(signal.is_over() && !signal.is_turn());
        assert!(common.wanted(&open).is_some());
        common.refuse_unheard("etcdserver: invalid auth token");
        assert!(common.wanted(&open).is_some());
        common.refuse_unheard("etcdserver: permission denied");
        assert_eq!(common.wanted(&open), None);
    }

    /// An etcd that lies about its revision is served as any other.
    #[test]
    fn the_last_revision_of_all_is_one_too() {
        let (mut common, mut open) = standing();
        ends(&mut common, &mut open, &[("e/9", i64::MAX)]);
        let (taken, signal) = ask(&mut common, &mut open, FIRST_ID, turn(90), NOW);
        assert!(taken == Taken::In && signal.is_standing());
        assert_eq!(ask(&mut common, &mut open, 7, turn(90), i64::MAX).0, Taken::Late);
    }

    #[test]
    fn it_is_begun_for_many_and_forgotten_with_the_last() {
        let mut common = Common::new(2);
        let mut open = Open::default();
        let alone = || Watch::of(Target::End("e/1".into()), 7, Hearer::Waits(Arc::default()));
        open.insert(1, alone());
        open.insert(2, Watch::of(Target::Key("e/1".into()), 7, Hearer::Waits(Arc::default())));
        assert_eq!(common.wanted(&open), None);
        open.insert(3, alone());
        let id = common.wanted(&open);
        assert_eq!(id, Some(i64::MAX));
        common.stands(100);
        assert_eq!(common.unneeded(&open), None, "there are many still");
        open.remove(1);
        open.remove(3);
        assert_eq!(common.unneeded(&open), id);
        assert!(!common.is(i64::MAX));
    }
}
