//! The task of a session: heartbeats, their confirmation, repeated withdrawals, and closing.

use std::{convert::Infallible, panic::AssertUnwindSafe, sync::Arc, time::Duration};

use futures::{FutureExt, StreamExt, stream};
use tracing::{debug, error, warn};

use super::session::Session;
use crate::{
    BootInstant, LossReason, OnDisconnect,
    engine::{
        rules::{
            heartbeat::{self, HeartbeatPurpose, UnprovenHeartbeats},
            pending_withdrawals::first_retry_delay,
        },
        runtime::retry::{Retry, with_timeout},
    },
    failpoints::{SafetyRule, is_disabled},
    retry_delays::RetryDelays,
    spi::{BackendError, BackendErrorKind, Heartbeat, Stamp},
    sync::sleep,
    telemetry,
};

/// The number of withdrawals that are repeated concurrently.
const MAX_CONCURRENT_WITHDRAWALS: usize = 16;

/// Sends heartbeats until the session ends or is no longer needed, and closes it then.
///
/// Created before its task is spawned. Its drop ends the session, also when the task is aborted: by a panic in a
/// backend, or by a runtime that is shut down, perhaps before the first poll.
pub(crate) struct SessionTask {
    session: Arc<Session>,
    /// Whether the session's entries are gone from the store.
    closed: bool,
}

impl Drop for SessionTask {
    fn drop(&mut self) {
        self.session.end(LossReason::SessionGivenUp);
        self.session.expiry.requests_stopped();
        self.session.shared.status.session_closed(&self.session.backend_session.id());
        self.session.set_closed(self.closed);
    }
}

impl SessionTask {
    pub(crate) fn new(session: &Arc<Session>) -> Self {
        Self { session: Arc::clone(session), closed: false }
    }

    pub(crate) async fn run(mut self) {
        let session = &self.session;
        let shared = &session.shared;
        let no_longer_needed = async {
            shared.elector_dropped.cancelled().await;
            session.entry_tracker.close();
            session.entry_tracker.wait().await;
        };
        tokio::select! {
            biased;
            () = session.ended_token.cancelled() => {}
            () = shared.closing.cancelled() => session.end(LossReason::Closed),
            () = no_longer_needed => session.end(LossReason::Closed),
            outcome = AssertUnwindSafe(heartbeat_loop(session)).catch_unwind() => {
                end_after_panic(session, outcome);
            }
            outcome = AssertUnwindSafe(retry_withdrawals(session)).catch_unwind() => {
                end_after_panic(session, outcome);
            }
        }
        session.expiry.heartbeats_stopped();
        report_clock_jump(session);
        // The work stops before the session is closed: the next leader must find no work of this one.
        session.entry_tracker.close();
        if !is_disabled(SafetyRule::StopWorkBeforeClosing) {
            session.entry_tracker.wait().await;
        }
        self.closed = close(session).await;
        let session = Arc::clone(session);
        // Reports the end: nobody waits for the file.
        drop(self);
        // A session that has expired by our clock may live on in a store that was down: the next process ends it.
        if session.expiry.is_closed()
            && let Some(resume) = &session.shared.resume
        {
            let limit = session.shared.config.request_timeout;
            resume.forget(&session.backend_session.id(), limit).await;
        }
    }
}

fn end_after_panic(session: &Session, outcome: std::thread::Result<()>) {
    if outcome.is_err() {
        error!(session = session.backend_session.id(), "a backend has panicked; its session ends");
        session.end(LossReason::SessionGivenUp);
    }
}

