//! What a user can set, checked before anything is asked of a store.

use std::{fmt, sync::Arc, time::Duration};

use crate::{CandidateId, ElectionName, Error, FencingToken, InvalidConfig, candidate::check_value};

/// The settings of an elector.
///
/// ```
/// use std::time::Duration;
/// use tenure_core::Config;
/// let config = Config::new().with_ttl(Duration::from_secs(5)).with_value("10.0.0.7:8080");
/// assert!(config.validate().is_ok());
/// ```
#[derive(Clone, Debug)]
pub struct Config {
    pub(crate) ttl: Duration,
    pub(crate) drift: f64,
    pub(crate) grace_period: Option<Duration>,
    pub(crate) id: CandidateId,
    pub(crate) value: Vec<u8>,
    pub(crate) request_timeout: Duration,
    pub(crate) on_disconnect: OnDisconnect,
    pub(crate) on_overrun: OnOverrun,
    pub(crate) retry: Backoff,
    pub(crate) work_backoff: Backoff,
    pub(crate) shutdown_timeout: Duration,
}

/// The shortest and the longest time between two tries; the waits between grow, with jitter.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Backoff {
    /// The first wait.
    pub min: Duration,
    /// The longest wait.
    pub max: Duration,
}

/// What a leader does when a heartbeat goes unanswered.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub enum OnDisconnect {
    /// Leads on until the deadline: a restart or an election inside the store is ridden out.
    #[default]
    HoldUntilDeadline,
    /// Gives leadership up with the first heartbeat that fails.
    StepDown,
}

/// What happens when work given to `run` has not stopped by the deadline, because
/// it blocks its thread. Decided by a thread of its own, so that a blocked runtime does not hinder it.
#[derive(Clone, Default)]
#[non_exhaustive]
pub enum OnOverrun {
    /// Logs an error. The fencing token is then the only thing that protects the resource.
    #[default]
    Log,
    /// Logs, and calls a function, on a thread for the application's callbacks.
    Hook(Arc<dyn Fn(&Overrun) + Send + Sync>),
    /// Logs when the work is dropped, and aborts the process at the deadline: nothing of it runs on beside the next leader.
    /// A handler that the application has set for SIGABRT is not called.
    Abort,
}

impl fmt::Debug for OnOverrun {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Log => "Log",
            Self::Hook(_) => "Hook(..)",
            Self::Abort => "Abort",
        })
    }
}

/// Work that went on past its deadline.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct Overrun {
    /// Which election.
    pub election: ElectionName,
    /// The token of the leadership that is over.
    pub token: FencingToken,
}

impl Config {
    /// The least TTL that can be asked for.
    pub const MIN_TTL: Duration = Duration::from_secs(1);
    /// The largest TTL that can be asked for.
    pub const MAX_TTL: Duration = Duration::from_secs(24 * 60 * 60);

    /// The waits before campaigning again after failed work, unless others are set.
    pub const DEFAULT_WORK_BACKOFF: Backoff =
        Backoff { min: Duration::from_millis(100), max: Duration::from_secs(30) };

    /// How long a resignation or `close` waits, unless something else is set.
    pub const DEFAULT_SHUTDOWN_TIMEOUT: Duration = Duration::from_secs(5);

    /// The longest time that may be waited for an answer, between two tries, or for a shutdown.
    pub const MAX_WAIT: Duration = Duration::from_secs(60 * 60);

    /// TTL 10 s, drift 10 %, grace period a tenth of the TTL, a unique id, no value.
    pub fn new() -> Self {
        Self {
            ttl: Duration::from_secs(10),
            drift: 0.1,
            grace_period: None,
            id: CandidateId::unique(),
            value: Vec::new(),
            request_timeout: Duration::from_secs(5),
            on_disconnect: OnDisconnect::default(),
            on_overrun: OnOverrun::default(),
            retry: Backoff { min: Duration::from_millis(50), max: Duration::from_secs(2) },
            work_backoff: Self::DEFAULT_WORK_BACKOFF,
            shutdown_timeout: Self::DEFAULT_SHUTDOWN_TIMEOUT,
        }
    }

    /// After how much silence the store lets go of a session: 1 s to 24 h, 10 s by default.
    ///
    /// Short means a quick fail-over after a crash, and leadership lost over a short outage.
    /// A store may grant another TTL; deadlines are computed from what it granted.
    pub fn with_ttl(mut self, ttl: Duration) -> Self {
        self.ttl = ttl;
        self
    }

    /// The bound on the difference between this machine's clock rate and the store's:
    /// a fraction from 0 to 0.5, 0.1 by default (chrony slews by up to 8.3 %).
    pub fn with_drift(mut self, drift: f64) -> Self {
        self.drift = drift;
        self
    }

    /// The time before the deadline that is kept for work to stop: more than 0, at
    /// most a third of the TTL, a tenth of it by default.
    pub fn with_grace_period(mut self, budget: Duration) -> Self {
        self.grace_period = Some(budget);
        self
    }

    /// Who this candidate is; [`CandidateId::unique`] by default.
    pub fn with_id(mut self, id: CandidateId) -> Self {
        self.id = id;
        self
    }

    /// What others can read of this candidate, an address say; at most 64 KiB.
    pub fn with_value(mut self, value: impl Into<Vec<u8>>) -> Self {
        self.value = value.into();
        self
    }

    /// After how long an unanswered request is tried again: 5 s by default. Heartbeats
    /// are bounded by a third of the TTL as well.
    pub fn with_request_timeout(mut self, timeout: Duration) -> Self {
        self.request_timeout = timeout;
        self
    }

