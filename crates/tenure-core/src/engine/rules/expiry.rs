//! Until when the store may keep a session in which no heartbeat is sent any more.
//!
//! This is the opposite of the [deadline](super::window): the deadline is the earliest instant at which the store can end
//! the session, counted from before a *confirmed* heartbeat was sent. The expiry is the latest one. It is counted from the
//! last heartbeat that was sent, answered or not, because an unanswered one may have extended the session as well; and from
//! the end of its flight, because the store can have carried it out as late as that.

use std::{
    sync::{Arc, PoisonError},
    time::Duration,
};

use crate::{
    BootInstant, Clock,
    spi::{BackendSession, HeartbeatProof},
    sync::{Mutex, MutexGuard},
};

/// When the store ends a session by itself, at the latest.
#[derive(Debug)]
pub(crate) struct SessionExpiry {
    clock: Arc<dyn Clock>,
    /// The longest time for which the store keeps the session after a request that extends it, by our clock.
    max_silence: Duration,
    /// Whether other requests extend the session, too.
    any_request_extends: bool,
    state: Mutex<State>,
}

#[derive(Clone, Copy, Debug)]
enum State {
    /// Requests that extend the session are still sent. The last one that is no longer in flight ended its flight at this
    /// instant.
    Extended(BootInstant),
    /// No such request is sent any more. The last one ended its flight at this instant.
    Silent(BootInstant),
    /// The same, and no task tries to close the session any more.
    GivenUp(BootInstant),
    /// The store has confirmed that the session is closed.
    Closed,
}

/// A heartbeat in flight. Dropped when it is answered or given up.
#[derive(Debug)]
pub(crate) struct HeartbeatInFlight<'a>(&'a SessionExpiry);

impl SessionExpiry {
    /// The expiry of a session that has just been opened.
    pub(crate) fn new(session: &dyn BackendSession, clock: Arc<dyn Clock>, drift: f64) -> Arc<Self> {
        let max_silence = match session.proof() {
            // The kernel ends the session when the process ends.
            HeartbeatProof::Process => Duration::ZERO,
            // `div_f64` would panic for a time that is too long for a `Duration`.
            _ => Duration::try_from_secs_f64(session.expires_after().as_secs_f64() / (1.0 - drift))
                .unwrap_or(Duration::MAX),
        };
        Arc::new(Self::opened(clock, max_silence, !session.only_heartbeats_extend()))
    }

    fn opened(clock: Arc<dyn Clock>, max_silence: Duration, any_request_extends: bool) -> Self {
        let now = clock.now();
        Self { clock, max_silence, any_request_extends, state: Mutex::new(State::Extended(now)) }
    }

    /// The longest time for which the store keeps the session after a request that extends it.
    pub(crate) fn max_silence(&self) -> Duration {
        self.max_silence
    }

    /// Records that a heartbeat is in flight until the result is dropped.
    pub(crate) fn heartbeat(&self) -> HeartbeatInFlight<'_> {
        HeartbeatInFlight(self)
    }

    /// Records that no heartbeat is sent any more.
    pub(crate) fn heartbeats_stopped(&self) {
        if !self.any_request_extends {
            self.stop(|last| last);
        }
    }

    /// Records that no request of any kind is sent any more.
    pub(crate) fn requests_stopped(&self) {
        let now = self.clock.now();
        self.stop(|last| if self.any_request_extends { now } else { last });
        let mut state = self.state();
        if let State::Silent(since) = *state {
            *state = State::GivenUp(since);
        }
    }

    fn stop(&self, silent_since: impl FnOnce(BootInstant) -> BootInstant) {
        let mut state = self.state();
        if let State::Extended(last) = *state {
            *state = State::Silent(silent_since(last));
        }
    }

    /// Records that the store has confirmed the end of the session.
    pub(crate) fn closed(&self) {
        *self.state() = State::Closed;
    }

    /// Whether the store has confirmed the end of the session.
    pub(crate) fn is_closed(&self) -> bool {
        matches!(*self.state(), State::Closed)
    }

    /// The longest time until the store ends the session, if no heartbeat is sent from now on.
    pub(crate) fn expires_in(&self) -> Duration {
        let now = self.clock.now();
        let last = match *self.state() {
            State::Extended(_) => now,
            State::Silent(since) | State::GivenUp(since) => since,
            State::Closed => return Duration::ZERO,
        };
        (last + self.max_silence).since(now)
    }

    /// Whether no task tries to close the session any more, although the store may have it.
    fn is_given_up(&self) -> bool {
        matches!(*self.state(), State::GivenUp(_))
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for HeartbeatInFlight<'_> {
    fn drop(&mut self) {
        let now = self.0.clock.now();
        match &mut *self.0.state() {
            State::Extended(last) | State::Silent(last) | State::GivenUp(last) => *last = now.max(*last),
            State::Closed => {}
        }
    }
}