/// Sends heartbeats until the session ends.
async fn heartbeat_loop(session: &Arc<Session>) {
    if !session.needs_heartbeats() {
        return std::future::pending().await;
    }
    wait_until_allowed(session).await;
    let shared = &session.shared;
    let clock = &*shared.clock;
    let proof = session.backend_session.proof();
    let (ttl, drift) = (session.backend_session.granted_ttl(), shared.config.drift);
    let interval = |purpose| heartbeat::interval(proof, purpose, ttl, drift, session.window.grace_period());
    let limit = heartbeat::timeout(proof, interval(HeartbeatPurpose::Lead), shared.config.request_timeout);
    let mut retry_delays = RetryDelays::new(heartbeat::retry_backoff(limit));
    let mut delays_after_ttl = RetryDelays::new(heartbeat::retry_backoff_after_ttl(ttl));
    let mut unproven = UnprovenHeartbeats::new(proof, ttl, drift);
    let mut answered_at = clock.now();
    let opened_at = session.window.deadline() - session.window.length();
    let mut next = opened_at + interval(session.heartbeat_purpose());
    let mut sent_at = opened_at;
    // After a failed heartbeat.
    let mut paused_until = opened_at;
    loop {
        tokio::select! {
            biased;
            () = clock.sleep_until(next) => {}
            () = session.heartbeat_wanted.notified() => {
                if clock.now() < paused_until {
                    continue;
                }
                if session.window.is_open() {
                    // Its purpose may have changed.
                    next = next.min(sent_at + interval(session.heartbeat_purpose()));
                    continue;
                }
            }
            never = suspend_unused_window(session) => match never {},
        }
        wait_until_allowed(session).await;
        let (sent, answer) = tokio::select! {
            biased;
            outcome = send_heartbeat(session, limit) => outcome,
            never = suspend_unused_window(session) => match never {},
        };
        sent_at = sent.at;
        // Read before the heartbeat extends the deadline: the least time that was left.
        let left = session.window.is_open().then(|| session.window.deadline().since(clock.now()));
        let measured = |outcome| telemetry::heartbeat_finished(outcome, clock.now().since(sent.at), left);
        match answer {
            Ok(answer) => {
                answered_at = clock.now();
                let proven = match answer {
                    Some(heartbeat) if heartbeat.ttl.is_zero() => {
                        return session.end(LossReason::SessionExpired);
                    }
                    Some(heartbeat) => proven_by(session, &mut unproven, sent, heartbeat),
                    None => {
                        if let Some(unproven) = &mut unproven {
                            unproven.add(sent, ttl, answered_at);
                        }
                        None
                    }
                };
                if let Some((proven, ttl)) = proven {
                    if let Err(reason) = session.extend_window(proven, ttl) {
                        return session.end(reason);
                    }
                    session.window_extended();
                }
                measured(if proven.is_some() { "confirmed" } else { "answered" });
                // An unproven heartbeat does not end an outage.
                if proven.is_some() || answer.is_none() {
                    shared.status.answered();
                    retry_delays.reset();
                    delays_after_ttl.reset();
                }
                next = next_heartbeat(session, unproven.as_ref(), sent.at, &interval);
            }
            Err(error) if error.kind() == BackendErrorKind::SessionGone => {
                return session.end(LossReason::SessionExpired);
            }
            Err(error) => {
                report_failure(session, &error);
                measured("failed");
                if shared.config.on_disconnect == OnDisconnect::StepDown && session.window.is_open() {
                    return session.end(LossReason::Disconnected);
                }
                let has_time = session.window.is_open() || clock.now() < answered_at + ttl;
                let delays = if has_time { &mut retry_delays } else { &mut delays_after_ttl };
                next = clock.now() + delays.next_delay();
                if !session.window.is_open() {
                    let expired = answered_at + session.expiry.max_silence();
                    if clock.now() >= expired {
                        // No deadline applies, and the store must have ended the session by now.
                        return session.end(LossReason::Deadline);
                    }
                    next = next.min(expired);
                }
                paused_until = next;
            }
        }
        report_clock_jump(session);
        // The watchdog ends the session on time; this covers a watchdog that is late.
        let _ = session.enforce_window(session.window.grace_period());
        if session.ended().is_some() && !is_disabled(SafetyRule::NeverReopenWindow) {
            return;
        }
    }
}

/// When the next heartbeat is due after one that was sent at `sent`.
fn next_heartbeat(
    session: &Session,
    unproven: Option<&UnprovenHeartbeats>,
    sent: BootInstant,
    interval: &impl Fn(HeartbeatPurpose) -> Duration,
) -> BootInstant {
    let purpose = session.heartbeat_purpose();
    let interval = interval(purpose);
    let due = sent + interval;
    let Some(unproven) = unproven else { return due };
    if purpose == HeartbeatPurpose::KeepAlive {
        return due;
    }
    let window = &session.window;
    let reserve = unproven.reserve(interval, window.grace_period());
    // Of a window that is not open, nothing is left.
    let left = window.deadline().since(session.shared.clock.now()).saturating_sub(window.grace_period());
    match unproven.earliest_that_counts() {
        Some(counts) if left < reserve => counts,
        _ => unproven.align(due, interval),
    }
}

