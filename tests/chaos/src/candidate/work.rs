//! What a leader does: it acts every few milliseconds, and writes to a register that is fenced by tokens.

use std::time::Duration;

use tenure::LeadershipHandle;
use tenure_testkit::history::EventKind;
use tokio::time::{Instant, sleep};

use super::{saw, say};
use crate::{line::Line, sampler::now};

const STEP: Duration = Duration::from_millis(10);

/// Works for `length`; then, or when it is told to, it stops. Every third work listens to nobody: it is
/// dropped by its deadline, or acts outside its window.
pub(super) async fn work(leadership: LeadershipHandle, length: Duration, ttl: Duration) {
    let election = leadership.election().to_string();
    let token = leadership.fencing_token().get();
    let stop = leadership.cancellation_token();
    let stubborn = fastrand::u8(..3) == 0;
    let end = Instant::now() + length;
    while Instant::now() < end && (stubborn || !stop.is_cancelled()) {
        let at = now();
        if at > leadership.deadline().as_nanos() {
            saw(&election, token, at, EventKind::Outside);
        }
        if leadership.ensure().is_ok() {
            saw(&election, token, at, EventKind::Worked);
            write(&election, token, ttl);
        } else {
            saw(&election, token, at, EventKind::Polled);
        }
        sleep(STEP).await;
    }
}

/// Writes, now and then with a request that is long under way.
fn write(election: &str, token: u64, ttl: Duration) {
    let line = Line::Write { election: election.to_owned(), token };
    if fastrand::u8(..50) > 0 {
        return say(&line);
    }
    let delay = ttl.mul_f64(2.0 * fastrand::f64());
    tokio::spawn(async move {
        sleep(delay).await;
        say(&line);
    });
}