/// From this number of sessions on, those that were given up are not kept one by one.
const MAX_UNCLOSED: usize = 64;

/// The sessions of an elector that the store may still have: all whose end it has not confirmed. One that has expired by our
/// clock is among them, because a store that was down counts the whole TTL again.
#[derive(Debug, Default)]
pub(crate) struct UnclosedSessions(Mutex<Unclosed>);

#[derive(Debug, Default)]
struct Unclosed {
    /// The latest ones.
    sessions: Vec<Arc<SessionExpiry>>,
    /// Until when the store may have those that are not kept any more, if there are any.
    others_expire: Option<BootInstant>,
    /// The number of sessions at which those that were closed are forgotten next: adding a session takes constant time.
    forget_at: usize,
}

impl UnclosedSessions {
    /// Adds a session that has just been opened. Forgets those that were closed.
    pub(crate) fn add(&self, session: &Arc<SessionExpiry>) {
        let mut unclosed = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if unclosed.sessions.len() >= unclosed.forget_at.max(MAX_UNCLOSED) {
            drop(unclosed);
            unclosed = self.lock();
            // The others are as many as the elector has in use.
            let (given_up, kept): (Vec<_>, Vec<_>) =
                unclosed.sessions.drain(..).partition(|known| known.is_given_up());
            let expire = given_up.iter().map(|known| known.clock.now() + known.expires_in()).max();
            unclosed.others_expire = unclosed.others_expire.max(expire);
            unclosed.forget_at = 2 * kept.len();
            unclosed.sessions = kept;
        }
        unclosed.sessions.push(Arc::clone(session));
    }

    /// For each session whose end the store has not confirmed, the longest time until the store ends it. Zero for one that has
    /// expired by our clock.
    pub(crate) fn unconfirmed(&self) -> Vec<Duration> {
        let unclosed = self.lock();
        let Some(clock) = unclosed.sessions.last().map(|session| &session.clock) else { return Vec::new() };
        let others = unclosed.others_expire.map(|expires| expires.since(clock.now()));
        let left = unclosed.sessions.iter().filter(|session| !session.is_closed());
        left.map(|session| session.expires_in()).chain(others).collect()
    }

    /// The sessions, without those that were closed except the latest, which has the clock.
    fn lock(&self) -> MutexGuard<'_, Unclosed> {
        let mut unclosed = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let latest = unclosed.sessions.len().saturating_sub(1);
        let mut index = 0..;
        unclosed.sessions.retain(|known| index.next() == Some(latest) || !known.is_closed());
        unclosed
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::SimClock;

    const MAX_SILENCE: Duration = Duration::from_secs(12);

    fn expiry(any_request_extends: bool) -> SessionExpiry {
        SessionExpiry::opened(Arc::new(SimClock::new()), MAX_SILENCE, any_request_extends)
    }

    async fn advance(seconds: u64) {
        tokio::time::advance(Duration::from_secs(seconds)).await;
    }

    fn seconds(expiry: &SessionExpiry) -> u64 {
        expiry.expires_in().as_secs()
    }