/// Suspends the window just before it closes, if nobody leads under it then: the session may live on in a store that does not answer, and
/// is of use once it answers again.
async fn suspend_unused_window(session: &Session) -> Infallible {
    let (clock, window) = (&*session.shared.clock, &session.window);
    let ttl = session.backend_session.granted_ttl();
    while window.is_open() && session.owner.is_none() {
        let now = clock.now();
        let closes = window.deadline() - window.grace_period();
        let is_unused = !session.has_terms();
        if now < closes - ttl / 50 {
            clock.sleep_until(closes - ttl / 50).await;
        } else if now < closes && !is_unused {
            clock.sleep_until(now + ttl / 200).await;
        } else {
            if is_unused && let Err(reason) = window.suspend(clock) {
                session.end(reason);
            }
            break;
        }
    }
    std::future::pending().await
}

/// Waits until heartbeats may be sent. A session that serves one election is extended only once its candidate has won, and not while
/// its entry is being removed.
async fn wait_until_allowed(session: &Session) {
    let clock = &*session.shared.clock;
    while session.owner.is_some() {
        match session.heartbeats_stopped_at() {
            Some(stopped_at) => {
                tokio::select! {
                    biased;
                    () = session.heartbeat_wanted.notified() => {}
                    // No deadline applies, and the store must have ended the session by now.
                    () = clock.sleep_until(stopped_at + session.expiry.max_silence()) => {
                        session.end(LossReason::Deadline);
                        return std::future::pending().await;
                    }
                }
            }
            None if session.window.is_open() => return,
            None => session.heartbeat_wanted.notified().await,
        }
    }
}

/// Sends a heartbeat, or a keepalive, whose answer is `None`. Which one is decided before it is sent.
async fn send_heartbeat(
    session: &Session,
    limit: Duration,
) -> (Stamp, Result<Option<Heartbeat>, BackendError>) {
    let clock = &*session.shared.clock;
    let needs_proof = session.heartbeat_purpose() != HeartbeatPurpose::KeepAlive;
    if !needs_proof && let Err(reason) = session.window.suspend(clock) {
        session.end(reason);
    }
    // Read before the request is handed to the client: the store counts the TTL from no earlier instant.
    let sent = Stamp::now(clock);
    let _in_flight = session.expiry.heartbeat();
    let answer = match needs_proof {
        true => with_timeout("heartbeat", limit, session.backend_session.heartbeat()).await.map(Some),
        false => with_timeout("keepalive", limit, session.backend_session.keep_alive()).await.map(|()| None),
    };
    let answer = match answer {
        Ok(None) if is_disabled(SafetyRule::KeepalivesExtendNothing) => {
            Ok(Some(Heartbeat::new(session.backend_session.granted_ttl())))
        }
        answer => answer,
    };
    match is_disabled(SafetyRule::DeadlineFromRequestStart) {
        true => (Stamp::now(clock), answer),
        false => (sent, answer),
    }
}

/// The heartbeat that an answered one proves, if any: itself, or an earlier one. Returns when it was sent and its TTL.
fn proven_by(
    session: &Session,
    unproven: &mut Option<UnprovenHeartbeats>,
    sent: Stamp,
    heartbeat: Heartbeat,
) -> Option<(Stamp, Duration)> {
    let shared = &session.shared;
    if session.window.shorten(sent.at, heartbeat.ttl) {
        shared.watchdog.wake();
    }
    let Some(unproven) = unproven.as_mut().filter(|_| !is_disabled(SafetyRule::ConfirmHeartbeats)) else {
        return Some((sent, heartbeat.ttl));
    };
    let now = shared.clock.now();
    let proven = unproven.record_answer(sent.at, now);
    unproven.add(sent, heartbeat.ttl, now);
    // A shorter TTL that the store grants now also holds for earlier heartbeats.
    proven.map(|(earlier, ttl)| (earlier, ttl.min(heartbeat.ttl)))
}

