//! What the task of the active terms receives.

use std::sync::{Arc, PoisonError};

use tokio::sync::{Notify, OwnedSemaphorePermit};
use tokio_util::task::task_tracker::TaskTrackerToken;

use super::{registered_entry::EntryId, term::Term};
use crate::{LossReason, sync::Mutex};

/// The permit of the candidate that an elector may have in an election; `None` once it was given back.
pub(crate) type CandidatePermit = Option<OwnedSemaphorePermit>;

/// An event for the task of the active terms.
#[derive(Debug)]
pub(crate) enum Event {
    /// A term has begun.
    Elected(HeldTerm),
    /// The term of this entry has ended, or its guard was dropped.
    Ended(EntryId),
    /// A confirming read did not find this entry.
    EntryMissing(EntryId),
    /// The work of the term of this entry has stopped; the entry is about to be removed.
    WorkStopped(EntryId),
}

/// A term, until its entry has been withdrawn.
///
/// When it is dropped, the term has ended and its entry counts as removed. So a resignation never waits for
/// ever, also when a backend panics.
#[derive(Debug)]
pub(crate) struct HeldTerm {
    pub(crate) term: Arc<Term>,
    /// See [`PendingEntry`](super::pending_entry::PendingEntry).
    pub(crate) uncertain: bool,
    pub(crate) permit: CandidatePermit,
    /// The session is closed only once this is dropped.
    _tracker_token: TaskTrackerToken,
    /// Whether the withdrawal has come to its end.
    pub(crate) finished: bool,
    /// Whether the store has confirmed that the entry is gone.
    pub(crate) confirmed: bool,
}

impl HeldTerm {
    pub(crate) fn new(term: Arc<Term>, uncertain: bool, permit: CandidatePermit) -> Self {
        let _tracker_token = term.session.entry_tracker.token();
        Self { term, uncertain, permit, _tracker_token, finished: false, confirmed: false }
    }
}

impl Drop for HeldTerm {
    fn drop(&mut self) {
        if !self.finished {
            self.term.session.end(LossReason::SessionGivenUp);
            // No task waits for its work any more.
            self.term.request_drop();
        }
        self.term.report_end();
        self.term.set_withdrawn(self.confirmed);
    }
}

/// The queue of events from a session and its terms to the task of the active terms.
#[derive(Debug)]
pub(crate) struct EventQueue {
    /// `None` once the receiver is gone.
    events: Mutex<Option<Vec<Event>>>,
    notify: Notify,
}

impl EventQueue {
    pub(crate) fn new() -> Self {
        Self { events: Mutex::new(Some(Vec::new())), notify: Notify::new() }
    }

    /// Sends an event. When the receiver is gone, drops the event, and with it a held term.
    pub(crate) fn send(&self, event: Event) {
        let mut queue = self.events.lock().unwrap_or_else(PoisonError::into_inner);
        let Some(events) = &mut *queue else {
            drop(queue);
            drop(event);
            return;
        };
        events.push(event);
        drop(queue);
        self.notify.notify_one();
    }

    /// Waits for events, and returns all that have been sent.
    ///
    /// # Cancellation safety
    /// No event is lost when the future is dropped.
    pub(crate) async fn recv_all(&self) -> Vec<Event> {
        loop {
            let received =
                self.events.lock().unwrap_or_else(PoisonError::into_inner).as_mut().map(std::mem::take);
            if let Some(received) = received.filter(|received| !received.is_empty()) {
                return received;
            }
            self.notify.notified().await;
        }
    }

    /// Closes the queue: the receiver is gone.
    pub(crate) fn close(&self) {
        let unreceived = self.events.lock().unwrap_or_else(PoisonError::into_inner).take();
        drop(unreceived);
    }
}
