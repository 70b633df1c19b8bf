//! The terms that are active under one session. One task serves all of them, so that a term costs only the
//! memory for its state: their entries are watched together. A term that has ended gets a task of its own,
//! which withdraws its entry.

use std::{collections::BTreeMap, panic::AssertUnwindSafe, sync::Arc, time::Duration};

use futures::FutureExt;
use tracing::{Instrument as _, debug, error, info, info_span};

use super::{
    events::{Event, HeldTerm},
    pending_entry::PendingEntry,
    registered_entry::EntryId,
    session::Session,
    term::Term,
};
use crate::{
    BootInstant, LossReason,
    failpoints::{SafetyRule, is_disabled},
    spi::{BackendError, BackendErrorKind, EntryEvent, EntryWatcher},
    sync::sleep,
};

/// The entries of this many new terms are watched at once. When more terms begin in a burst, their campaigns
/// have priority and the watches are delayed.
const EAGER_WATCHES: usize = 16;
/// The delayed watches of a burst begin once no term has begun for this long.
const WATCH_DEBOUNCE: Duration = Duration::from_millis(50);
/// The longest delay of a watch, however long the burst lasts.
const MAX_WATCH_DELAY: Duration = Duration::from_millis(500);

/// The task of the active terms. Created before its task is spawned: if the task is dropped before its first poll,
/// this closes the queue of events, and no sender waits in vain.
pub(crate) struct ActiveTermsTask(Arc<Session>);

impl Drop for ActiveTermsTask {
    fn drop(&mut self) {
        self.0.events.close();
    }
}

impl ActiveTermsTask {
    pub(crate) fn new(session: &Arc<Session>) -> Self {
        Self(Arc::clone(session))
    }

    /// Runs until the session has been closed.
    pub(crate) async fn run(self) {
        run(&self.0).await;
    }
}

async fn run(session: &Arc<Session>) {
    let mut terms = ActiveTerms::new(session);
    let mut session_ended = false;
    loop {
        let debounce = terms.debounce_left();
        tokio::select! {
            biased;
            events = session.events.recv_all() => events.into_iter().for_each(|event| terms.handle(event)),
            () = session.ended_token.cancelled(), if !session_ended => {
                session_ended = true;
                terms.end_all();
            }
            () = session.closed.wait() => return,
            () = sleep(debounce.unwrap_or_default()), if debounce.is_some() => {
                terms.burst_len = 0;
                terms.watch_unwatched();
            }
            event = terms.next_entry_event() => match event {
                Ok((entry_id, event)) => terms.handle_entry_event(entry_id, event),
                Err(error) => {
                    debug!(session = session.backend_session.id(), %error, "the watch on the entries has failed; the session ends");
                    terms.fail_watcher(match error.kind() {
                        BackendErrorKind::SessionGone => LossReason::SessionExpired,
                        _ => LossReason::SessionGivenUp,
                    });
                }
            },
        }
    }
}

/// The active terms of one session, by the ids of their entries.
struct ActiveTerms<'a> {
    session: &'a Arc<Session>,
    held: BTreeMap<EntryId, HeldTerm>,
    /// Terms that have ended and whose work is cancelled: it may go on for a while, and is dropped
    /// at once if its entry is deleted.
    stopping: BTreeMap<EntryId, Arc<Term>>,
    watcher: WatcherState,
    /// The entries that are not watched yet.
    unwatched: Vec<EntryId>,
    /// When the first of `unwatched` was added.
    unwatched_since: BootInstant,
    /// The number of terms that have begun in a burst.
    burst_len: usize,
    /// When the latest term began.
    last_begun: BootInstant,
}

/// The watch on all entries of the active terms.
enum WatcherState {
    /// No term has begun yet.
    NotStarted,
    Running(Box<dyn EntryWatcher>),
    /// The watch has failed for good, and the session has ended for it.
    Failed,
}

impl<'a> ActiveTerms<'a> {
    fn new(session: &'a Arc<Session>) -> Self {
        Self {
            session,
            held: BTreeMap::new(),
            stopping: BTreeMap::new(),
            watcher: WatcherState::NotStarted,
            unwatched: Vec::new(),
            unwatched_since: BootInstant::NEVER,
            burst_len: 0,
            last_begun: BootInstant::NEVER,
        }
    }

    /// Handles an event. A log subscriber or a backend may panic: no term is forgotten for that.
    fn handle(&mut self, event: Event) {
        self.catch_panic(|terms| match event {
            Event::Elected(held) => terms.begin_term(held),
            Event::Ended(entry_id) => terms.end_term(entry_id),
            Event::EntryMissing(entry_id) => terms.handle_entry_event(entry_id, EntryEvent::Deleted),
            Event::WorkStopped(entry_id) => {
                terms.stopping.remove(&entry_id);
                terms.unwatch(entry_id);
            }
        });
    }

    fn begin_term(&mut self, held: HeldTerm) {
        let term = Arc::clone(&held.term);
        let entry_id = term.entry_id();
        self.held.insert(entry_id, held);
        let now = self.session.shared.clock.now();
        self.last_begun = now;
        self.burst_len += 1;
        if self.unwatched.is_empty() {
            self.unwatched_since = now;
        }
        self.unwatched.push(entry_id);
        if term.registered_entry().missing.is_set() {
            term.end(LossReason::EntryGone);
        }
        // The guard may have been dropped before this event was received.
        if term.reason().is_some() {
            self.end_term(entry_id);
        }
        if self.burst_len <= EAGER_WATCHES || now.since(self.unwatched_since) >= MAX_WATCH_DELAY {
            self.watch_unwatched();
        }
    }

