//! All watches of one backend on one stream.
//!
//! A watch here carries no news but one, only the word "look again": whoever waits reads
//! the store, watches what the answer rests on from the answer's revision + 1, and
//! reads again when told to. So a compaction, a lost stream, a member that is frozen
//! or cut off are all the same case. One thing is concluded from a watch: whose turn it is ([`crate::transport::watch::target`]).
//!
//! The stream itself is kept in [`crate::transport::watch::stream`]; where thousands are waited for one watch serves them all ([`crate::transport::watch::prefix_watch`]).

use std::{
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicI64, AtomicUsize, Ordering::Relaxed},
    },
    time::Duration,
};

use tokio::{sync::mpsc, task::JoinHandle, time::sleep};

use crate::{
    transport::members::Members,
    transport::watch::stream,
    transport::watch::subscriber::{Bell, Hearer, Signal},
    transport::watch::target::Target,
};

/// The revision that a watch starts from when it starts whenever it comes to stand.
pub(crate) const NOW: i64 = 0;

/// A client's own watch ids start here; etcd's start at zero and -1 means none.
pub(crate) const FIRST_ID: i64 = 1;

/// The least time after which whoever is second in line reads again although nothing was heard, and others do.
const HURRIED: Duration = Duration::from_secs(5);
const UNHURRIED: Duration = Duration::from_secs(30);

/// How long to leave the store to those who are in a hurry.
const LATER: Duration = Duration::from_millis(20);

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
        self.signal.said().await;
    }

    fn woken(&self) -> Woken {
        if self.signal.is_turn() { Woken::Turn } else { Woken::Look }
    }

    /// Whether the watch is over, so that another is needed.
    pub(crate) fn is_spent(&self) -> bool {
        self.signal.is_over()
    }

    /// Whether the watch came to stand after the revision it was to start from.
    pub(crate) fn was_late(&self) -> bool {
        self.signal.was_late()
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
    /// [`Heard::Turn`](crate::transport::watch::target::Heard::Turn).
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
            watching.signal.looked();
        }
        tokio::select! {
            () = watching.changed() => {}
            () = sleep(patience) => {}
        }
        self.stood = watching.signal.is_standing();
        if watching.signal.can_wait() {
            tokio::select! {
                () = watching.changed() => {}
                () = sleep(LATER.mul_f64(0.5 + fastrand::f64())) => {}
            }
        }
        watching.woken()
    }
}
