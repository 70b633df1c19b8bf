//! All watches of one backend on one stream.
//!
//! A watch here carries no news but one, only the word "look again": whoever waits reads
//! the store, watches what the answer rests on from the answer's revision + 1, and
//! reads again when told to. So a compaction, a lost stream, a member that is frozen
//! or cut off are all the same case.
//!
//! # The one thing that is concluded from a watch
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
//! - a watch that started [`NOW`] decides nothing until the look that followed its standing is over:
//!   what happened before it stood it does not tell;
//! - a watch that was late, or whose stream broke, says "look again" like any other.
//!
//! One gap is known: etcd before 3.4.34 and 3.5.16 can lose one event at a compaction of just its revision (issue 18089). If that is
//! the end of one's own entry, which nobody but an operator or a stalled etcd leader (issue 15247) brings about, the
//! candidate leads for the moment until it reads its entry, which it does once its watch stands: at once, or within half a second where
//! many come to lead together.
//!
//! The stream itself is kept in [`crate::stream`]; where thousands are waited for one watch serves them all ([`crate::common`]).

use std::{
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{
            AtomicBool, AtomicI64, AtomicUsize,
            Ordering::{Relaxed, SeqCst},
        },
    },
    time::Duration,
};

use etcd_client::{WatchFilterType, WatchOptions};
use tokio::{
    sync::{Notify, mpsc},
    task::JoinHandle,
    time::sleep,
};

use crate::{members::Members, stream};

/// The revision that a watch starts from when it starts whenever it comes to stand.
pub(crate) const NOW: i64 = 0;

/// A client's own watch ids start here; etcd's start at zero and -1 means none.
pub(crate) const FIRST_ID: i64 = 1;

/// The least time after which whoever is second in line reads again although nothing was heard, and others do.
const HURRIED: Duration = Duration::from_secs(5);
const UNHURRIED: Duration = Duration::from_secs(30);

/// How long to leave the store to those who are in a hurry.
const LATER: Duration = Duration::from_millis(20);

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

/// Where watches are asked for.
#[derive(Debug)]
pub(crate) struct Watches {
    members: Arc<Members>,
    next_id: AtomicI64,
    open: Arc<AtomicUsize>,
    task: Mutex<Option<(mpsc::UnboundedSender<Command>, JoinHandle<()>)>>,
}

/// Some targets being watched, until dropped.
#[derive(Debug)]
pub(crate) struct Watching {
    signal: Arc<Signal>,
    ids: Vec<i64>,
    commands: mpsc::UnboundedSender<Command>,
    open: Arc<AtomicUsize>,
}

/// What a watch has to say.
#[derive(Debug, Default)]
pub(crate) struct Signal {
    notify: Notify,
    spent: AtomicBool,
    late: AtomicBool,
    turn: AtomicBool,
    later: AtomicBool,
    /// Whether the watch stands that was to start [`NOW`], and whether a look has followed.
    stands: AtomicBool,
    looked: AtomicBool,
}

impl Signal {
    /// Look again, for what was before: the watch that was to start [`NOW`] stands, and goes on.
    pub(crate) fn look(&self) {
        self.stands.store(true, SeqCst);
        self.notify.notify_one();
    }

    /// Look again; the watch is over.
    pub(crate) fn over(&self) {
        self.spent.store(true, Relaxed);
        self.notify.notify_one();
    }

    /// Look again in a while. Other watches of the same signal go on.
    pub(crate) fn look_later(&self) {
        self.later.store(true, Relaxed);
        self.notify.notify_one();
    }

    /// The only candidate ahead has gone; the watch is over.
    pub(crate) fn turn(&self) {
        self.turn.store(true, Relaxed);
        self.over();
    }

    /// Look again; the watch is over because it would have begun in the past.
    pub(crate) fn over_late(&self) {
        self.late.store(true, Relaxed);
        self.over();
    }
}

#[cfg(test)]
impl Signal {
    pub(crate) fn is_over(&self) -> bool {
        self.spent.load(Relaxed)
    }

    pub(crate) fn is_turn(&self) -> bool {
        self.turn.load(Relaxed)
    }

    pub(crate) fn is_standing(&self) -> bool {
        self.stands.load(SeqCst)
    }

