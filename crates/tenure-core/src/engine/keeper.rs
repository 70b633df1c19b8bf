//! The task of a session: heartbeats, their confirmation, and closing.

use std::{collections::VecDeque, sync::Arc, time::Duration};

use tracing::{debug, warn};

use super::{
    retry::{Retry, timed},
    session::Session,
};
use crate::{
    Backoff, LossReason, Moment, OnDisconnect,
    spi::{BackendError, BackendErrorKind, Confirmation, Heartbeat, Proof},
};

/// Keeps `session`, asked for at `opened`, alive until it ends or nothing needs it; then closes it.
pub(crate) async fn keep(session: Arc<Session>, opened: Moment) {
    let shared = &session.shared;
    // Also when a backend panics: whoever waits for the closing must not wait for ever.
    let _closed = session.closed.clone().drop_guard();
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
        () = beat(&session, opened) => {}
        () = bury(&session) => {}
    }
    // First the work, then the entries: whoever is next must find nothing running.
    session.entries.close();
    session.entries.wait().await;
    close(&session).await;
    shared.status.session_closed(&session.spi.id());
}

/// The first wait before an unanswered heartbeat is sent again. The longest stays a small part of
/// the TTL: there is little time left.
const RETRY_HEARTBEAT: Duration = Duration::from_millis(20);

/// How often a heartbeat is sent, and how heartbeats are confirmed.
fn interval(proof: Proof, ttl: Duration) -> Duration {
    match proof {
        Proof::Later { gap } => gap.min(ttl / 3),
        _ => ttl / 3,
    }
}

/// Sends heartbeats until the session ends.
async fn beat(session: &Arc<Session>, opened: Moment) {
    if !session.needs_heartbeats() {
        return std::future::pending().await;
    }
    let shared = &session.shared;
    let proof = session.spi.proof();
    let interval = interval(proof, session.spi.granted_ttl());
    let limit = shared.config.request_timeout.min(session.spi.granted_ttl() / 3);
    let longest = (limit / 8).max(RETRY_HEARTBEAT);
    let mut retry = Retry::new(Backoff { min: RETRY_HEARTBEAT, max: longest });
    let mut unconfirmed: VecDeque<(Moment, Heartbeat)> = VecDeque::new();
    let mut next = opened + interval;
    loop {
        shared.clock.sleep_until(next).await;
        // Read before the request is handed to the client: the store counts from no earlier.
        let sent = shared.clock.now();
        let outcome = match timed("heartbeat", limit, session.spi.heartbeat()).await {
            Ok(heartbeat) if heartbeat.ttl.is_zero() => {
                session.end(LossReason::SessionExpired);
                return;
            }
            Ok(heartbeat) => {
                let proven = match proof {
                    Proof::Answer => Ok(Some((sent, heartbeat))),
                    Proof::Later { gap } => {
                        let proven = confirmed_by_later(&mut unconfirmed, sent, gap);
                        unconfirmed.push_back((sent, heartbeat));
                        Ok(proven)
                    }
                    _ => {
                        confirm(session, limit, &heartbeat).await.map(|yes| yes.then_some((sent, heartbeat)))
                    }
                };
                proven.map(|proven| (proven, matches!(proof, Proof::Later { .. })))
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
                next = sent + interval;
            }
            // The next heartbeat, a gap later, will confirm this one.
            Ok((None, true)) => next = sent + interval,
            Ok((None, false)) => {
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
                if shared.config.on_disconnect == OnDisconnect::LoseAtOnce {
                    session.end(LossReason::Disconnected);
                    return;
                }
                next = shared.clock.now() + retry.next_wait();
            }
        }
        // The watchdog does the same on time; this covers a watchdog that could not.
        if session.check_window(session.window.budget()).is_err() {
            return;
        }
    }
}

fn failed(session: &Session, error: &BackendError) {
    session.shared.status.failed(error);
    let left = session.window.deadline().since(session.shared.clock.now());
    warn!(session = session.spi.id(), %error, left = %humantime::format_duration(left), "heartbeat unanswered");
}

