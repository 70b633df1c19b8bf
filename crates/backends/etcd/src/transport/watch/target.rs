//! What a watch is for, and the one thing that is concluded from what it tells.
//!
//! Who is second in line leads when the leader goes, if its own entry is there still. The
//! events of two watches come in no order that proves that; those of *one* come by revision.
//! So one watch holds both keys ([`Target::Turn`]): whoever hears of the
//! leader's end on it, and not of its own, was there when the leader went. Three things are looked at besides:
//!
//! - the leader's end has to be of a later revision than the own entry. A member that lags can
//!   tell of the end of an earlier entry under the same key, when the watch came to it from another member, or when its
//!   state was replaced (etcd before 3.4.38 and 3.5.22 sets the watch back then). After the own entry, that key can
//!   have ended only once while it was ahead;
//! - a watch that started [`NOW`](crate::transport::watch::watcher::NOW) decides nothing until the look that followed its standing is over:
//!   what happened before it stood it does not tell;
//! - a watch that was late, or whose stream broke, says "look again" like any other.
//!
//! One gap is known: etcd before 3.4.34 and 3.5.16 can lose one event at a compaction of just its revision (issue 18089). If that is
//! the end of one's own entry, which nobody but an operator or a stalled etcd leader (issue 15247) brings about, the
//! candidate leads for the moment until it reads its entry, which it does once its watch stands: at once, or within half a second where
//! many come to lead together.

use std::sync::Arc;

use etcd_client::{WatchFilterType, WatchOptions};

/// What to watch.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Target {
    /// The end of one key.
    End(Arc<str>),
    /// The same, where it is in no hurry.
    Farther(Arc<str>),
    /// Any change of one key.
    Key(Arc<str>),
    /// Any change below a prefix.
    Below(Arc<str>),
    /// The end of the only key `ahead` of one's `own`, or of that.
    Turn(Box<Turn>),
}

/// The two keys that decide whose turn it is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Turn {
    pub(crate) own: Arc<str>,
    pub(crate) ahead: Arc<str>,
    /// The revision that made the own entry.
    pub(crate) entered: i64,
}

impl Target {
    /// Whether the end of keys is all that is watched for.
    pub(crate) fn is_of_ends(&self) -> bool {
        matches!(self, Self::End(_) | Self::Farther(_) | Self::Turn(_))
    }

    /// The keys whose end is watched for.
    pub(crate) fn ends(&self) -> impl Iterator<Item = &Arc<str>> {
        let (first, second) = match self {
            Self::End(key) | Self::Farther(key) => (Some(key), None),
            Self::Turn(turn) => (Some(&turn.own), Some(&turn.ahead)),
            Self::Key(_) | Self::Below(_) => (None, None),
        };
        first.into_iter().chain(second)
    }

    pub(crate) fn options(&self, id: i64, from: i64) -> (&str, WatchOptions) {
        let options = WatchOptions::new().with_watch_id(id).with_start_revision(from);
        match self {
            Self::End(key) | Self::Farther(key) => (key, options.with_filters([WatchFilterType::NoPut])),
            Self::Key(key) => (key, options),
            Self::Below(prefix) => (prefix, options.with_prefix()),
            // What else lies between the two is told of as well, and passed over.
            Self::Turn(turn) => {
                let Turn { own, ahead, .. } = &**turn;
                let (first, last) = if own < ahead { (own, ahead) } else { (ahead, own) };
                // The first key after `last`.
                let options = options.with_range(format!("{last}\0"));
                (first, options.with_filters([WatchFilterType::NoPut]))
            }
        }
    }

    /// What the end of these keys, each with the revision of its end, means to whoever watches.
    pub(crate) fn heard<'a>(&self, ended: impl Iterator<Item = (&'a [u8], i64)>) -> Heard {
        let turn = match self {
            Self::Turn(turn) => &**turn,
            Self::Farther(_) => return Heard::LookLater,
            _ => return Heard::Look,
        };
        let mut heard = Heard::Nothing;
        for (key, _) in ended.filter(|(_, revision)| *revision > turn.entered) {
            if key == turn.own.as_bytes() {
                return Heard::Look;
            }
            if key == turn.ahead.as_bytes() {
                heard = Heard::Turn;
            }
        }
        heard
    }
}

/// What an event means.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Heard {
    /// It is about others.
    Nothing,
    /// Look again.
    Look,
    /// Look again, in a while.
    LookLater,
    /// The only candidate ahead has gone, and one's own entry was there then.
    Turn,
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::transport::watch::watcher::FIRST_ID;

    /// Hazard G13: whoever hears of its own entry's end does not lead, even when the leader's is told of in the same breath.
    #[test]
    fn the_turn_has_come_only_while_the_own_entry_stands() {
        let turn = Target::Turn(Box::new(Turn { own: "e/5".into(), ahead: "e/9".into(), entered: 90 }));
        let heard = |keys: &[&str]| turn.heard(keys.iter().map(|key| (key.as_bytes(), 100)));
        assert_eq!(heard(&["e/7", "e/9"]), Heard::Turn);
        assert_eq!(heard(&["e/6", "e/7"]), Heard::Nothing);
        assert_eq!(heard(&["e/5"]), Heard::Look);
        assert_eq!(heard(&["e/9", "e/5"]), Heard::Look);
        assert_eq!(heard(&["e/5", "e/9"]), Heard::Look);
        assert_eq!(Target::End("e/5".into()).heard(std::iter::empty()), Heard::Look);
    }

    /// Hazard G13: a member that lags tells of the end that an earlier entry of today's leader had, under the same key.
    #[test]
    fn the_end_of_an_earlier_entry_of_the_leader_is_nobodys_turn() {
        let turn = Target::Turn(Box::new(Turn { own: "e/5".into(), ahead: "e/9".into(), entered: 90 }));
        let heard = |key: &'static str, revision| turn.heard([(key.as_bytes(), revision)].into_iter());
        assert_eq!(heard("e/9", 60), Heard::Nothing);
        assert_eq!(heard("e/5", 60), Heard::Nothing);
        assert_eq!(heard("e/9", 91), Heard::Turn);
        assert_eq!(heard("e/5", 91), Heard::Look);
    }

    /// The range of a turn holds both keys, whichever is first.
    #[test]
    fn a_turn_watches_both_keys() {
        for (own, ahead) in [("e/5", "e/9"), ("e/9", "e/5")] {
            let turn = Target::Turn(Box::new(Turn { own: own.into(), ahead: ahead.into(), entered: 2 }));
            let (first, options) = turn.options(FIRST_ID, 7);
            assert_eq!(first, "e/5");
            assert!(format!("{options:?}").contains(&format!("{:?}", b"e/9\0".to_vec())), "{options:?}");
        }
    }
}