    pub(crate) fn looked(&self) {
        self.looked.store(true, SeqCst);
    }
}

/// Who hears of a watch.
#[derive(Debug)]
pub(crate) enum Hearer {
    /// Somebody who waits.
    Waits(Arc<Signal>),
    /// Somebody with many watches. The end of this is a word, too.
    Bell(Bell),
}

/// Says words of one of many watches to whoever has them.
#[derive(Debug)]
pub(crate) struct Bell {
    number: u64,
    words: mpsc::UnboundedSender<Word>,
}

/// Look again.
#[derive(Debug)]
pub(crate) struct Word {
    pub(crate) number: u64,
    /// Whether the watch stands, or is over.
    pub(crate) stands: bool,
}

impl Bell {
    pub(crate) fn new(number: u64, words: mpsc::UnboundedSender<Word>) -> Self {
        Self { number, words }
    }

    fn ring(&self, stands: bool) {
        let _ = self.words.send(Word { number: self.number, stands });
    }
}

impl Drop for Bell {
    fn drop(&mut self) {
        self.ring(false);
    }
}

impl Hearer {
    /// The watch that was to start [`NOW`] stands.
    pub(crate) fn stands(&self) {
        match self {
            Self::Waits(signal) => signal.look(),
            Self::Bell(bell) => bell.ring(true),
        }
    }

    /// The watch is over; a bell says so by itself.
    pub(crate) fn over(&self) {
        self.tell(Signal::over);
    }

    /// What only those have to know who wait; for others the watch is over.
    pub(crate) fn tell(&self, what: impl FnOnce(&Signal)) {
        if let Self::Waits(signal) = self {
            what(signal);
        }
    }

    /// Whether a watch that started [`NOW`] has been looked behind.
    pub(crate) fn is_proven(&self) -> bool {
        matches!(self, Self::Waits(signal) if signal.looked.load(SeqCst))
    }
}

/// What is asked of the stream.
#[derive(Debug)]
pub(crate) enum Command {
    Add { id: i64, target: Target, from: i64, hearer: Hearer },
    Remove { id: i64 },
}

impl Watches {
    pub(crate) fn new(members: Arc<Members>) -> Self {
        Self { members, next_id: AtomicI64::new(FIRST_ID), open: Arc::default(), task: Mutex::default() }
    }

    /// Watches `targets` from the revision `from` on.
    ///
    /// `from` is the revision of the read before, plus one. If others have written
    /// meanwhile it lies in the past, and the watch would be served by a loop that
    /// runs every 100 ms (hazard E15): such a watch is over at once, and
    /// [`was_late`](Watching::was_late). The next one takes [`NOW`] instead, which costs
    /// one more read: it says "look again" once it stands.
    pub(crate) fn watch(&self, targets: impl IntoIterator<Item = Target>, from: i64) -> Watching {
        let signal = Arc::new(Signal::default());
        let commands = self.commands();
        let mut ids = Vec::with_capacity(2);
        for target in targets {
            let id = self.next_id.fetch_add(1, Relaxed);
            ids.push(id);
            if commands
                .send(Command::Add { id, target, from, hearer: Hearer::Waits(Arc::clone(&signal)) })
                .is_err()
            {
                signal.over();
            }
        }
        self.open.fetch_add(1, Relaxed);
        Watching { signal, ids, commands, open: Arc::clone(&self.open) }
    }

    /// Watches `target` from whenever the watch comes to stand, for somebody with many: the watch's id.
    pub(crate) fn ring(&self, target: Target, bell: Bell) -> i64 {
        let id = self.next_id.fetch_add(1, Relaxed);
        // Unheard, it is over.
        let _ = self.commands().send(Command::Add { id, target, from: NOW, hearer: Hearer::Bell(bell) });
        id
    }

    /// Takes a watch back that [`ring`](Self::ring) has begun.
    pub(crate) fn hush(&self, id: i64) {
        if let Some((commands, _)) = &*self.slot() {
            let _ = commands.send(Command::Remove { id });
        }
    }

    /// After how long to read again although nothing was heard.
    ///
    /// etcd can lose an event around a compaction (issue 18089). A lost stream is
    /// noticed otherwise, so that this can be rare, and rarer where many wait: at most some
    /// five reads a second in one process, whatever the number of elections.
    fn patience(&self, least: Duration) -> Duration {
        let open = u32::try_from(self.open.load(Relaxed)).unwrap_or(u32::MAX);
        let base = least.max(Duration::from_millis(200).saturating_mul(open));
        base.mul_f64(0.75 + fastrand::f64() / 2.0)
    }

