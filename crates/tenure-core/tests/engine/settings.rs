//! Illegal combinations of settings are refused, and all others keep leadership.

use std::time::Duration;

use tenure_core::{Elector, Error, InvalidConfig, SimClock, memory::MemoryStore, spi::HeartbeatProof};

use crate::host::{Host, TTL, sleep, within};

/// Every combination of proof, drift bound and grace period is refused when the session is opened, or keeps leadership.
#[tokio::test(start_paused = true)]
async fn accepted_settings_keep_leadership() {
    let later = |gap| HeartbeatProof::NextHeartbeat { gap };
    let (mut kept, mut refused) = (0, 0);
    for proof in
        [HeartbeatProof::Answer, HeartbeatProof::Read, later(TTL / 10), later(TTL / 4), later(TTL / 2)]
    {
        for drift in [0.0, 0.1, 0.2, 0.3, 0.4, 0.5] {
            for grace_period in [TTL / 250, TTL / 10, TTL / 5, TTL / 3] {
                let store = MemoryStore::with_proof(proof);
                let host = Host::with(&store, "a", SimClock::new(), |c| {
                    c.with_drift(drift).with_grace_period(grace_period)
                });
                match within(TTL, host.elector.campaign("e")).await {
                    Ok(leadership) => {
                        sleep(TTL * 20).await;
                        assert!(
                            leadership.is_leader(),
                            "{proof:?}, drift {drift}, grace period {grace_period:?}"
                        );
                        kept += 1;
                    }
                    Err(Error::InvalidConfig(InvalidConfig::GracePeriod { given, max, .. })) => {
                        assert!(given == grace_period && max < grace_period);
                        refused += 1;
                    }
                    Err(error) => panic!("{proof:?}, drift {drift}, grace period {grace_period:?}: {error}"),
                }
            }
        }
    }
    assert!(kept > 60 && refused > 10, "{kept} kept, {refused} refused");
}

/// A heartbeat is confirmed only half a TTL later, and the grace period is small: leadership is kept.
#[tokio::test(start_paused = true)]
async fn a_wide_gap_keeps_leadership_with_a_small_grace_period() {
    let store = MemoryStore::with_proof(HeartbeatProof::NextHeartbeat { gap: TTL / 2 });
    let host = Host::with(&store, "a", SimClock::new(), |c| c.with_grace_period(TTL / 50));
    let leadership = host.lead().await;
    for _ in 0..500 {
        sleep(Duration::from_millis(100)).await;
        assert!(leadership.is_leader());
    }
}

/// A session whose settings are refused is not left in the store.
#[tokio::test(start_paused = true)]
async fn refused_settings_leave_no_session() {
    let store = MemoryStore::with_proof(HeartbeatProof::NextHeartbeat { gap: TTL / 2 });
    let host = Host::with(&store, "a", SimClock::new(), |c| c.with_grace_period(TTL / 3));
    let error = host.elector.campaign("e").await.unwrap_err();
    assert!(error.to_string().starts_with("grace period 3s 333ms"), "{error}");
    assert!(!error.is_retryable() && store.sessions().is_empty());
}
