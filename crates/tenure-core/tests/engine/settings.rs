//! Illegal combinations of settings are refused, and all others keep leadership.

use std::{sync::Arc, time::Duration};

use tenure_core::{
    Backoff, CampaignOptions, Config, Elector, Error, InvalidConfig, Patience, SimClock, StatusHandle,
    StoreElector,
    memory::{MemoryStore, Proof},
};

use crate::host::{Host, TTL, sleep, within};

/// Every combination of proof, drift bound and grace period is refused when the session is opened, or keeps leadership.
#[tokio::test(start_paused = true)]
async fn accepted_settings_keep_leadership() {
    let later = |gap| Proof::LaterHeartbeats { gap };
    let (mut kept, mut refused) = (0, 0);
    for proof in [Proof::Answer, Proof::Read, later(TTL / 10), later(TTL / 4), later(TTL / 2)] {
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
    let store = MemoryStore::with_proof(Proof::LaterHeartbeats { gap: TTL / 2 });
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
    let store = MemoryStore::with_proof(Proof::LaterHeartbeats { gap: TTL / 2 });
    let host = Host::with(&store, "a", SimClock::new(), |c| c.with_grace_period(TTL / 3));
    let error = host.elector.campaign("e").await.unwrap_err();
    assert!(error.to_string().starts_with("grace period 3s 333ms"), "{error}");
    assert!(!error.is_retryable() && store.sessions().is_empty());
}

/// Durations that would overflow a clock are refused in words, wherever they are given, and those that are allowed overflow
/// nothing.
#[tokio::test(start_paused = true)]
async fn absurd_durations_are_refused_and_panic_nowhere() {
    let store = MemoryStore::new();
    let ever = |min| Backoff { min, max: Duration::MAX };
    let config = Config::new;
    let mut configs = Vec::new();
    for absurd in [Duration::ZERO, Duration::MAX] {
        configs.push(("ttl", config().with_ttl(absurd)));
        configs.push(("grace period", config().with_grace_period(absurd)));
        configs.push(("request timeout", config().with_request_timeout(absurd)));
        configs.push(("shutdown timeout", config().with_shutdown_timeout(absurd)));
    }
    for min in [Duration::ZERO, Duration::from_secs(1), Duration::MAX] {
        configs.push(("retry backoff", config().with_retry(ever(min))));
        configs.push(("work backoff", config().with_work_backoff(ever(min))));
    }
    for (setting, config) in configs {
        let error = StoreElector::with_clock(Arc::new(store.backend()), config, Arc::new(SimClock::new()));
        let text = error.unwrap_err().to_string();
        assert!(
            text.starts_with(setting) && text.contains("is not allowed") && text.contains("must be"),
            "{text}"
        );
    }
    let longest = Backoff { min: Config::MAX_WAIT, max: Config::MAX_WAIT };
    let host = Host::with(&store, "a", SimClock::new(), |c| {
        c.with_ttl(Config::MAX_TTL)
            .with_request_timeout(Config::MAX_WAIT)
            .with_shutdown_timeout(Config::MAX_WAIT)
            .with_retry(longest)
            .with_work_backoff(longest)
    });
    host.elector.check().await.unwrap();
    assert!(!host.elector.diagnose().await.is_empty());
    assert!(host.elector.elections().await.unwrap().is_empty());
    let patience = CampaignOptions::new().with_patience(Patience::AtMost(Duration::MAX));
    let leadership = host.elector.campaign_with("e", patience).await.unwrap().unwrap();
    let error = leadership.run_with_grace_period(Duration::MAX, async {}).await.unwrap_err();
    assert!(error.to_string().contains("is not allowed with ttl 1day"), "{error}");
    sleep(Config::MAX_TTL * 3).await;
    assert!(leadership.is_leader());
    leadership.resign().await.unwrap();
    let elector: Arc<dyn Elector> = host.elector.clone();
    let status = StatusHandle::with_refresh(elector, "e", Duration::MAX).unwrap();
    sleep(TTL).await;
    assert!(status.get().known);
}
