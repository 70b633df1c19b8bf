//! The suite that every backend has to pass.

use std::{sync::Arc, time::Duration};

use directory_store::DirectoryStore;
use serde_json::{Value, json};
use tempfile::TempDir;
use tenure_cas::{CasBackend, CasSettings, CasStore as _, Epoch, Freshness, Swap};
use tenure_core::BootClock;
use tenure_testkit::harness::{Client, Harness, HarnessCapabilities};

/// A directory of its own for each case.
struct Directory(TempDir);

impl Directory {
    fn store(&self) -> DirectoryStore {
        DirectoryStore::open(self.0.path()).unwrap()
    }

    /// Changes a record by hand, as an operator would. Every body has a nonce of its own.
    async fn edit(&self, key: &str, change: impl Fn(&mut Value)) {
        let store = self.store();
        loop {
            let record = store.read(key, Freshness::Fresh).await.unwrap().unwrap();
            let mut body: Value = serde_json::from_slice(&record.body).unwrap();
            change(&mut body);
            body["nonce"] = format!("{:032x}", fastrand::u128(..)).into();
            let body = body.to_string().into_bytes();
            let swap = store.swap(key, Some(&record.version), Epoch::default(), &body);
            if swap.await.unwrap() != Swap::Conflict {
                return;
            }
        }
    }
}

#[async_trait::async_trait]
impl Harness for Directory {
    fn capabilities(&self) -> HarnessCapabilities {
        HarnessCapabilities::NONE.entry_deletion(true).session_expiry(true).foreign_entries(true)
    }

    async fn client(&self) -> Client {
        let settings = CasSettings::new().with_poll_interval(Duration::from_millis(100));
        Client { backend: Arc::new(CasBackend::with_settings(self.store(), settings)), faults: None }
    }

    fn ttl(&self) -> Duration {
        Duration::from_secs(5)
    }

    async fn delete_entry(&self, election: &str, session: &str, _token: u64) {
        let remove = |body: &mut Value| {
            let queue = body["queue"].as_array_mut().unwrap();
            let head = queue[0]["nonce"].clone();
            queue.retain(|slot| slot["session"] != session);
            // A new head has a new token.
            if queue.first().is_some_and(|slot| slot["nonce"] != head) {
                body["token"] = (body["token"].as_u64().unwrap() + 1).into();
            }
        };
        self.edit(&format!("e/{election}"), remove).await;
    }

    async fn expire_session(&self, session: &str) {
        let end = |body: &mut Value| *body = json!({ "format": body["format"], "state": "ended" });
        self.edit(&format!("s/{session}"), end).await;
    }

    async fn add_foreign_entries(&self, _election: &str) {
        for (file, body) in FOREIGN {
            std::fs::write(self.0.path().join(file), body).unwrap();
        }
        std::fs::create_dir(self.0.path().join("e/folder")).unwrap();
    }

    async fn foreign_entries_untouched(&self, _election: &str) -> bool {
        FOREIGN.iter().all(|(file, body)| std::fs::read(self.0.path().join(file)).unwrap() == body.as_bytes())
    }

    async fn remaining_state(&self) -> Vec<String> {
        let store = self.store();
        // As each elector does now and then.
        CasBackend::new(store.clone()).collect_garbage(&(Arc::new(BootClock) as _), 0.1).await.unwrap();
        let (sessions, elections) = (store.list("s/").await.unwrap(), store.list("e/").await.unwrap());
        let left = sessions.into_iter().chain(elections).filter(|record| {
            let Ok(body) = serde_json::from_slice::<Value>(&record.body) else { return false };
            body["state"] == "live" || body["queue"].as_array().is_some_and(|queue| !queue.is_empty())
        });
        left.map(|record| record.key).collect()
    }
}

/// What tenure did not write.
const FOREIGN: [(&str, &str); 3] =
    [("notes.txt", "mine"), ("e/another", "10.0.0.1"), ("s/not-a-session", "{}")];

tenure_testkit::conformance!(async { Directory(tempfile::tempdir().unwrap()) });
