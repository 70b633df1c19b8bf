//! The outcome of a shutdown that is bounded in time.

use std::{sync::Arc, time::Duration};

use crate::engine::{rules::expiry::UnclosedSessions, tasks::term::Term};

/// What a shutdown has left in the store: the outcome of [`Leadership::resign_within`](crate::Leadership::resign_within) and
/// [`Elector::close_within`](crate::Elector::close_within).
///
/// A process that ends after an unconfirmed shutdown leaves its entry behind, and another candidate leads only once the store
/// has ended the session. [`expires_in`](Self::expires_in) says how long that can take:
///
/// ```
/// # #[tokio::main(flavor = "current_thread")]
/// # async fn main() -> Result<(), tenure_core::Error> {
/// use std::{sync::Arc, time::Duration};
/// use tenure_core::{Config, Elector, StoreElector, memory::MemoryStore};
///
/// let elector = StoreElector::new(Arc::new(MemoryStore::new().backend()), Config::new())?;
/// let leadership = elector.campaign("billing").await?;
/// drop(leadership);
/// let shutdown = elector.close_within(Duration::from_secs(3)).await;
/// if !shutdown.confirmed {
///     eprintln!("another candidate leads in at most {:?}", shutdown.expires_in);
/// }
/// # assert!(shutdown.confirmed && shutdown.expires_in.is_zero());
/// # Ok(()) }
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[must_use = "an unconfirmed shutdown leaves an entry in the store, which keeps others from leading for up to `expires_in`"]
#[non_exhaustive]
pub struct Shutdown {
    /// Whether the store has confirmed that no entry is left.
    pub confirmed: bool,
    /// The longest time until the store ends what is left by itself, if this process sends no heartbeat from now on. Zero if
    /// `confirmed`; [`Duration::MAX`] if it is not known.
    ///
    /// - After [`close_within`](crate::Elector::close_within) no heartbeat is sent any more, so that the time holds whether or
    ///   not the process goes on. It is counted from the last heartbeat that was sent, answered or not: from its answer, or
    ///   from when it was given up.
    /// - After [`resign_within`](crate::Leadership::resign_within) the session may still be in use by other elections, and its
    ///   heartbeats continue. Then it is the time that the store takes if the process ends now; as long as it does not, the
    ///   engine goes on removing the entry. On ZooKeeper every request extends a session, so that the same holds after
    ///   `close_within`, which goes on in the background.
    /// - It is the store's TTL, with what the store adds to it by checking from time to time (a second; on ZooKeeper one and a
    ///   half ticks), extended by the [drift bound](crate::Config::with_drift): divided by `1 − drift`.
    /// - On the local store it is zero: the kernel releases the lock when this process ends, and not before. A process that
    ///   has a duplicate of the lock file keeps it for longer.
    ///
    /// It can be zero without a confirmation: the session has expired by this process's clock, and the store has not said so.
    /// What an outage of the store has left unconfirmed stays so for as long as the elector lives.
    ///
    /// Two things can make it longer. A store that is down counts the whole TTL again once it is back, and so do etcd and
    /// ZooKeeper when they elect a leader among their servers. And a heartbeat that the network delivers after it was given up
    /// still extends the session.
    pub expires_in: Duration,
}

impl Shutdown {
    /// The store has confirmed that nothing is left.
    pub const CONFIRMED: Self = Self { confirmed: true, expires_in: Duration::ZERO };
    /// Nothing is known about what is left.
    pub const UNKNOWN: Self = Self { confirmed: false, expires_in: Duration::MAX };

    /// The store has not confirmed that nothing is left. It ends what is left within `expires_in`.
    pub const fn unconfirmed(expires_in: Duration) -> Self {
        Self { confirmed: false, expires_in }
    }

    /// The outcome of two shutdowns together.
    pub fn and(self, other: Self) -> Self {
        Self {
            confirmed: self.confirmed && other.confirmed,
            expires_in: self.expires_in.max(other.expires_in),
        }
    }

    /// `expires_in` for the log, rounded up to a tenth of a second.
    pub(crate) fn rounded_expires_in(&self) -> humantime::FormattedDuration {
        let tenths = self.expires_in.as_millis().div_ceil(100);
        humantime::format_duration(Duration::from_millis(u64::try_from(tenths * 100).unwrap_or(u64::MAX)))
    }

    /// What is left of a leadership and of its parents.
    pub(crate) fn of_term(term: &Arc<Term>) -> Self {
        let left = term.with_parents().filter(|term| !term.is_withdrawal_confirmed());
        left.map(|term| Self::unconfirmed(term.session.expiry.expires_in())).fold(Self::CONFIRMED, Self::and)
    }

    /// What is left of the sessions of an elector.
    pub(crate) fn of_sessions(sessions: &UnclosedSessions) -> Self {
        sessions.unconfirmed().into_iter().map(Self::unconfirmed).fold(Self::CONFIRMED, Self::and)
    }
}
