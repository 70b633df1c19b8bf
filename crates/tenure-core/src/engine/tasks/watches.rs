//! The watches on the entries of the terms of one session. They share one watcher, so that a term costs no task.

use std::{
    collections::BTreeMap,
    sync::Arc,
    task::{Context, Poll},
    time::Duration,
};

use tracing::{Span, info_span};

use super::{
    events::CandidateNumber,
    session::{RegisteredEntry, Session},
};
use crate::{
    BootInstant,
    engine::runtime::callbacks::catch_panic,
    failpoints::{SafetyRule, is_disabled},
    spi::{BackendError, EntryEvent, EntryWatcher},
};

/// The entries of this many new terms are watched at once. When more terms begin in a burst, their campaigns
/// have priority and the watches are delayed.
const EAGER_WATCHES: usize = 16;
/// The delayed watches of a burst begin once no term has begun for this long.
const WATCH_DEBOUNCE: Duration = Duration::from_millis(50);
/// The longest delay of a watch, however long the burst lasts.
const MAX_WATCH_DELAY: Duration = Duration::from_millis(500);

/// The watches on the entries of the terms of one session, by the numbers of the candidates.
pub(super) struct Watches {
    session: Arc<Session>,
    span: Span,
    watcher: Watcher,
    /// The entries that are not watched yet.
    unwatched: BTreeMap<CandidateNumber, Arc<RegisteredEntry>>,
    /// When the first of `unwatched` was added.
    unwatched_since: BootInstant,
    /// The number of terms that have begun in a burst.
    burst_len: usize,
    /// When the latest term began.
    last_begun: BootInstant,
}

enum Watcher {
    /// No term has begun yet.
    NotStarted,
    Running(Box<dyn EntryWatcher>),
    /// It has failed for good, and the session has ended for it.
    Failed,
}

impl Watches {
    pub(super) fn new(session: &Arc<Session>) -> Self {
        Self {
            session: Arc::clone(session),
            span: info_span!("session", session = session.backend_session.id()),
            watcher: Watcher::NotStarted,
            unwatched: BTreeMap::new(),
            unwatched_since: BootInstant::NEVER,
            burst_len: 0,
            last_begun: BootInstant::NEVER,
        }
    }

    /// Watches the entry of a term that begins: at once, or in a burst a little later.
    pub(super) fn begin(&mut self, entry: Arc<RegisteredEntry>) {
        let now = self.session.shared.clock.now();
        self.last_begun = now;
        self.burst_len += 1;
        if self.unwatched.is_empty() {
            self.unwatched_since = now;
        }
        self.unwatched.insert(entry.candidate, entry);
        if self.burst_len <= EAGER_WATCHES || now.since(self.unwatched_since) >= MAX_WATCH_DELAY {
            self.watch_unwatched();
        }
    }

    /// The time left until a burst of new terms is over; `None` when there is no burst.
    pub(super) fn burst_left(&self) -> Option<Duration> {
        (self.burst_len > 0)
            .then(|| (self.last_begun + WATCH_DEBOUNCE).since(self.session.shared.clock.now()))
    }

    /// Ends a burst, and watches the entries that have waited for that.
    pub(super) fn end_burst(&mut self) {
        self.burst_len = 0;
        self.watch_unwatched();
    }

    fn watch_unwatched(&mut self) {
        let unwatched = std::mem::take(&mut self.unwatched);
        if is_disabled(SafetyRule::WatchOwnEntry) || unwatched.is_empty() {
            return;
        }
        if matches!(self.watcher, Watcher::NotStarted) {
            self.watcher = Watcher::Running(self.session.backend_session.entry_watcher());
        }
        if let Watcher::Running(watcher) = &mut self.watcher {
            unwatched.iter().for_each(|(number, entry)| watcher.add(*number, &entry.entry));
        }
    }

    /// Ends the watch on an entry.
    pub(super) fn remove(&mut self, number: CandidateNumber) {
        self.unwatched.remove(&number);
        if let Watcher::Running(watcher) = &mut self.watcher {
            watcher.remove(number);
        }
    }

    /// Polls for the next event of a watched entry. Pending for ever while no entry is watched.
    pub(super) fn poll_next(
        &mut self,
        context: &mut Context<'_>,
    ) -> Poll<Result<(CandidateNumber, EntryEvent), BackendError>> {
        let Watcher::Running(watcher) = &mut self.watcher else { return Poll::Pending };
        self.span.in_scope(|| watcher.poll_next(context))
    }

    pub(super) fn has_failed(&self) -> bool {
        matches!(self.watcher, Watcher::Failed)
    }

    /// Gives all watches up: without them a deleted entry would go unnoticed, so the session has to end.
    pub(super) fn fail(&mut self) {
        let watcher = std::mem::replace(&mut self.watcher, Watcher::Failed);
        catch_panic(|| drop(watcher));
    }
}
