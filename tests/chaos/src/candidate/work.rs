//! The work of a leader: it acts every few milliseconds, and writes to a register that checks fencing tokens.

use std::time::Duration;

use tenure::LeadershipHandle;
use tenure_testkit::history::EventKind;
use tokio::time::{Instant, sleep};

use super::reporter::{report, report_event};
use crate::{message::Message, sampler::now};

const STEP_INTERVAL: Duration = Duration::from_millis(10);

/// Works for `length`, or until it is cancelled. One work in three ignores the cancellation: either it is dropped by its
/// deadline, or the history shows that it acted outside its window.
pub(super) async fn work(leadership: LeadershipHandle, length: Duration, ttl: Duration) {
    let election = leadership.election().to_string();
    let token = leadership.fencing_token().get();
    let cancellation = leadership.cancellation_token();
    let ignores_cancellation = fastrand::u8(..3) == 0;
    let end = Instant::now() + length;
    while Instant::now() < end && (ignores_cancellation || !cancellation.is_cancelled()) {
        let at = now();
        if at > leadership.deadline().as_nanos() {
            report_event(&election, token, at, EventKind::Outside);
        }
        if leadership.ensure().is_ok() {
            report_event(&election, token, at, EventKind::Worked);
            write(&election, token, ttl);
        } else {
            report_event(&election, token, at, EventKind::Polled);
        }
        sleep(STEP_INTERVAL).await;
    }
}

/// Writes to the register. One write in fifty is delayed by up to two TTLs.
fn write(election: &str, token: u64, ttl: Duration) {
    let message = Message::Write { election: election.to_owned(), token };
    if fastrand::u8(..50) > 0 {
        return report(&message);
    }
    let delay = ttl.mul_f64(2.0 * fastrand::f64());
    tokio::spawn(async move {
        sleep(delay).await;
        report(&message);
    });
}
