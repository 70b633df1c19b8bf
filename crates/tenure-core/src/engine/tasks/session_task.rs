//! The task of a session: heartbeats, their confirmation, repeated withdrawals, and closing.

use std::{collections::VecDeque, panic::AssertUnwindSafe, sync::Arc, time::Duration};

use futures::{FutureExt, StreamExt, stream};
use tracing::{debug, error, warn};

use super::session::Session;
use crate::{
    LossReason, OnDisconnect,
    engine::{
        rules::{
            heartbeat::{self, UnconfirmedHeartbeat},
            pending_withdrawals::first_retry_delay,
            window::SentAt,
        },
        runtime::retry::{Retry, with_timeout},
    },
    failpoints::{SafetyRule, is_disabled},
    retry_delays::RetryDelays,
    spi::{BackendError, BackendErrorKind, Confirmation, Heartbeat, HeartbeatProof},
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
    /// When the session was requested.
    opened: SentAt,
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
    pub(crate) fn new(session: &Arc<Session>, opened: SentAt) -> Self {
        Self { session: Arc::clone(session), opened, closed: false }
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
            outcome = AssertUnwindSafe(heartbeat_loop(session, self.opened)).catch_unwind() => {
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
async fn heartbeat_loop(session: &Arc<Session>, opened: SentAt) {
    if !session.needs_heartbeats() {
        return std::future::pending().await;
    }
    let shared = &session.shared;
    let proof = session.backend_session.proof();
    let drift = shared.config.drift;
    let interval = heartbeat::interval(
        proof,
        session.backend_session.granted_ttl(),
        drift,
        session.window.grace_period(),
    );
    let limit = heartbeat::timeout(proof, interval, shared.config.request_timeout);
    let mut retry_delays = RetryDelays::new(heartbeat::retry_backoff(limit));
    let mut unconfirmed: VecDeque<UnconfirmedHeartbeat> = VecDeque::new();
    let mut next = opened.at + interval;
    loop {
        shared.clock.sleep_until(next).await;
        // Read before the request is handed to the client: the store counts the TTL from no earlier instant.
        let sent = SentAt::now(&*shared.clock);
        let in_flight = session.expiry.heartbeat();
        let answer = with_timeout("heartbeat", limit, session.backend_session.heartbeat()).await;
        drop(in_flight);
        let sent = if is_disabled(SafetyRule::DeadlineFromRequestStart) {
            SentAt::now(&*shared.clock)
        } else {
            sent
        };
        // Read before the heartbeat extends the deadline: the least time that was left.
        let left = session.window.deadline().since(shared.clock.now());
        let measured =
            |outcome| telemetry::heartbeat_finished(outcome, shared.clock.now().since(sent.at), left);
        // The heartbeat that is confirmed, if one is. It may be an earlier one.
        let confirmed = match answer {
            Ok(heartbeat) if heartbeat.ttl.is_zero() => {
                session.end(LossReason::SessionExpired);
                return;
            }
            Ok(heartbeat) => {
                if session.window.shorten(sent.at, heartbeat.ttl) {
                    shared.watchdog.wake();
                }
                match proof {
                    _ if is_disabled(SafetyRule::ConfirmHeartbeats) => Ok(Some((sent, heartbeat))),
                    HeartbeatProof::Answer => Ok(Some((sent, heartbeat))),
                    HeartbeatProof::NextHeartbeat { gap } => {
                        let gap = heartbeat::confirmation_gap(gap, drift);
                        let confirmed = heartbeat::take_confirmed(&mut unconfirmed, sent.at, gap);
                        let answered_at = shared.clock.now();
                        unconfirmed.push_back(UnconfirmedHeartbeat { sent, answered_at, heartbeat });
                        // A shorter TTL that the store grants now also holds for earlier heartbeats.
                        Ok(confirmed.map(|earlier| {
                            let ttl = earlier.heartbeat.ttl.min(heartbeat.ttl);
                            (earlier.sent, Heartbeat { ttl, ..earlier.heartbeat })
                        }))
                    }
                    _ => {
                        confirm(session, limit, &heartbeat).await.map(|yes| yes.then_some((sent, heartbeat)))
                    }
                }
            }
            Err(error) => Err(error),
        };
        match confirmed {
            Ok(Some((confirmed, heartbeat))) => {
                if let Err(reason) = session.window.extend(&*shared.clock, confirmed, heartbeat.ttl) {
                    session.end(reason);
                    return;
                }
                shared.status.answered();
                retry_delays.reset();
                measured("confirmed");
                next = sent.at + interval;
            }
            // The next heartbeat, a gap later, will confirm this one.
            Ok(None) if matches!(proof, HeartbeatProof::NextHeartbeat { .. }) => {
                measured("answered");
                next = sent.at + interval;
            }
            Ok(None) => {
                measured("answered");
                debug!(
                    session = session.backend_session.id(),
                    "the store changed its epoch under a heartbeat; sending another"
                );
                next = shared.clock.now() + retry_delays.next_delay();
            }
            Err(error) if error.kind() == BackendErrorKind::SessionGone => {
                session.end(LossReason::SessionExpired);
                return;
            }
            Err(error) => {
                report_failure(session, &error);
                measured("failed");
                if shared.config.on_disconnect == OnDisconnect::StepDown {
                    session.end(LossReason::Disconnected);
                    return;
                }
                next = shared.clock.now() + retry_delays.next_delay();
            }
        }
        report_clock_jump(session);
        // The watchdog ends the session on time; this covers a watchdog that is late.
        if session.enforce_window(session.window.grace_period()).is_err()
            && !is_disabled(SafetyRule::NeverReopenWindow)
        {
            return;
        }
    }
}

fn report_failure(session: &Session, error: &BackendError) {
    session.shared.status.failed(error);
    let left = session.window.deadline().since(session.shared.clock.now());
    warn!(session = session.backend_session.id(), %error, left = %humantime::format_duration(left), "heartbeat unanswered");
}

/// Warns of jumps of the time of day that have ended nothing ([`OnClockJump::Log`](crate::OnClockJump::Log)). Once per
/// heartbeat at most.
fn report_clock_jump(session: &Session) {
    if let Some(jump) = session.window.take_clock_jump() {
        warn!(session = session.backend_session.id(), jump = %humantime::format_duration(jump),
            "the time of day jumped ahead of the machine's clock: if the machine was paused, another candidate may lead too");
    }
}

/// Whether a confirming read proves `heartbeat`.
async fn confirm(session: &Session, limit: Duration, heartbeat: &Heartbeat) -> Result<bool, BackendError> {
    loop {
        let probe_entry = session.probe_entry();
        let entry = probe_entry.as_ref().map(|registered| &registered.entry);
        match with_timeout("confirming read", limit, session.backend_session.confirm(heartbeat, entry))
            .await?
        {
            Confirmation::Confirmed => return Ok(true),
            Confirmation::Unconfirmed => return Ok(is_disabled(SafetyRule::CompareEpochs)),
            // Its candidacy or its term is notified, and the next read probes another entry.
            Confirmation::ProbeEntryGone => match probe_entry {
                Some(_) if is_disabled(SafetyRule::WatchOwnEntry) => return Ok(true),
                Some(registered) => session.mark_missing(&registered),
                None => return Ok(false),
            },
        }
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
