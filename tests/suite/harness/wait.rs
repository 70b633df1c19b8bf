//! Waits for an outcome or a condition.

use std::{future::Future, time::Duration};

use tenure::Leadership;
use tenure_testkit::suite::until;

/// The output of a future that must complete within 10 s.
///
/// # Panics
/// When it does not.
pub async fn promptly<T>(what: &str, future: impl Future<Output = T>) -> T {
    const LIMIT: Duration = Duration::from_secs(10);
    match tokio::time::timeout(LIMIT, future).await {
        Ok(outcome) => outcome,
        Err(_) => panic!("{what}: no outcome within {LIMIT:?}"),
    }
}

/// Waits until the store has confirmed two heartbeats.
///
/// # Panics
/// When the leadership is lost instead.
pub async fn wait_for_heartbeats(leadership: &Leadership) {
    for _ in 0..2 {
        let deadline = leadership.deadline();
        let confirmed = async || leadership.deadline() > deadline || !leadership.is_leader();
        until("a heartbeat was confirmed", confirmed).await;
        assert!(leadership.is_leader(), "{:?}", leadership.loss());
    }
}
