//! The task of a session: heartbeats, their confirmation, and closing.

use std::{collections::VecDeque, panic::AssertUnwindSafe, sync::Arc, time::Duration};

use futures::{FutureExt, StreamExt, stream};
use tracing::{debug, error, warn};

use super::{
    graves,
    retry::{Retry, timed},
    session::Session,
    window::Sent,
};
use crate::{
    Backoff, BootInstant, LossReason, OnDisconnect,
    failpoints::{SafetyRule, is_disabled},
    spi::{BackendError, BackendErrorKind, Confirmation, Heartbeat, HeartbeatProof},
    sync::sleep,
    telemetry,
};

/// Keeps a session alive until it ends or nothing needs it; then closes it.
///
/// Made before its task is spawned. When it is dropped, everybody is told that the session is over, also when the task ends
/// before its time: a panic in a backend, or a runtime that is shut down, perhaps before the task was polled at all.
pub(crate) struct Keeper {
    session: Arc<Session>,
    /// When the session was asked for.
    opened: Sent,
    /// Whether the session's entries are gone from the store.
    closed: bool,
}

impl Drop for Keeper {
    fn drop(&mut self) {
        self.session.end(LossReason::SessionGivenUp);
        self.session.shared.status.session_closed(&self.session.spi.id());
        self.session.set_closed(self.closed);
    }
}

impl Keeper {
    pub(crate) fn new(session: &Arc<Session>, opened: Sent) -> Self {
        Self { session: Arc::clone(session), opened, closed: false }
    }

    pub(crate) async fn run(mut self) {
        let session = &self.session;
        let shared = &session.shared;
        let unneeded = async {
            shared.abandoned.cancelled().await;
            session.entries.close();
            session.entries.wait().await;
        };
        tokio::select! {
            biased;
            () = session.stop.cancelled() => {}
            () = shared.closing.cancelled() => session.end(LossReason::Closed),
            () = unneeded => session.end(LossReason::Closed),
            outcome = AssertUnwindSafe(beat(session, self.opened)).catch_unwind() => panicked(session, outcome),
            outcome = AssertUnwindSafe(bury(session)).catch_unwind() => panicked(session, outcome),
        }
        // First the work, then the entries: whoever is next must find nothing running.
        session.entries.close();
        if !is_disabled(SafetyRule::StopWorkBeforeClosing) {
            session.entries.wait().await;
        }
        self.closed = close(session).await;
    }
}

fn panicked(session: &Session, outcome: std::thread::Result<()>) {
    if outcome.is_err() {
        error!(session = session.spi.id(), "a backend has panicked; its session ends");
        session.end(LossReason::SessionGivenUp);
    }
}

/// The first wait before an unanswered heartbeat is sent again. The longest stays a small part of
/// the TTL: there is little time left.
const RETRY_HEARTBEAT: Duration = Duration::from_millis(20);

/// How often a heartbeat is sent: a third of the TTL, or more often where drift bound, stop
/// budget and confirmation leave less time.
fn interval(proof: HeartbeatProof, ttl: Duration, drift: f64, budget: Duration) -> Duration {
    let usable = ttl.mul_f64(1.0 - drift).saturating_sub(budget);
    match proof {
        // What is confirmed is a gap old, and up to an interval more; and one heartbeat may be lost. However short
        // the gap, there is no need to hurry.
        HeartbeatProof::NextHeartbeat { gap } => {
            gap.max(ttl / 8).min(ttl / 3).min(usable.saturating_sub(wide(gap, drift)) / 3)
        }
        _ => (ttl / 3).min(usable / 2),
    }
}

/// What has to lie between a heartbeat and the one that confirms it.
fn gap_between(gap: Duration, drift: f64) -> Duration {
    if is_disabled(SafetyRule::KeepHeartbeatGap) { Duration::ZERO } else { wide(gap, drift) }
}

/// A gap that is none too short by the store's clock either.
fn wide(gap: Duration, drift: f64) -> Duration {
    gap.div_f64(1.0 - drift)
}

/// The largest grace period with which a session can be kept whose heartbeats follow `budget`.
pub(crate) fn largest_grace_period(
    proof: HeartbeatProof,
    ttl: Duration,
    drift: f64,
    budget: Duration,
) -> Duration {
    let length = ttl.mul_f64(1.0 - drift);
    let interval = interval(proof, ttl, drift, budget).max(ttl / 100);
    let used = match proof {
        HeartbeatProof::Process => Duration::ZERO,
        HeartbeatProof::NextHeartbeat { gap } => wide(gap, drift).max(interval) + interval * 5 / 2,
        _ => interval * 3 / 2,
    };
    length.saturating_sub(used).min(ttl / 3)
}