    /// Ends the stream and its task. Watches asked for later start a new one.
    pub(crate) fn close(&self) {
        if let Some((_, task)) = self.slot().take() {
            task.abort();
        }
    }

    fn commands(&self) -> mpsc::UnboundedSender<Command> {
        let mut slot = self.slot();
        if let Some((commands, task)) = &*slot
            && !task.is_finished()
        {
            return commands.clone();
        }
        let (commands, receiver) = mpsc::unbounded_channel();
        let task = tokio::spawn(stream::run(Arc::clone(&self.members), receiver));
        *slot = Some((commands.clone(), task));
        commands
    }

    fn slot(&self) -> std::sync::MutexGuard<'_, Option<(mpsc::UnboundedSender<Command>, JoinHandle<()>)>> {
        self.task.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for Watches {
    fn drop(&mut self) {
        self.close();
    }
}

impl Watching {
    /// Waits until it is time to look again.
    ///
    /// # Cancellation safety
    /// Nothing is lost when the future is dropped.
    pub(crate) async fn changed(&self) {
        self.signal.notify.notified().await;
    }

    /// Whether there is nothing to look at but what is in no hurry.
    fn can_wait(&self) -> bool {
        self.signal.later.load(Relaxed) && !self.is_spent()
    }

    fn woken(&self) -> Woken {
        if self.signal.turn.load(Relaxed) { Woken::Turn } else { Woken::Look }
    }

    /// Whether the watch is over, so that another is needed.
    pub(crate) fn is_spent(&self) -> bool {
        self.signal.spent.load(Relaxed)
    }

    /// Whether the watch came to stand after the revision it was to start from.
    pub(crate) fn was_late(&self) -> bool {
        self.signal.late.load(Relaxed)
    }
}

impl Drop for Watching {
    fn drop(&mut self) {
        self.open.fetch_sub(1, Relaxed);
        for id in &self.ids {
            let _ = self.commands.send(Command::Remove { id: *id });
        }
    }
}

/// Why a wait is over.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Woken {
    /// [`Heard::Turn`].
    Turn,
    /// It is time to look again, whatever for.
    Look,
}

/// A watch that is kept from one look to the next for as long as it serves.
#[derive(Debug, Default)]
pub(crate) struct Following {
    watching: Option<(Vec<Target>, Watching)>,
    start_now: bool,
    /// Whether the watch stood when the last wait ended: whatever was looked at since is what was there after that.
    stood: bool,
}

impl Following {
    /// Waits until it is time to look again at what was read at revision `read_at`,
    /// and what rests on `targets`.
    ///
    /// # Cancellation safety
    /// Nothing is lost when the future is dropped.
    pub(crate) async fn follow(
        &mut self,
        watches: &Watches,
        targets: impl Into<Vec<Target>>,
        read_at: i64,
    ) -> Woken {
        let targets = targets.into();
        if let Some((followed, watching)) = &self.watching
            && (watching.is_spent() || *followed != targets)
        {
            self.start_now = watching.was_late();
            self.watching = None;
            self.stood = false;
        }
        // Who is second in line should not wait long for an event that was lost.
        let hurries = targets.iter().any(|target| matches!(target, Target::Turn(_)));
        let patience = if hurries { watches.patience(HURRIED) } else { watches.patience(UNHURRIED) };
        let (_, watching) = self.watching.get_or_insert_with(|| {
            let from = if self.start_now { NOW } else { read_at.saturating_add(1) };
            let watching = watches.watch(targets.iter().cloned(), from);
            (targets, watching)
        });
        if self.stood {
            watching.signal.looked.store(true, SeqCst);
        }
        tokio::select! {
            () = watching.changed() => {}
            () = sleep(patience) => {}
        }
        self.stood = watching.signal.stands.load(SeqCst);
        if watching.can_wait() {
            tokio::select! {
                () = watching.changed() => {}
                () = sleep(LATER.mul_f64(0.5 + fastrand::f64())) => {}
            }
        }
        watching.woken()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

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
