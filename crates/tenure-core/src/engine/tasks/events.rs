//! What sessions and terms tell the elector's task, from any thread.

use tokio::sync::mpsc;

/// The number of a candidate within its elector, counted from 1.
pub(crate) type CandidateNumber = u64;
/// The number of a session within its elector, counted from 1.
pub(crate) type SessionNumber = u64;

/// Something has changed. The task looks at the term or session itself, so that an old event does no harm.
#[derive(Clone, Copy, Debug)]
pub(crate) enum EngineEvent {
    TermEnded(CandidateNumber),
    /// A heartbeat of this session was proven, for which a candidate waits.
    WindowExtended(SessionNumber),
    SessionEnded(SessionNumber),
    /// No task tries to close this session in the store any more.
    SessionClosed(SessionNumber),
}

/// Sends events. When the elector's task is gone, they are dropped.
pub(crate) type EventSender = mpsc::UnboundedSender<EngineEvent>;