    #[tokio::test(start_paused = true)]
    async fn a_silent_session_expires_after_its_last_heartbeat() {
        let expiry = expiry(false);
        advance(3).await;
        let heartbeat = expiry.heartbeat();
        advance(1).await;
        drop(heartbeat);
        advance(2).await;
        assert_eq!(seconds(&expiry), 12, "heartbeats go on");
        expiry.heartbeats_stopped();
        assert_eq!(seconds(&expiry), 10);
        advance(20).await;
        expiry.requests_stopped();
        assert_eq!(seconds(&expiry), 0);
        assert!(!expiry.is_closed());
    }

    /// A heartbeat that is in flight when the session ends can still be carried out.
    #[tokio::test(start_paused = true)]
    async fn a_heartbeat_counts_until_it_is_given_up() {
        let expiry = expiry(false);
        advance(3).await;
        let heartbeat = expiry.heartbeat();
        advance(2).await;
        expiry.heartbeats_stopped();
        drop(heartbeat);
        advance(1).await;
        assert_eq!(seconds(&expiry), 11);
    }

    #[tokio::test(start_paused = true)]
    async fn a_session_that_every_request_extends_expires_after_the_last_one() {
        let expiry = expiry(true);
        advance(3).await;
        expiry.heartbeats_stopped();
        advance(3).await;
        assert_eq!(seconds(&expiry), 12, "it is being closed");
        expiry.requests_stopped();
        advance(3).await;
        assert_eq!(seconds(&expiry), 9);
    }

    #[tokio::test(start_paused = true)]
    async fn sessions_that_may_be_left_are_known() {
        let sessions = UnclosedSessions::default();
        let [closed, expired, open] = [(); 3].map(|()| Arc::new(expiry(false)));
        for session in [&closed, &expired, &open] {
            sessions.add(session);
        }
        closed.closed();
        expired.heartbeats_stopped();
        advance(13).await;
        let silence = [Duration::ZERO, MAX_SILENCE];
        assert_eq!(sessions.unconfirmed(), silence, "the store has not confirmed that the second is gone");
        let latest = Arc::new(expiry(false));
        sessions.add(&latest);
        assert_eq!(sessions.unconfirmed(), [Duration::ZERO, MAX_SILENCE, MAX_SILENCE]);
        for session in [&expired, &open, &latest] {
            session.closed();
        }
        assert!(sessions.unconfirmed().is_empty());
    }

    /// Sessions that are too many to keep are still known not to be confirmed.
    #[tokio::test(start_paused = true)]
    async fn no_unconfirmed_session_is_forgotten() {
        let sessions = UnclosedSessions::default();
        let clock: Arc<dyn Clock> = Arc::new(SimClock::new());
        let opened: Vec<_> = (0..MAX_UNCLOSED + 2)
            .map(|_| Arc::new(SessionExpiry::opened(Arc::clone(&clock), MAX_SILENCE, false)))
            .collect();
        for session in &opened {
            sessions.add(session);
            session.requests_stopped();
        }
        // All but the last two are one.
        assert_eq!(sessions.unconfirmed(), [MAX_SILENCE; 3]);
        opened.iter().for_each(|session| session.closed());
        assert_eq!(sessions.unconfirmed(), [MAX_SILENCE]);
        advance(20).await;
        assert_eq!(sessions.unconfirmed(), [Duration::ZERO]);
    }

    #[tokio::test(start_paused = true)]
    async fn the_longest_silence_does_not_overflow() {
        let expiry = SessionExpiry::opened(Arc::new(SimClock::new()), Duration::MAX, false);
        assert!(expiry.expires_in() > Duration::from_secs(u32::MAX.into()));
    }

    /// A session that is being closed while many others are in use is not counted for ever.
    #[tokio::test(start_paused = true)]
    async fn many_sessions_that_were_closed_are_not_counted() {
        let sessions = UnclosedSessions::default();
        let all: Vec<_> = (0..10 * MAX_UNCLOSED).map(|_| Arc::new(expiry(false))).collect();
        for session in &all {
            session.heartbeats_stopped();
            sessions.add(session);
        }
        assert_eq!(sessions.unconfirmed().len(), all.len());
        all.iter().for_each(|session| session.closed());
        assert!(sessions.unconfirmed().is_empty());
    }
}
