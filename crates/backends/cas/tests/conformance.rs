//! The conformance suite, without faults and with some.

use std::{
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use async_trait::async_trait;
use serde_json::{Value, json};
use tenure_cas::{
    CasBackend, CasSettings,
    memory::{CasFaults, MemoryCas, MemoryCasClient, MemoryCasOptions, MemoryEpochs, Network},
};
use tenure_core::{BootClock, Clock};
use tenure_testkit::harness::{Client, FaultInjector, Harness, HarnessCapabilities};

struct Memory {
    store: MemoryCas,
    faults: CasFaults,
    settings: CasSettings,
    seeds: AtomicU64,
    /// Ends what dead sessions have left, as any other elector would.
    collector: CasBackend<MemoryCasClient>,
}

impl Memory {
    fn new(options: MemoryCasOptions, faults: CasFaults) -> Self {
        let store = MemoryCas::with_options(options);
        let settings = CasSettings::new().with_poll_interval(Duration::from_millis(100));
        let collector = CasBackend::with_settings(store.client(0), settings.clone());
        Self { store, faults, settings, seeds: AtomicU64::new(1), collector }
    }

    /// A store with hints, and nothing that fails.
    fn healthy() -> Self {
        Self::new(MemoryCasOptions { hints: true, ..MemoryCasOptions::default() }, CasFaults::default())
    }

    /// A store without hints, whose versions are ETags, and of which a few requests fail in each way.
    fn faulty() -> Self {
        let faults = CasFaults {
            lag: Duration::from_millis(100),
            latency: Duration::from_millis(2),
            lost_requests: 0.005,
            lost_answers: 0.005,
            late_requests: 0.005,
            late_by: Duration::from_millis(500),
            repeated_swaps: 0.02,
            ..CasFaults::default()
        };
        let options =
            MemoryCasOptions { etags: true, epochs: MemoryEpochs::Known, ..MemoryCasOptions::default() };
        Self::new(options, faults)
    }

    /// Changes a record by hand, as an operator would.
    fn edit(&self, key: &str, change: impl FnOnce(&mut Value)) {
        let found = self.store.records(key).into_iter().find(|record| record.key == key);
        let mut body: Value = serde_json::from_slice(&found.expect("the record exists").body).unwrap();
        change(&mut body);
        body["nonce"] = format!("{:032x}", fastrand::u128(..)).into();
        self.store.put(key, Some(body.to_string().into_bytes()));
    }
}

#[derive(Debug)]
struct Injector(MemoryCasClient);

impl FaultInjector for Injector {
    fn cut(&self) {
        self.0.set_network(Network::Cut);
    }
    fn partition(&self) {
        self.0.set_network(Network::Partitioned);
    }
    fn drop_responses(&self) {
        self.0.set_network(Network::AnswersLost);
    }
    fn heal(&self) {
        self.0.set_network(Network::Healthy);
    }
}

#[async_trait]
impl Harness for Memory {
    fn capabilities(&self) -> HarnessCapabilities {
        HarnessCapabilities::ALL
    }

    async fn client(&self) -> Client {
        let client = self.store.client(self.seeds.fetch_add(1, Ordering::Relaxed));
        client.set_faults(self.faults);
        let backend = CasBackend::with_settings(client.clone(), self.settings.clone());
        Client { backend: Arc::new(backend), faults: Some(Arc::new(Injector(client))) }
    }

    fn ttl(&self) -> Duration {
        Duration::from_secs(2)
    }

    async fn delete_entry(&self, election: &str, session: &str, _token: u64) {
        self.edit(&format!("e/{election}"), |body| {
            let queue = body["queue"].as_array_mut().unwrap();
            let head = queue[0]["nonce"].clone();
            queue.retain(|slot| slot["session"] != session);
            if queue.first().is_some_and(|slot| slot["nonce"] != head) {
                body["token"] = (body["token"].as_u64().unwrap() + 1).into();
            }
        });
    }

    async fn expire_session(&self, session: &str) {
        self.edit(&format!("s/{session}"), |body| {
            *body = json!({ "format": body["format"], "state": "ended" });
        });
    }

    async fn add_foreign_entries(&self, _election: &str) {
        for (key, body) in FOREIGN {
            self.store.put(key, Some(body.into()));
        }
    }

    async fn foreign_entries_untouched(&self, _election: &str) -> bool {
        FOREIGN.iter().all(|(key, body)| {
            self.store.records(key).iter().any(|record| record.key == *key && record.body == body.as_bytes())
        })
    }

    async fn remaining_state(&self) -> Vec<String> {
        let clock: Arc<dyn Clock> = Arc::new(BootClock);
        self.collector.collect_garbage(&clock, 0.1).await.unwrap();
        let records = self.store.records("").into_iter().filter(|record| {
            let Ok(body) = serde_json::from_slice::<Value>(&record.body) else { return false };
            body["state"] == "live" || body["queue"].as_array().is_some_and(|queue| !queue.is_empty())
        });
        records.map(|record| record.key).collect()
    }
}

/// What tenure did not write.
const FOREIGN: [(&str, &str); 4] =
    [("e/another", "10.0.0.1"), ("e/", "x"), ("s/not-a-session", "{}"), ("e/a/b", "y")];

mod healthy {
    tenure_testkit::conformance!(async { super::Memory::healthy() });
}

mod faulty {
    tenure_testkit::conformance!(async { super::Memory::faulty() });
}