/// The newest of the answered heartbeats that were sent at least `gap` before `sent`.
fn confirmed_by_later(
    unconfirmed: &mut VecDeque<(Moment, Heartbeat)>,
    sent: Moment,
    gap: Duration,
) -> Option<(Moment, Heartbeat)> {
    let mut proven = None;
    while let Some((earlier, _)) = unconfirmed.front() {
        if *earlier + gap > sent {
            break;
        }
        proven = unconfirmed.pop_front();
    }
    proven
}

/// Whether a read that the store's quorum stands behind confirms `heartbeat`.
async fn confirm(session: &Session, limit: Duration, heartbeat: &Heartbeat) -> Result<bool, BackendError> {
    loop {
        let witness = session.live().values().find(|live| !live.gone.is_cancelled()).cloned();
        let entry = witness.as_ref().map(|live| &live.entry);
        match timed("confirming read", limit, session.spi.confirm(heartbeat, entry)).await? {
            Confirmation::Confirmed => return Ok(true),
            Confirmation::Unconfirmed => return Ok(false),
            // Its own task finds out what became of it; another entry can bear witness.
            Confirmation::WitnessGone => match witness {
                Some(live) => live.gone.cancel(),
                None => return Ok(false),
            },
        }
    }
}

/// Removes entries that withdrawn requests have made after all, for as long as the session lives.
///
/// A request that was given up can sit in a frozen server and be carried out much later. So a
/// withdrawal after an unanswered request is repeated, ever more rarely.
async fn bury(session: &Session) {
    let shared = &session.shared;
    let first = session.spi.granted_ttl() / 3;
    loop {
        tokio::time::sleep(first).await;
        let due = session.graves().due(shared.clock.now());
        for request in due {
            let limit = shared.config.request_timeout;
            match timed("leaving", limit, session.spi.leave(&request, None)).await {
                Ok(()) => session.graves().left(&request, shared.clock.now()),
                Err(error) => {
                    debug!(election = %request.election, %error, "not yet known whether a withdrawn entry is gone");
                }
            }
        }
    }
}

/// Ends the session in the store; tries until that is confirmed, or the store has let go by itself.
async fn close(session: &Session) {
    let shared = &session.shared;
    if session.ended().is_some_and(|end| end.reason == LossReason::SessionExpired) {
        return;
    }
    let granted = session.spi.granted_ttl();
    let expired = shared.clock.now() + granted.mul_f64(1.0 + shared.config.drift) + Duration::from_secs(1);
    let mut retry = Retry::new(shared.config.retry);
    loop {
        match timed("closing the session", shared.config.request_timeout, session.spi.close()).await {
            Ok(()) => return,
            Err(error) if error.kind() == BackendErrorKind::SessionGone => return,
            Err(error) => {
                shared.status.failed(&error);
                if shared.clock.now() >= expired {
                    warn!(session = session.spi.id(), %error, "the session was not closed; by now it has expired");
                    return;
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

    fn at(millis: u64) -> Moment {
        Moment::from_nanos(millis * 1_000_000)
    }

    /// Hazard Z18: an answered write is confirmed only by one that was sent long enough after it.
    #[test]
    fn an_answer_is_confirmed_by_a_later_heartbeat_only() {
        let gap = Duration::from_millis(1_500);
        let mut unconfirmed = VecDeque::from([(at(0), BEAT)]);
        assert_eq!(confirmed_by_later(&mut unconfirmed, at(1_499), gap), None);
        unconfirmed.push_back((at(1_499), BEAT));
        assert_eq!(confirmed_by_later(&mut unconfirmed, at(1_600), gap), Some((at(0), BEAT)));
        unconfirmed.push_back((at(1_600), BEAT));
        assert_eq!(confirmed_by_later(&mut unconfirmed, at(3_100), gap), Some((at(1_600), BEAT)));
        assert!(unconfirmed.is_empty());
    }
}
