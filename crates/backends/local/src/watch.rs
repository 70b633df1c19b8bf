//! Being told by the kernel that something happened to the entries of an election.
//!
//! What a waiter is told is a reason to look again, and never more than that: it
//! looks after it has subscribed, and once in a while unasked.

#[cfg(target_os = "linux")]
mod inotify;
#[cfg(not(target_os = "linux"))]
mod none;

use std::{
    io,
    path::PathBuf,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use tokio::sync::Notify;

#[cfg(target_os = "linux")]
pub(crate) use inotify::Watcher;
#[cfg(not(target_os = "linux"))]
pub(crate) use none::Watcher;

use crate::layout::entry_number;

/// Why a waiter was woken.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Woken {
    /// It was not: the time is up.
    Not,
    /// Something happened.
    Change,
    /// Among what happened is a file's closing, whose lock may be let go of a moment later.
    Closing,
}

/// Which events a waiter is woken by.
#[derive(Debug)]
pub(crate) enum Interest {
    /// The coming and going of any entry.
    Any,
    /// The going of these files.
    Going(Vec<String>),
    /// Anything about this file, new content too.
    All(String),
}

/// What an event says of a file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Event {
    Came,
    Went,
    Closed,
    Written,
}

impl Interest {
    fn includes(&self, file: &str, event: Event) -> bool {
        match self {
            Self::Any => event != Event::Written && entry_number(file).is_some(),
            Self::Going(files) => {
                matches!(event, Event::Went | Event::Closed) && files.iter().any(|f| f == file)
            }
            Self::All(one) => one == file,
        }
    }
}

/// The waiter's end of a subscription, as the watcher knows it.
#[derive(Debug)]
struct Listener {
    interest: Mutex<Interest>,
    notify: Notify,
    closing: AtomicBool,
    /// Nothing more will be told: the directory or the watcher is gone.
    stale: AtomicBool,
}

impl Listener {
    fn interest(&self) -> MutexGuard<'_, Interest> {
        self.interest.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn wake(&self, event: Event) {
        if event == Event::Closed {
            self.closing.store(true, Ordering::Release);
        }
        self.notify.notify_one();
    }

    fn forsake(&self) {
        self.stale.store(true, Ordering::Release);
        self.notify.notify_one();
    }
}

/// What a subscription is watching at present.
#[derive(Debug)]
#[expect(dead_code, reason = "a ticket is kept for its drop")]
enum Place {
    /// The directory itself.
    Dir(inner::Ticket),
    /// The parent, for the directory to appear in.
    Parent(inner::Ticket),
    /// Neither exists.
    Missing,
    /// The kernel tells nothing.
    Blind,
}

#[cfg(target_os = "linux")]
use inotify as inner;
#[cfg(not(target_os = "linux"))]
use none as inner;

/// One waiter's wish to be told of what happens in one directory, which may not exist yet.
#[derive(Debug)]
pub(crate) struct Subscription {
    watcher: Watcher,
    dir: PathBuf,
    listener: Arc<Listener>,
    place: Place,
}

impl Subscription {
    /// A subscription to `dir` that is not told of anything before [`renew`](Self::renew).
    pub(crate) fn new(watcher: &Watcher, dir: PathBuf) -> Self {
        let listener = Arc::new(Listener {
            interest: Mutex::new(Interest::Any),
            notify: Notify::new(),
            closing: AtomicBool::new(false),
            stale: AtomicBool::new(false),
        });
        Self { watcher: watcher.clone(), dir, listener, place: Place::Missing }
    }

    /// Sees to it that the directory is watched if it can be: to be called before each look.
    pub(crate) fn renew(&mut self) {
        let stale = self.listener.stale.swap(false, Ordering::AcqRel);
        if matches!(self.place, Place::Dir(_)) && !stale {
            return;
        }
        if stale {
            self.place = Place::Missing;
        }
        if self.watch_dir() {
            return;
        }
        if matches!(self.place, Place::Missing)
            && let (Some(parent), Some(name)) = (self.dir.parent(), self.dir.file_name())
            && let Some(name) = name.to_str()
            && let Ok(ticket) = self.watcher.add(parent, &self.listener, Some(name))
        {
            self.place = Place::Parent(ticket);
            // It may have come before the parent was watched.
            self.watch_dir();
        }
    }

    /// Watches the directory itself; whether there is nothing else left to try.
    fn watch_dir(&mut self) -> bool {
        match self.watcher.add(&self.dir, &self.listener, None) {
            Ok(ticket) => self.place = Place::Dir(ticket),
            Err(error) if error.kind() == io::ErrorKind::NotFound => return false,
            Err(error) => {
                if !matches!(self.place, Place::Blind) {
                    tracing::warn!(%error, dir = %self.dir.display(), "cannot watch the election; polling instead");
                }
                self.place = Place::Blind;
            }
        }
        true
    }

    /// Changes what wakes. Events from before are not lost: they have woken already.
    pub(crate) fn narrow(&self, interest: Interest) {
        *self.listener.interest() = interest;
    }

    /// Whether the kernel tells nothing, so that the waiter has to look often.
    pub(crate) fn is_blind(&self) -> bool {
        matches!(self.place, Place::Blind)
    }

    /// Waits for an event since the last call, at most this long.
    pub(crate) async fn woken(&self, at_most: Duration) -> Woken {
        if tokio::time::timeout(at_most, self.listener.notify.notified()).await.is_err() {
            Woken::Not
        } else if self.listener.closing.swap(false, Ordering::AcqRel) {
            Woken::Closing
        } else {
            Woken::Change
        }
    }
}