/// Sends heartbeats until the session ends.
async fn beat(session: &Arc<Session>, opened: Sent) {
    if !session.needs_heartbeats() {
        return std::future::pending().await;
    }
    let shared = &session.shared;
    let proof = session.spi.proof();
    let drift = shared.config.drift;
    let interval = interval(proof, session.spi.granted_ttl(), drift, session.window.budget());
    // So short that there is time for another one.
    let limit = shared.config.request_timeout.min(match proof {
        HeartbeatProof::NextHeartbeat { .. } => interval / 2,
        _ => interval,
    });
    let longest = (limit / 16).max(RETRY_HEARTBEAT);
    let mut retry = Retry::new(Backoff { min: RETRY_HEARTBEAT, max: longest });
    let mut unconfirmed: VecDeque<Answered> = VecDeque::new();
    let mut next = opened.at + interval;
    loop {
        shared.clock.sleep_until(next).await;
        // Read before the request is handed to the client: the store counts from no earlier.
        let sent = Sent::now(&*shared.clock);
        let answer = timed("heartbeat", limit, session.spi.heartbeat()).await;
        let sent =
            if is_disabled(SafetyRule::DeadlineFromRequestStart) { Sent::now(&*shared.clock) } else { sent };
        // Before the heartbeat counts: the least that there was.
        let left = session.window.deadline().since(shared.clock.now());
        let measured =
            |outcome| telemetry::heartbeat_finished(outcome, shared.clock.now().since(sent.at), left);
        let outcome = match answer {
            Ok(heartbeat) if heartbeat.ttl.is_zero() => {
                session.end(LossReason::SessionExpired);
                return;
            }
            Ok(heartbeat) => {
                if session.window.shorten(sent.at, heartbeat.ttl) {
                    shared.watchdog.wake();
                }
                let proven = match proof {
                    _ if is_disabled(SafetyRule::ConfirmHeartbeats) => Ok(Some((sent, heartbeat))),
                    HeartbeatProof::Answer => Ok(Some((sent, heartbeat))),
                    HeartbeatProof::NextHeartbeat { gap } => {
                        let proven = confirmed_by_later(&mut unconfirmed, sent.at, gap_between(gap, drift));
                        unconfirmed.push_back(Answered { sent, at: shared.clock.now(), heartbeat });
                        // What the store grants now holds for what was sent before, too.
                        Ok(proven.map(|earlier| {
                            let ttl = earlier.heartbeat.ttl.min(heartbeat.ttl);
                            (earlier.sent, Heartbeat { ttl, ..earlier.heartbeat })
                        }))
                    }
                    _ => {
                        confirm(session, limit, &heartbeat).await.map(|yes| yes.then_some((sent, heartbeat)))
                    }
                };
                proven.map(|proven| (proven, matches!(proof, HeartbeatProof::NextHeartbeat { .. })))
            }
            Err(error) => Err(error),
        };
        match outcome {
            Ok((Some((proven, heartbeat)), _)) => {
                if let Err(reason) = session.window.credit(&*shared.clock, proven, heartbeat.ttl) {
                    session.end(reason);
                    return;
                }
                shared.status.answered();
                retry.reset();
                measured("confirmed");
                next = sent.at + interval;
            }
            // The next heartbeat, a gap later, will confirm this one.
            Ok((None, true)) => {
                measured("answered");
                next = sent.at + interval;
            }
            Ok((None, false)) => {
                measured("answered");
                debug!(
                    session = session.spi.id(),
                    "the store changed its epoch under a heartbeat; sending another"
                );
                next = shared.clock.now() + retry.next_wait();
            }
            Err(error) if error.kind() == BackendErrorKind::SessionGone => {
                session.end(LossReason::SessionExpired);
                return;
            }
            Err(error) => {
                failed(session, &error);
                measured("failed");
                if shared.config.on_disconnect == OnDisconnect::StepDown {
                    session.end(LossReason::Disconnected);
                    return;
                }
                next = shared.clock.now() + retry.next_wait();
            }
        }
        // The watchdog does the same on time; this covers a watchdog that could not.
        if session.check_window(session.window.budget()).is_err()
            && !is_disabled(SafetyRule::NeverReopenWindow)
        {
            return;
        }
    }
}

fn failed(session: &Session, error: &BackendError) {
    session.shared.status.failed(error);
    let left = session.window.deadline().since(session.shared.clock.now());
    warn!(session = session.spi.id(), %error, left = %humantime::format_duration(left), "heartbeat unanswered");
}

/// A heartbeat that waits for its confirmation.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Answered {
    sent: Sent,
    at: BootInstant,
    heartbeat: Heartbeat,
}

/// The newest of the heartbeats that were answered at least `gap` before `sent`.
///
/// From its *answer* on: the store may have carried it out only just before that, however long ago it was sent.
fn confirmed_by_later(
    unconfirmed: &mut VecDeque<Answered>,
    sent: BootInstant,
    gap: Duration,
) -> Option<Answered> {
    let mut proven = None;
    while let Some(earlier) = unconfirmed.front() {
        if earlier.at + gap > sent {
            break;
        }
        proven = unconfirmed.pop_front();
    }
    proven
}

