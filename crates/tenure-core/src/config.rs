//! The settings of an elector, checked before any request is sent to a store.

use std::{fmt, path::PathBuf, sync::Arc, time::Duration};

use crate::{
    CandidateId, ElectionName, Engine, Error, FencingToken, InvalidConfig, MAX_VALUE_BYTES, candidate,
};

/// The settings of an elector.
///
/// ```
/// use std::time::Duration;
/// use tenure_core::Config;
/// let config = Config::new().with_ttl(Duration::from_secs(5)).with_value("10.0.0.7:8080");
/// assert!(config.validate().is_ok());
/// ```
#[derive(Clone, Debug)]
#[must_use = "settings have no effect until an elector is made with them"]
pub struct Config {
    pub(crate) ttl: Duration,
    pub(crate) drift: f64,
    pub(crate) grace_period: Option<Duration>,
    pub(crate) id: CandidateId,
    is_id_set: bool,
    pub(crate) value: Vec<u8>,
    pub(crate) request_timeout: Duration,
    pub(crate) on_disconnect: OnDisconnect,
    pub(crate) on_clock_jump: OnClockJump,
    pub(crate) on_overrun: OnOverrun,
    pub(crate) retry: Backoff,
    pub(crate) work_backoff: Backoff,
    pub(crate) shutdown_timeout: Duration,
    pub(crate) engine: Option<Engine>,
    pub(crate) resume_file: Option<PathBuf>,
}

/// The shortest and the longest wait between two attempts. The waits grow exponentially, with jitter.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Backoff {
    /// The first wait.
    pub min: Duration,
    /// The longest wait.
    pub max: Duration,
}

/// What a leader does when a heartbeat fails: an error, or no answer in time.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub enum OnDisconnect {
    /// Keeps leadership until the deadline. A restart or a leader election inside the store costs no leadership.
    #[default]
    HoldUntilDeadline,
    /// Gives up leadership at the first failure.
    StepDown,
}

/// What a leader does when the time of day jumps ahead of the machine's clock by more than `TTL · drift / 2` (0.5 s with the
/// default settings) and 100 ms.
///
/// Either somebody has set the time of day (an NTP step), which is harmless, or this is a virtual machine that was paused: all
/// its clocks stood still, and only the time of day was corrected afterwards. Then the deadline cannot be relied upon, because
/// the session may have expired in the store. The two cannot be told apart. A jump back has no effect.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub enum OnClockJump {
    /// Gives up leadership at once: another candidate may lead already.
    #[default]
    Lose,
    /// Gives up leadership at once, but gives the work until the deadline to stop. The entry stays in the store until the work has
    /// stopped and the guard is dropped, at most until the deadline.
    ///
    /// For work that cannot be dropped at once, such as that of other processes. After a step of the time of day, no other
    /// candidate leads before the work has stopped. After a pause of the virtual machine, another one may lead meanwhile.
    ///
    /// The session of the leadership is closed once all work under it has stopped. Until then the entries of its waiting candidates
    /// stay as well, although they have entered again under another session; an election whose queue such an entry heads has no
    /// leader for so long.
    StopByDeadline,
    /// Logs a warning, once per jump, and goes on.
    ///
    /// After a pause of the virtual machine that was longer than the rest of the deadline, two candidates lead until the
    /// next heartbeat is answered, or until the deadline. Only the [fencing token](crate::LeadershipHandle::fencing_token)
    /// protects the resource then. For machines that are never paused and whose time of day is stepped.
    Log,
}

/// What happens when work given to `run` has not stopped by the deadline because it blocks its thread.
///
/// A dedicated thread enforces it, so that a blocked runtime does not delay it.
#[derive(Clone, Default)]
#[non_exhaustive]
pub enum OnOverrun {
    /// Logs an error. Only the fencing token protects the resource then.
    #[default]
    Log,
    /// Logs an error, and calls a function on a thread for callbacks.
    Hook(Arc<dyn Fn(&Overrun) + Send + Sync>),
    /// Logs an error when the work is dropped, and aborts the process at the deadline, so that no part of it runs beside the
    /// next leader. A SIGABRT handler of the application is not called.
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

/// Work that has not stopped by its deadline.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct Overrun {
    /// The election.
    pub election: ElectionName,
    /// The fencing token of the leadership that is over.
    pub token: FencingToken,
}