    /// What a leader does when a heartbeat goes unanswered.
    pub fn with_on_disconnect(mut self, policy: OnDisconnect) -> Self {
        self.on_disconnect = policy;
        self
    }

    /// What happens when work has not stopped by the deadline.
    pub fn with_on_overrun(mut self, policy: OnOverrun) -> Self {
        self.on_overrun = policy;
        self
    }

    /// The waits between tries to reach the store: 50 ms to 2 s by default.
    pub fn with_retry(mut self, backoff: Backoff) -> Self {
        self.retry = backoff;
        self
    }

    /// The waits before campaigning again after failed work: 100 ms to 30 s by default.
    pub fn with_work_backoff(mut self, backoff: Backoff) -> Self {
        self.work_backoff = backoff;
        self
    }

    /// How long [`resign`](crate::Leadership::resign), [`close`](crate::Elector::close) and the shutdown of
    /// [`run_while_leader`](crate::ElectorExt::run_while_leader) wait at most, for work to stop and for the store to confirm:
    /// more than 0, at most 1 h, 5 s by default.
    ///
    /// What is not done by then goes on in the background; should the process end before it is done, the store lets go of the
    /// session after its TTL.
    pub fn with_shutdown_timeout(mut self, timeout: Duration) -> Self {
        self.shutdown_timeout = timeout;
        self
    }

    /// The TTL to ask for.
    pub fn ttl(&self) -> Duration {
        self.ttl
    }

    /// The time kept for work to stop.
    pub fn grace_period(&self) -> Duration {
        self.grace_period.unwrap_or(self.ttl / 10)
    }

    /// Who this candidate is.
    pub fn id(&self) -> &CandidateId {
        &self.id
    }

    /// Checks every setting, and how they fit each other.
    ///
    /// # Errors
    /// What is wrong, and what is allowed.
    pub fn validate(&self) -> Result<(), Error> {
        if !(Self::MIN_TTL..=Self::MAX_TTL).contains(&self.ttl) {
            return Err(InvalidConfig::Ttl { given: self.ttl, min: Self::MIN_TTL, max: Self::MAX_TTL }.into());
        }
        if !(0.0..=0.5).contains(&self.drift) {
            return Err(InvalidConfig::Drift { given: self.drift }.into());
        }
        check_grace_period(self.grace_period(), self.ttl, self.ttl / 3)?;
        let most = Self::MAX_WAIT;
        for (setting, given) in
            [("request timeout", self.request_timeout), ("shutdown timeout", self.shutdown_timeout)]
        {
            if given.is_zero() || given > most {
                let allowed = "more than 0 and at most 1h";
                return Err(InvalidConfig::Time { setting, given, allowed }.into());
            }
        }
        for (setting, backoff) in [("retry backoff", self.retry), ("backoff after work", self.work_backoff)] {
            if backoff.min.is_zero() || backoff.min > backoff.max {
                let allowed = "more than 0 and at most its own maximum";
                return Err(InvalidConfig::Time { setting, given: backoff.min, allowed }.into());
            }
            if backoff.max > most {
                let allowed = "at most 1h between two tries";
                return Err(InvalidConfig::Time { setting, given: backoff.max, allowed }.into());
            }
        }
        check_value(&self.value)
    }
}

/// Whether `budget` leaves time to lead under a session of `ttl`, which allows at most `most`.
pub(crate) fn check_grace_period(
    budget: Duration,
    ttl: Duration,
    most: Duration,
) -> Result<(), InvalidConfig> {
    if budget.is_zero() || budget > most {
        return Err(InvalidConfig::GracePeriod { given: budget, ttl, most });
    }
    Ok(())
}

impl Default for Config {
    fn default() -> Self {
        Self::new()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn message(config: Config) -> String {
        config.validate().unwrap_err().to_string()
    }

    #[test]
    fn settings_that_cannot_work_say_what_is_allowed() {
        let base = Config::new;
        assert_eq!(
            message(base().with_ttl(Duration::from_millis(10))),
            "ttl 10ms is not allowed: it must be from 1s to 1day"
        );
        assert_eq!(
            message(base().with_grace_period(Duration::from_secs(9))),
            "grace period 9s is not allowed with ttl 10s: it must be more than 0 and at most 3s 333ms"
        );
        assert_eq!(
            message(base().with_drift(0.9)),
            "drift 0.9 is not allowed: it must be a fraction from 0 to 0.5, such as 0.1 for 10 %"
        );
        assert!(message(base().with_drift(f64::NAN)).contains("drift NaN"));
        assert_eq!(
            message(base().with_value(vec![0; 65 * 1024])),
            "a candidate's value of 66560 bytes is too large: at most 65536 bytes (64 KiB) are allowed"
        );
        assert!(base().with_value(vec![0; 64 * 1024]).validate().is_ok());
        assert!(message(base().with_request_timeout(Duration::ZERO)).contains("request timeout"));
        // Case 13: what would overflow a clock is refused.
        for config in [
            base().with_request_timeout(Duration::MAX),
            base().with_shutdown_timeout(Duration::MAX),
            base().with_retry(Backoff { min: Duration::from_secs(1), max: Duration::MAX }),
            base().with_work_backoff(Backoff { min: Duration::from_secs(1), max: Duration::MAX }),
        ] {
            let message = message(config);
            assert!(
                message.contains("is not allowed: it must be") && message.contains("at most 1h"),
                "{message}"
            );
        }
        let backoff = Backoff { min: Duration::from_secs(2), max: Duration::from_secs(1) };
        assert!(message(base().with_retry(backoff)).contains("retry backoff"));
    }
}
