//! The metrics. There is only one test, because the recorder is global.

use std::{collections::HashMap, sync::Arc, time::Duration};

use metrics_util::debugging::{DebugValue, DebuggingRecorder, Snapshotter};
use tenure_core::{
    CandidateId, Config, Elector, LossReason, SimClock, StoreElector, memory::MemoryStore, metrics, spi,
};

/// All series by `name{label=value}`, summed over all snapshots, because each snapshot starts at zero.
#[derive(Debug, Default)]
struct Series(HashMap<String, f64>);

impl Series {
    fn read(&mut self, recorded: &Snapshotter) {
        for (key, _, _, value) in recorded.snapshot().into_vec() {
            let key = key.key();
            let labels: Vec<_> =
                key.labels().map(|label| format!("{}={}", label.key(), label.value())).collect();
            let value = match value {
                DebugValue::Counter(count) => count as f64,
                DebugValue::Gauge(value) => value.into_inner(),
                DebugValue::Histogram(values) => values.len() as f64,
            };
            *self.0.entry(format!("{}{{{}}}", key.name(), labels.join(","))).or_default() += value;
        }
    }
}

impl std::ops::Index<&str> for Series {
    type Output = f64;
    fn index(&self, name: &str) -> &f64 {
        self.0.get(name).unwrap_or_else(|| panic!("there is no {name} in {self:?}"))
    }
}

#[tokio::test(start_paused = true)]
async fn metrics_report_leadership_transitions_and_heartbeats() {
    let recorder = DebuggingRecorder::new();
    let recorded = recorder.snapshotter();
    recorder.install().unwrap();
    metrics::describe();

    let store = MemoryStore::new();
    let elector = |id: &str| {
        let config = Config::new().with_id(CandidateId::new(id).unwrap());
        let backend = store.backend();
        let link = backend.link().clone();
        let elector = StoreElector::with_clock(Arc::new(backend), config, Arc::new(SimClock::new())).unwrap();
        (Arc::new(elector), link)
    };
    let ((a, link), (b, _)) = (elector("a"), elector("b"));
    let first = a.campaign("e").await.unwrap();
    let next = {
        let b = Arc::clone(&b);
        tokio::spawn(async move { b.campaign("e").await.unwrap() })
    };
    tokio::time::sleep(Duration::from_secs(20)).await;
    let mut now = Series::default();
    now.read(&recorded);
    assert_eq!(now["tenure_is_leader{election=e}"], 1.0, "one elector of this process leads: {now:?}");
    assert_eq!(now["tenure_transitions_total{election=e,reason=elected}"], 1.0);
    assert_eq!(now["tenure_fencing_token{election=e}"], first.fencing_token().get() as f64);
    assert_eq!(now["tenure_campaign_wait_seconds{election=e}"], 1.0);
    assert!(now["tenure_heartbeat_seconds{outcome=confirmed}"] >= 4.0, "{now:?}");
    let left = now["tenure_time_to_deadline_seconds{}"];
    assert!((3.0..9.0).contains(&left), "before the heartbeat was applied: {left}");
    assert_eq!(now["tenure_ttl_seconds{}"], 10.0, "the granted one");

    link.cut();
    assert_eq!(first.lost().await, LossReason::Deadline);
    drop(first);
    let second = next.await.unwrap();
    now.read(&recorded);
    assert_eq!(now["tenure_transitions_total{election=e,reason=deadline}"], 1.0, "{now:?}");
    assert!(now["tenure_store_failures_total{}"] > 0.0);
    assert!(now["tenure_heartbeat_seconds{outcome=failed}"] > 0.0);
    let second_token = second.fencing_token();
    second.resign().await.unwrap();
    spi::note_foreign_entries("e", 3);
    store.wipe_with_tokens();
    let third = b.campaign("e").await.unwrap();
    assert!(third.fencing_token() < second_token);
    third.resign().await.unwrap();
    now.read(&recorded);
    assert_eq!(now["tenure_is_leader{election=e}"], 0.0, "{now:?}");
    assert_eq!(now["tenure_transitions_total{election=e,reason=resigned}"], 2.0);
    assert_eq!(now["tenure_foreign_entries_total{election=e}"], 3.0);
    assert_eq!(now["tenure_token_regressions_total{election=e}"], 1.0);
}