impl Config {
    /// The smallest TTL that can be configured.
    pub const MIN_TTL: Duration = Duration::from_secs(1);
    /// The largest TTL that can be configured.
    pub const MAX_TTL: Duration = Duration::from_secs(24 * 60 * 60);

    /// The default waits before campaigning again after failed work.
    pub const DEFAULT_WORK_BACKOFF: Backoff =
        Backoff { min: Duration::from_millis(100), max: Duration::from_secs(30) };

    /// The default of the longest time that a resignation or `close` waits.
    pub const DEFAULT_SHUTDOWN_TIMEOUT: Duration = Duration::from_secs(5);

    /// The largest value of the request timeout, of the waits between attempts, and of the shutdown timeout.
    pub const MAX_WAIT: Duration = Duration::from_secs(60 * 60);

    /// The default settings: TTL 10 s, drift bound 10 %, grace period a tenth of the TTL, a unique id, no value.
    pub fn new() -> Self {
        Self {
            ttl: Duration::from_secs(10),
            drift: 0.1,
            grace_period: None,
            id: CandidateId::unique(),
            is_id_set: false,
            value: Vec::new(),
            request_timeout: Duration::from_secs(5),
            on_disconnect: OnDisconnect::default(),
            on_clock_jump: OnClockJump::default(),
            on_overrun: OnOverrun::default(),
            retry: Backoff { min: Duration::from_millis(50), max: Duration::from_secs(2) },
            work_backoff: Self::DEFAULT_WORK_BACKOFF,
            shutdown_timeout: Self::DEFAULT_SHUTDOWN_TIMEOUT,
            engine: None,
            resume_file: None,
        }
    }

    /// Sets the TTL: the store expires a session after this much silence. 1 s to 24 h, 10 s by default.
    ///
    /// A short TTL means a quick takeover after a crash, and leadership lost in a short outage. The store may grant
    /// another TTL; deadlines are computed from the granted one.
    pub fn with_ttl(mut self, ttl: Duration) -> Self {
        self.ttl = ttl;
        self
    }

    /// Sets the drift bound: the largest assumed difference between the clock rates of this machine and of the store. A
    /// fraction from 0 to 0.5, 0.1 by default (chrony slews by up to 8.3 %).
    pub fn with_drift(mut self, drift: f64) -> Self {
        self.drift = drift;
        self
    }

    /// Sets the grace period: the time before the deadline in which work must stop. More than 0, at most a third of the TTL, a
    /// tenth of the TTL by default.
    pub fn with_grace_period(mut self, grace_period: Duration) -> Self {
        self.grace_period = Some(grace_period);
        self
    }

    /// Sets the id of the elector's candidates. [`CandidateId::unique`] by default.
    pub fn with_id(mut self, id: CandidateId) -> Self {
        self.id = id;
        self.is_id_set = true;
        self
    }

    /// Sets the id unless [`with_id`](Self::with_id) has set one: for a better default than [`CandidateId::unique`].
    pub fn with_default_id(mut self, id: CandidateId) -> Self {
        if !self.is_id_set {
            self.id = id;
        }
        self
    }

    /// Sets the value that others can read, for example an address. At most 64 KiB, empty by default.
    pub fn with_value(mut self, value: impl Into<Vec<u8>>) -> Self {
        self.value = value.into();
        self
    }

    /// Sets the time after which an unanswered request is retried. 5 s by default. A heartbeat may consist of two requests and take
    /// twice as long, but at most a third of the TTL.
    pub fn with_request_timeout(mut self, timeout: Duration) -> Self {
        self.request_timeout = timeout;
        self
    }

    /// Sets what a leader does when a heartbeat fails.
    pub fn with_on_disconnect(mut self, policy: OnDisconnect) -> Self {
        self.on_disconnect = policy;
        self
    }

    /// Sets what a leader does when the time of day jumps ahead of the machine's clock.
    pub fn with_on_clock_jump(mut self, policy: OnClockJump) -> Self {
        self.on_clock_jump = policy;
        self
    }

