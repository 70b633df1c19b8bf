//! The results of entering and waiting.

use std::{
    fmt,
    sync::{Arc, Mutex, PoisonError},
};

use super::{Entry, Stamp};
use crate::{Candidate, FencingToken};

/// The answer to [`BackendSession::enter`](super::BackendSession::enter).
#[derive(Clone, Debug, PartialEq)]
#[non_exhaustive]
pub enum Entered {
    /// The candidate leads.
    Leads(Won),
    /// Others are ahead of the candidate, which is in the store's queue.
    Queued {
        /// The entry, created by this call or by an earlier one with the same request. `None` where the store creates an entry
        /// only for a leader; then [`leave`](super::BackendSession::leave) removes the candidate from the queue by the request's
        /// nonce.
        entry: Option<Entry>,
    },
    /// Another candidate leads, this one, and the store keeps nothing of the request. Only where the store has no queue.
    HeldBy(Box<Candidate>),
}

impl Entered {
    /// The entry, if the store has created one.
    pub fn entry(&self) -> Option<&Entry> {
        match self {
            Self::Leads(won) => Some(&won.entry),
            Self::Queued { entry } => entry.as_ref(),
            Self::HeldBy(_) => None,
        }
    }

    /// The fencing token, if the candidate leads.
    pub fn token(&self) -> Option<FencingToken> {
        match self {
            Self::Leads(won) => Some(won.token),
            _ => None,
        }
    }
}

/// An election that was won: the store says that the entry leads. The term begins once the window is open.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Won {
    /// The entry that leads, which belongs to this session and to this request.
    pub entry: Entry,
    /// The fencing token.
    pub token: FencingToken,
    /// When the write that created the entry was first sent. Needed where a session serves
    /// [one election](super::SessionScope::Election): the deadline is counted from it. Otherwise it is ignored.
    pub sent: Option<Stamp>,
}

impl Won {
    /// A win under a session that serves all elections.
    pub const fn new(entry: Entry, token: FencingToken) -> Self {
        Self { entry, token, sent: None }
    }

    /// Sets [`sent`](Self::sent): read before the *first* attempt of the write that created this entry. A later attempt may find
    /// the entry created by an earlier one.
    #[must_use]
    pub fn sent(self, sent: Stamp) -> Self {
        Self { sent: Some(sent), ..self }
    }
}

/// Tells the engine whether a waiting candidate is next in line.
///
/// While all candidates of a session wait, and none is next in line, the engine calls
/// [`keep_alive`](super::BackendSession::keep_alive) instead of [`heartbeat`](super::BackendSession::heartbeat). A candidate counts
/// as next in line until [`set_next(false)`](Self::set_next); a backend need not call it.
#[derive(Clone)]
pub struct QueuePosition(Arc<Inner>);

struct Inner {
    state: Mutex<State>,
    on_change: Box<dyn Fn(bool) + Send + Sync>,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum State {
    Next,
    NotNext,
    /// The candidate no longer waits.
    Retired,
}

impl QueuePosition {
    /// A position whose changes are reported to `on_change`: true when the candidate is next in line.
    pub fn new(on_change: impl Fn(bool) + Send + Sync + 'static) -> Self {
        Self(Arc::new(Inner { state: Mutex::new(State::Next), on_change: Box::new(on_change) }))
    }

    /// Says whether the candidate is next in line: only the leader is ahead of it. Has no effect once
    /// [`wait_turn`](super::BackendSession::wait_turn) has ended.
    pub fn set_next(&self, is_next: bool) {
        self.0.change(if is_next { State::Next } else { State::NotNext });
    }

    /// The candidate no longer waits: it counts as next in line from now on.
    pub(crate) fn retire(&self) {
        self.0.change(State::Retired);
    }
}

impl Inner {
    fn change(&self, new: State) {
        // Held while the change is reported: reports are in the order of the changes.
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        let old = *state;
        if old == State::Retired {
            return;
        }
        *state = new;
        match (old, new) {
            (State::Next, State::NotNext) => (self.on_change)(false),
            (State::NotNext, State::Next | State::Retired) => (self.on_change)(true),
            _ => {}
        }
    }
}

impl fmt::Debug for QueuePosition {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("QueuePosition").finish_non_exhaustive()
    }
}
