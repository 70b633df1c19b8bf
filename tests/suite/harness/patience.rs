//! How long a test waits.

use std::{future::Future, time::Duration};

use tenure::Leadership;
use tenure_testkit::suite::until;

/// The outcome of what a user is told within seconds.
///
/// # Panics
/// When there is none within 10 s.
pub async fn promptly<T>(what: &str, future: impl Future<Output = T>) -> T {
    const SECONDS: Duration = Duration::from_secs(10);
    match tokio::time::timeout(SECONDS, future).await {
        Ok(outcome) => outcome,
        Err(_) => panic!("{what}: no outcome within {SECONDS:?}"),
    }
}

/// Waits until the store has confirmed two heartbeats.
///
/// # Panics
/// When the leadership is lost instead.
pub async fn goes_on(leadership: &Leadership) {
    for _ in 0..2 {
        let deadline = leadership.deadline();
        let confirmed = async || leadership.deadline() > deadline || !leadership.is_leader();
        until("a heartbeat was confirmed", confirmed).await;
        assert!(leadership.is_leader(), "{:?}", leadership.loss());
    }
}