    /// Sets what happens when work has not stopped by the deadline.
    pub fn with_on_overrun(mut self, policy: OnOverrun) -> Self {
        self.on_overrun = policy;
        self
    }

    /// Sets the waits between attempts to reach the store. 50 ms to 2 s by default.
    pub fn with_retry(mut self, backoff: Backoff) -> Self {
        self.retry = backoff;
        self
    }

    /// Sets the waits before campaigning again after failed work. 100 ms to 30 s by default.
    pub fn with_work_backoff(mut self, backoff: Backoff) -> Self {
        self.work_backoff = backoff;
        self
    }

    /// Sets the shutdown timeout: the longest time that [`resign`](crate::Leadership::resign), [`close`](crate::Elector::close) and
    /// the shutdown of [`run_while_leader`](crate::ElectorExt::run_while_leader) wait for work to stop and for the store to
    /// confirm. More than 0, at most 1 h, 5 s by default.
    ///
    /// The rest continues in the background. If the process ends first, the store expires the session after its TTL.
    pub fn with_shutdown_timeout(mut self, timeout: Duration) -> Self {
        self.shutdown_timeout = timeout;
        self
    }

    /// Runs the elector on the threads of `engine`, which other electors can share. By default, every elector starts an
    /// engine of its own.
    pub fn with_engine(mut self, engine: Engine) -> Self {
        self.engine = Some(engine);
        self
    }

    /// Sets the resume file: after a crash, the restarted process leads again within milliseconds and not after the TTL. None by
    /// default.
    ///
    /// The elector locks the file for as long as it lives, and keeps its sessions in it. If an earlier process has left a
    /// session there and this process gets the lock, that process is dead. The elector then ends that session in the store
    /// before it campaigns. If that fails within the request timeout, it logs a warning and campaigns; the session expires by
    /// its TTL.
    ///
    /// An elector that is still closing and every [`LeadershipHandle`](crate::LeadershipHandle) of it keep the lock. The
    /// constructor blocks for up to two seconds while somebody has it, and fails then: drop the handles of an elector before
    /// you make the next one with this file.
    ///
    /// The file also has the highest fencing tokens that the elector has seen, of 256 elections at most: a restarted process
    /// notices when tokens have gone back, as after the store was wiped.
    ///
    /// # Who may use it
    /// A service whose work is done **by its own process only**. A dead process does not mean dead work: if child processes
    /// that it has started work on, they work beside the next leader. This is refused where it is known: by `tenure run`, and
    /// by the local store, whose lock can be passed on.
    ///
    /// # Requirements
    /// Linux; any store but Kubernetes and the local one. The file is on ext4, XFS, Btrfs or tmpfs, belongs to the
    /// user of the process and has the mode 0600; it is created if it does not exist. Each elector has a file of its own.
    /// The file is ignored after a restart of the machine, and when it is a copy.
    pub fn with_resume_file(mut self, path: impl Into<PathBuf>) -> Self {
        self.resume_file = Some(path.into());
        self
    }

    /// The TTL to request from the store.
    pub fn ttl(&self) -> Duration {
        self.ttl
    }

    /// The grace period.
    pub fn grace_period(&self) -> Duration {
        self.grace_period.unwrap_or(self.ttl / 10)
    }

    /// The id of the elector's candidates.
    pub fn id(&self) -> &CandidateId {
        &self.id
    }

    /// Checks every setting, and their combinations.
    ///
    /// # Errors
    /// [`Error::InvalidConfig`] or [`Error::ValueTooLarge`], which say what is wrong and what is allowed.
    pub fn validate(&self) -> Result<(), Error> {
        if !(Self::MIN_TTL..=Self::MAX_TTL).contains(&self.ttl) {
            return Err(InvalidConfig::Ttl { given: self.ttl, min: Self::MIN_TTL, max: Self::MAX_TTL }.into());
        }
        if !(0.0..=0.5).contains(&self.drift) {
            return Err(InvalidConfig::Drift { given: self.drift }.into());
        }
        check_grace_period(self.grace_period(), self.ttl, self.ttl / 3)?;
        let max = Self::MAX_WAIT;
        for (setting, given) in
            [("request timeout", self.request_timeout), ("shutdown timeout", self.shutdown_timeout)]
        {
            if given.is_zero() || given > max {
                let allowed = "more than 0 and at most 1h";
                return Err(InvalidConfig::Time { setting, given, allowed }.into());
            }
        }
        for (setting, backoff) in [("retry backoff", self.retry), ("work backoff", self.work_backoff)] {
            if backoff.min.is_zero() || backoff.min > backoff.max {
                let allowed = "more than 0 and at most its own maximum";
                return Err(InvalidConfig::Time { setting, given: backoff.min, allowed }.into());
            }
            if backoff.max > max {
                let allowed = "at most 1h between two attempts";
                return Err(InvalidConfig::Time { setting, given: backoff.max, allowed }.into());
            }
        }
        check_value(&self.value)
    }
}

