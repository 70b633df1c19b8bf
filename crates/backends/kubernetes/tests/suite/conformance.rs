//! The conformance suite.

use std::{
    sync::{Arc, Mutex},
    time::Duration,
};

use async_trait::async_trait;
use serde_json::{Value, json};
use tempfile::NamedTempFile;
use tenure_testkit::{
    harness::{Client, Harness, HarnessCapabilities},
    proxy::Proxy,
};

use crate::api_server::{ApiServer, backend_by, write_kubeconfig};

struct Kubernetes {
    server: ApiServer,
    /// The kubeconfigs of the clients.
    files: Mutex<Vec<NamedTempFile>>,
}

/// Leases that tenure has not written.
const FOREIGN: [(&str, &str); 2] = [("scheduler", "node-1_0c9d"), ("node-7", "node-7")];

fn session_of(lease: &Value) -> &Value {
    &lease["metadata"]["annotations"]["tenure/session"]
}

#[async_trait]
impl Harness for Kubernetes {
    fn capabilities(&self) -> HarnessCapabilities {
        HarnessCapabilities::ALL
    }

    async fn client(&self) -> Client {
        let proxy = Proxy::start(self.server.endpoint()).await.expect("a loopback port can be bound");
        let file = NamedTempFile::new().unwrap();
        write_kubeconfig(file.path(), &proxy.endpoint(), "secret");
        let backend = backend_by(file.path(), Duration::from_secs(1));
        self.files.lock().unwrap().push(file);
        Client { backend: Arc::new(backend), faults: Some(Arc::new(proxy)) }
    }

    fn ttl(&self) -> Duration {
        Duration::from_secs(4)
    }

    async fn delete_entry(&self, election: &str, session: &str, _token: u64) {
        assert_eq!(session_of(&self.server.lease(election).unwrap()), session);
        self.server.delete(election);
    }

    async fn expire_session(&self, session: &str) {
        let leases = self.server.leases();
        let lease =
            leases.iter().find(|lease| session_of(lease) == session).expect("the session holds a lease");
        let name = lease["metadata"]["name"].as_str().unwrap();
        self.server.edit(name, |lease| lease["spec"]["holderIdentity"] = "".into());
    }

    async fn add_foreign_entries(&self, _election: &str) {
        for (name, holder) in FOREIGN {
            self.server.edit(name, |lease| {
                lease["spec"] = json!({ "holderIdentity": holder, "leaseDurationSeconds": 15 });
            });
        }
    }

    async fn foreign_entries_untouched(&self, _election: &str) -> bool {
        FOREIGN.iter().all(|(name, holder)| self.server.holder(name) == *holder)
    }

    async fn remaining_state(&self) -> Vec<String> {
        let held = self.server.leases().into_iter().filter(|lease| session_of(lease).is_string());
        held.map(|lease| lease.to_string()).collect()
    }
}

tenure_testkit::conformance!(async { Kubernetes { server: ApiServer::start(), files: Mutex::default() } });
