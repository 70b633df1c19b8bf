//! Who hears of a watch, and what is told to them.

use std::sync::{
    Arc,
    atomic::{
        AtomicBool,
        Ordering::{Relaxed, SeqCst},
    },
};

use tokio::sync::{Notify, mpsc};

#[cfg(doc)]
use crate::transport::watch::watcher::NOW;

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

    /// Returns once anything has been said since it last did.
    ///
    /// # Cancellation safety
    /// Nothing is lost when the future is dropped.
    pub(crate) async fn said(&self) {
        self.notify.notified().await;
    }

    pub(crate) fn is_over(&self) -> bool {
        self.spent.load(Relaxed)
    }

    pub(crate) fn is_turn(&self) -> bool {
        self.turn.load(Relaxed)
    }

    pub(crate) fn was_late(&self) -> bool {
        self.late.load(Relaxed)
    }

    /// Whether there is nothing to look at but what is in no hurry.
    pub(crate) fn can_wait(&self) -> bool {
        self.later.load(Relaxed) && !self.is_over()
    }

    pub(crate) fn is_standing(&self) -> bool {
        self.stands.load(SeqCst)
    }

    /// A look has followed the standing of a watch that was to start [`NOW`].
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