/// Whether a read that the store's quorum stands behind confirms `heartbeat`.
async fn confirm(session: &Session, limit: Duration, heartbeat: &Heartbeat) -> Result<bool, BackendError> {
    loop {
        let probe_entry = session.probe_entry();
        let entry = probe_entry.as_ref().map(|live| &live.entry);
        match timed("confirming read", limit, session.spi.confirm(heartbeat, entry)).await? {
            Confirmation::Confirmed => return Ok(true),
            Confirmation::Unconfirmed => return Ok(is_disabled(SafetyRule::CompareEpochs)),
            // Whoever waits for it or looks after it is told; another entry can bear probe_entry.
            Confirmation::ProbeEntryGone => match probe_entry {
                Some(_) if is_disabled(SafetyRule::WatchOwnEntry) => return Ok(true),
                Some(live) => session.missed(&live),
                None => return Ok(false),
            },
        }
    }
}

/// Removes entries that withdrawn requests have made after all.
///
/// A request that was given up can sit in a frozen server and be carried out much later. So a withdrawal after an unanswered
/// request is repeated, ever more rarely, for as long as [`Graves`](super::graves::Graves) says.
async fn bury(session: &Session) {
    let shared = &session.shared;
    let first = graves::first_wait(session.spi.granted_ttl());
    loop {
        sleep(first).await;
        let due = session.graves().due(shared.clock.now());
        let leaving = due.into_iter().map(|request| async move {
            let limit = shared.config.request_timeout;
            match timed("leaving", limit, session.spi.leave(&request, None)).await {
                Ok(()) => session.graves().tried(&request, shared.clock.now()),
                Err(error) if error.is_permanent() => {
                    warn!(election = %request.election, %error, "the store refuses to remove an entry that a withdrawn request may have made");
                    session.graves().forget(&request);
                }
                Err(error) => {
                    debug!(election = %request.election, %error, "not yet known whether a withdrawn entry is gone");
                    session.graves().tried(&request, shared.clock.now());
                }
            }
        });
        stream::iter(leaving).buffer_unordered(16).collect::<()>().await;
    }
}

/// Ends the session in the store; tries until that is confirmed, or the store has let go by itself. Whether either is so.
///
/// Also when a backend has said that the session is gone: what it had seen gone may be less than that, and entries of a
/// session that lives on would block their elections.
async fn close(session: &Session) -> bool {
    let shared = &session.shared;
    let granted = session.spi.granted_ttl();
    let expired = shared.clock.now() + granted.mul_f64(1.0 + shared.config.drift) + Duration::from_secs(1);
    let mut retry = Retry::new(shared.config.retry);
    loop {
        let left = expired.since(shared.clock.now()).max(RETRY_HEARTBEAT);
        let limit = shared.config.request_timeout.min(left);
        match timed("closing the session", limit, session.spi.close()).await {
            Ok(()) => return true,
            Err(error) if error.kind() == BackendErrorKind::SessionGone => return true,
            Err(error) => {
                shared.status.failed(&error);
                if shared.clock.now() >= expired {
                    warn!(session = session.spi.id(), %error, "the session was not closed; by now it has expired");
                    return session.needs_heartbeats();
                }
                debug!(session = session.spi.id(), %error, "the session is not closed yet");
            }
        }
        retry.pause().await;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const BEAT: Heartbeat = Heartbeat { ttl: Duration::from_secs(6), epoch: 0 };

    fn at(millis: u64) -> BootInstant {
        BootInstant::from_nanos(millis * 1_000_000)
    }

    fn answered(sent: u64, answer: u64) -> Answered {
        Answered { sent: Sent { at: at(sent), wall_offset: 0 }, at: at(answer), heartbeat: BEAT }
    }

    const GAP: Duration = Duration::from_millis(1_500);

    /// Hazard Z18: an answered write is confirmed only by one that was sent long enough after it.
    #[test]
    fn an_answer_is_confirmed_by_a_later_heartbeat_only() {
        let mut unconfirmed = VecDeque::from([answered(0, 0)]);
        assert_eq!(confirmed_by_later(&mut unconfirmed, at(1_499), GAP), None);
        unconfirmed.push_back(answered(1_499, 1_499));
        assert_eq!(confirmed_by_later(&mut unconfirmed, at(1_600), GAP), Some(answered(0, 0)));
        unconfirmed.push_back(answered(1_600, 1_600));
        assert_eq!(confirmed_by_later(&mut unconfirmed, at(3_100), GAP), Some(answered(1_600, 1_600)));
        assert!(unconfirmed.is_empty());
    }

    /// Hazard Z18: a write that was long under way was carried out just before its answer, for all we know, and its
    /// server may have told nobody yet.
    #[test]
    fn the_gap_is_counted_from_the_answer() {
        let mut unconfirmed = VecDeque::from([answered(0, 1_400)]);
        assert_eq!(confirmed_by_later(&mut unconfirmed, at(2_899), GAP), None);
        assert_eq!(confirmed_by_later(&mut unconfirmed, at(2_900), GAP), Some(answered(0, 1_400)));
    }
}