fn report_failure(session: &Session, error: &BackendError) {
    let window = &session.window;
    let left = window.is_open().then(|| window.deadline().since(session.shared.clock.now()));
    session.shared.status.heartbeat_failed(error, left);
}

/// Warns of jumps of the time of day that have ended nothing ([`OnClockJump::Log`](crate::OnClockJump::Log)). Once per
/// heartbeat at most.
fn report_clock_jump(session: &Session) {
    if let Some(jump) = session.window.take_clock_jump() {
        warn!(session = session.backend_session.id(), jump = %humantime::format_duration(jump),
            "the time of day jumped ahead of the machine's clock: if the machine was paused, another candidate may lead too");
    }
}

/// Removes entries that withdrawn requests have created after their withdrawal.
///
/// A request that was given up can be held by a frozen server and executed much later. So a withdrawal after an
/// unanswered request is repeated, on the schedule of
/// [`PendingWithdrawals`](crate::engine::rules::pending_withdrawals::PendingWithdrawals).
async fn retry_withdrawals(session: &Session) {
    let shared = &session.shared;
    let check_interval = first_retry_delay(session.backend_session.granted_ttl());
    loop {
        sleep(check_interval).await;
        let due = session.pending_withdrawals().due(shared.clock.now());
        let withdrawals = due.into_iter().map(|request| async move {
            let limit = shared.config.request_timeout;
            match with_timeout("leaving", limit, session.backend_session.leave(&request, None)).await {
                Ok(()) => session.pending_withdrawals().mark_retried(&request, shared.clock.now()),
                Err(error) if error.is_permanent() => {
                    warn!(election = %request.election, %error, "the store refuses to remove an entry that a withdrawn request may have made");
                    session.pending_withdrawals().remove(&request);
                }
                Err(error) => {
                    debug!(election = %request.election, %error, "not yet known whether a withdrawn entry is gone");
                    session.pending_withdrawals().mark_retried(&request, shared.clock.now());
                }
            }
        });
        stream::iter(withdrawals).buffer_unordered(MAX_CONCURRENT_WITHDRAWALS).collect::<()>().await;
    }
}

/// Closes the session in the store. Retries until the store confirms that, or the session has expired there. True in
/// both cases, except that a session without heartbeats does not expire: false when it could not be closed.
///
/// Also called when a backend has reported that the session is gone: the report may cover less than the whole
/// session, and entries of a session that lives on would block their elections.
async fn close(session: &Session) -> bool {
    let shared = &session.shared;
    let tried_for = match session.needs_heartbeats() {
        true => session.expiry.expires_in(),
        false => session.backend_session.granted_ttl(),
    };
    let give_up = shared.clock.now() + tried_for;
    let mut retry = Retry::new(shared.config.retry);
    loop {
        let left = give_up.since(shared.clock.now()).max(heartbeat::MIN_RETRY_DELAY);
        let limit = shared.config.request_timeout.min(left);
        match with_timeout("closing the session", limit, session.backend_session.close()).await {
            Ok(()) => break,
            Err(error) if error.kind() == BackendErrorKind::SessionGone => break,
            Err(error) => {
                shared.status.failed(&error);
                if shared.clock.now() >= give_up {
                    return wait_expired(session, &error).await;
                }
                debug!(session = session.backend_session.id(), %error, "the session is not closed yet");
            }
        }
        retry.pause().await;
    }
    session.expiry.closed();
    true
}

/// Waits until the store has ended a session that was not closed. False at once if it does not expire.
async fn wait_expired(session: &Session, error: &BackendError) -> bool {
    let clock = &session.shared.clock;
    // The attempts to close it may have extended it.
    session.expiry.requests_stopped();
    let left = session.expiry.expires_in();
    if session.needs_heartbeats() {
        clock.sleep_until(clock.now() + left).await;
    }
    warn!(session = session.backend_session.id(), %error, "the session was not closed; it expires by itself");
    session.needs_heartbeats()
}
