//! The state of a leadership, as a value.

use std::time::Duration;

use crate::{BootInstant, LossReason};

/// The state of a leadership at one instant; see [`LeadershipHandle::state`](crate::LeadershipHandle::state).
///
/// ```
/// # #[tokio::main(flavor = "current_thread")]
/// # async fn main() -> Result<(), tenure_core::Error> {
/// use std::sync::Arc;
/// use tenure_core::{Config, Elector, LeadershipState, LossReason, StoreElector, memory::MemoryStore};
///
/// let elector = StoreElector::new(Arc::new(MemoryStore::new().backend()), Config::new())?;
/// let leadership = elector.campaign("billing").await?;
/// let handle = leadership.handle();
/// assert!(matches!(handle.state(), LeadershipState::Active { .. }));
/// leadership.resign().await?;
/// assert!(matches!(
///     handle.state(),
///     LeadershipState::Released { reason: LossReason::Resigned, confirmed: true, .. }
/// ));
/// # Ok(()) }
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum LeadershipState {
    /// Leadership may be assumed.
    #[non_exhaustive]
    Active {
        /// The [deadline](crate::LeadershipHandle::deadline).
        deadline: BootInstant,
        /// The time until work must stop; see [`valid_for`](crate::LeadershipHandle::valid_for).
        valid_for: Duration,
    },
    /// Leadership may no longer be assumed. Work that is left is stopping, and the entry is still in the store, so that no other
    /// candidate leads. If the store itself has ended the leadership, the entry is gone, and another candidate may lead.
    #[non_exhaustive]
    Stopping {
        /// The reason.
        reason: LossReason,
        /// The instant by which all work has stopped.
        deadline: BootInstant,
    },
    /// All work has stopped, and the engine no longer handles the entry. Also in a child that was forked without `exec`, which has
    /// no engine; there `confirmed` is false.
    #[non_exhaustive]
    Released {
        /// The reason.
        reason: LossReason,
        /// Whether the store has confirmed that the entry is gone. Otherwise the entry expires with its session.
        confirmed: bool,
    },
}