/// Checks that `grace_period` leaves time to lead under a session with the given TTL, which allows at most `max`.
pub(crate) fn check_grace_period(
    grace_period: Duration,
    ttl: Duration,
    max: Duration,
) -> Result<(), InvalidConfig> {
    if grace_period.is_zero() || grace_period > max {
        return Err(InvalidConfig::GracePeriod { given: grace_period, ttl, max });
    }
    Ok(())
}

/// Checks a candidate's value.
///
/// # Errors
/// When it is too large, or would be read as a resign request.
pub(crate) fn check_value(value: &[u8]) -> Result<(), Error> {
    if value.len() > MAX_VALUE_BYTES {
        return Err(Error::ValueTooLarge { bytes: value.len() });
    }
    if value.ends_with(candidate::RESIGN_MARKER) {
        return Err(InvalidConfig::Value.into());
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
        let config = Config::new;
        assert_eq!(
            message(config().with_ttl(Duration::from_millis(10))),
            "ttl 10ms is not allowed: it must be from 1s to 1day"
        );
        assert_eq!(
            message(config().with_grace_period(Duration::from_secs(9))),
            "grace period 9s is not allowed with ttl 10s: it must be more than 0 and at most 3s 333ms"
        );
        assert_eq!(
            message(config().with_drift(0.9)),
            "drift 0.9 is not allowed: it must be a fraction from 0 to 0.5, such as 0.1 for 10 %"
        );
        assert!(message(config().with_drift(f64::NAN)).contains("drift NaN"));
        assert_eq!(
            message(config().with_value(vec![0; 65 * 1024])),
            "a candidate's value of 66560 bytes is too large: at most 65536 bytes (64 KiB) are allowed"
        );
        assert!(config().with_value(vec![0; 64 * 1024]).validate().is_ok());
        assert!(message(config().with_request_timeout(Duration::ZERO)).contains("request timeout"));
        // Durations that would overflow the clock are refused.
        for invalid in [
            config().with_request_timeout(Duration::MAX),
            config().with_shutdown_timeout(Duration::MAX),
            config().with_retry(Backoff { min: Duration::from_secs(1), max: Duration::MAX }),
            config().with_work_backoff(Backoff { min: Duration::from_secs(1), max: Duration::MAX }),
        ] {
            let message = message(invalid);
            assert!(
                message.contains("is not allowed: it must be") && message.contains("at most 1h"),
                "{message}"
            );
        }
        let backoff = Backoff { min: Duration::from_secs(2), max: Duration::from_secs(1) };
        assert!(message(config().with_retry(backoff)).contains("retry backoff"));
    }

    #[test]
    fn a_default_id_gives_way_to_an_id() {
        let id = |id| CandidateId::new(id).unwrap();
        let config = Config::new().with_default_id(id("pod"));
        assert_eq!(config.id().as_str(), "pod");
        assert_eq!(config.with_id(id("me")).id().as_str(), "me");
        assert_eq!(Config::new().with_id(id("me")).with_default_id(id("pod")).id().as_str(), "me");
    }

    #[test]
    fn a_value_cannot_be_a_resign_request() {
        let refused = check_value(&[b"10.0.0.1", candidate::RESIGN_MARKER].concat()).unwrap_err().to_string();
        assert!(refused.contains("marker of a resign request"), "{refused}");
        check_value(&[candidate::RESIGN_MARKER, b"10.0.0.1"].concat()).unwrap();
    }
}