    /// The time left until a burst of new terms is over; `None` when there is no burst.
    fn debounce_left(&self) -> Option<Duration> {
        (self.burst_len > 0)
            .then(|| (self.last_begun + WATCH_DEBOUNCE).since(self.session.shared.clock.now()))
    }

    /// Begins to watch the entries that are not watched yet.
    fn watch_unwatched(&mut self) {
        let unwatched = std::mem::take(&mut self.unwatched);
        if is_disabled(SafetyRule::WatchOwnEntry) {
            return;
        }
        self.catch_panic(|terms| {
            for entry_id in unwatched {
                let held = terms.held.get(&entry_id).map(|held| &held.term);
                let Some(term) = held.or_else(|| terms.stopping.get(&entry_id)).cloned() else {
                    continue;
                };
                if let Some(watcher) = terms.watcher() {
                    watcher.add(entry_id, term.entry());
                }
            }
        });
    }

    /// The watcher, started if there was none; `None` once it has failed.
    fn watcher(&mut self) -> Option<&mut Box<dyn EntryWatcher>> {
        if matches!(self.watcher, WatcherState::NotStarted) {
            self.watcher = WatcherState::Running(self.session.backend_session.entry_watcher());
        }
        match &mut self.watcher {
            WatcherState::Running(watcher) => Some(watcher),
            WatcherState::NotStarted | WatcherState::Failed => None,
        }
    }

    /// The term of this entry has ended: starts the task that withdraws the entry.
    fn end_term(&mut self, entry_id: EntryId) {
        let Some(held) = self.held.remove(&entry_id) else { return };
        let wait_for_work = !held.term.work.is_stopped() && !is_disabled(SafetyRule::StopWorkBeforeLeaving);
        if wait_for_work {
            self.stopping.insert(entry_id, Arc::clone(&held.term));
            if matches!(self.watcher, WatcherState::Failed) {
                held.term.request_drop();
            }
        } else {
            // The watch may have a request in flight and hold what the withdrawal waits for.
            self.unwatch(entry_id);
        }
        let term = &held.term;
        let span = info_span!("candidate", election = %term.election(), candidate = %term.candidate());
        self.session.shared.runtime.spawn(withdraw(held, wait_for_work).instrument(span));
    }

    fn end_all(&mut self) {
        while let Some(entry_id) = self.held.keys().next().copied() {
            self.catch_panic(|terms| terms.end_term(entry_id));
        }
    }

    /// Handles an event of an entry in the store.
    fn handle_entry_event(&mut self, entry_id: EntryId, event: EntryEvent) {
        self.catch_panic(|terms| match (terms.held.get(&entry_id), event) {
            // `Term::end` sends `Event::Ended`, which goes on with the withdrawal.
            (Some(held), EntryEvent::Deleted) => held.term.end(LossReason::EntryGone),
            (Some(held), EntryEvent::ResignRequested) => {
                let entry = held.term.entry();
                info!(election = %entry.election, entry = %entry.key, "resignation requested");
                held.term.end(LossReason::ResignRequested);
            }
            (None, EntryEvent::Deleted) => {
                if let Some(term) = terms.stopping.get(&entry_id) {
                    term.request_drop();
                }
            }
            (None, EntryEvent::ResignRequested) => {}
        });
    }

    fn unwatch(&mut self, entry_id: EntryId) {
        self.catch_panic(|terms| {
            if let WatcherState::Running(watcher) = &mut terms.watcher {
                watcher.remove(entry_id);
            }
        });
    }

    /// The next event of a watched entry. Never returns while no entry is watched.
    async fn next_entry_event(&mut self) -> Result<(EntryId, EntryEvent), BackendError> {
        let WatcherState::Running(watcher) = &mut self.watcher else { return std::future::pending().await };
        match AssertUnwindSafe(async { watcher.next().await }).catch_unwind().await {
            Ok(event) => event,
            Err(_) => {
                self.handle_panic();
                std::future::pending().await
            }
        }
    }

    /// Calls `call`, and ends the session if it panics.
    fn catch_panic(&mut self, call: impl FnOnce(&mut Self)) {
        if std::panic::catch_unwind(AssertUnwindSafe(|| call(self))).is_err() {
            self.handle_panic();
        }
    }

    fn handle_panic(&mut self) {
        // The log subscriber may be what has panicked.
        let _ = std::panic::catch_unwind(AssertUnwindSafe(|| {
            error!(
                session = self.session.backend_session.id(),
                "the task of the leaderships has panicked; their session ends"
            );
        }));
        self.fail_watcher(LossReason::SessionGivenUp);
    }

    /// Without a watch a deleted entry would go unnoticed: ends the session, and drops work that was only
    /// cancelled.
    fn fail_watcher(&mut self, reason: LossReason) {
        let watcher = std::mem::replace(&mut self.watcher, WatcherState::Failed);
        let _ = std::panic::catch_unwind(AssertUnwindSafe(|| drop(watcher)));
        let _ = std::panic::catch_unwind(AssertUnwindSafe(|| self.session.end(reason)));
        for term in self.stopping.values() {
            term.request_drop();
        }
    }
}

/// Withdraws the entry of a term that has ended, once its work has stopped.
async fn withdraw(mut held: HeldTerm, wait_for_work: bool) {
    let term = Arc::clone(&held.term);
    term.report_end();
    if wait_for_work {
        Box::pin(term.wait_work_stopped()).await;
        term.session.events.send(Event::WorkStopped(term.entry_id()));
    }
    let mut entry = PendingEntry::of_term(&term, held.uncertain);
    held.confirmed = Box::pin(entry.withdraw(&term.session)).await;
    // Before `held` is dropped, which wakes the caller of `resign`: that caller may campaign again at once.
    held.permit = None;
    held.finished = true;
}
