//! Guarantees S1 and S2 while connections, the API server and its watch cache fail, in random order.

use std::{
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use fastrand::Rng;
use tempfile::NamedTempFile;
use tenure_core::{CandidateId, Config, Elector as _, LeadershipHandle, StoreElector};
use tenure_testkit::{harness::FaultInjector as _, proxy::Proxy, suite::until};

use crate::api_server::{ApiServer, backend_by, write_kubeconfig};

const CANDIDATES: usize = 3;
const FAULTS: usize = 12;

/// All terms that have begun.
#[derive(Clone, Debug, Default)]
struct AllTerms(Arc<Mutex<Vec<LeadershipHandle>>>);

impl AllTerms {
    fn add(&self, term: LeadershipHandle) {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).push(term);
    }

    fn count(&self) -> usize {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).len()
    }

    /// Whether somebody leads.
    ///
    /// # Panics
    /// If two do.
    fn leads(&self) -> bool {
        let terms = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let leading: Vec<_> = terms.iter().filter(|term| term.is_leader()).collect();
        assert!(leading.len() <= 1, "two candidates lead at the same time: {leading:?}");
        !leading.is_empty()
    }
}

/// Hazards K4, K5: also labels that are patched, and watches that end, lag or were compacted.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn at_most_one_leads_whatever_fails() {
    let seed = fastrand::u64(..);
    println!("seed {seed}");
    let mut random = Rng::with_seed(seed);
    let server = ApiServer::start();
    let terms = AllTerms::default();
    let (mut electors, mut campaigns, mut proxies, mut files) = (vec![], vec![], vec![], vec![]);
    for n in 0..CANDIDATES {
        let (proxy, file) = (Proxy::start(server.endpoint()).await.unwrap(), NamedTempFile::new().unwrap());
        write_kubeconfig(file.path(), &proxy.endpoint(), "secret");
        let backend = backend_by(file.path(), Duration::from_millis(500));
        let config = Config::new()
            .with_ttl(Duration::from_secs(1))
            .with_id(CandidateId::new(&format!("c{n}")).unwrap());
        let elector = Arc::new(StoreElector::new(Arc::new(backend), config).unwrap());
        let (campaigning, terms) = (Arc::clone(&elector), terms.clone());
        let resigns = n == 0;
        campaigns.push(tokio::spawn(async move {
            while let Ok(leadership) = campaigning.campaign("e").await {
                terms.add(leadership.handle());
                if resigns {
                    let _ = leadership.resign().await;
                } else {
                    leadership.lost().await;
                }
            }
        }));
        electors.push(elector);
        proxies.push(proxy);
        files.push(file);
    }
    for n in 0..FAULTS {
        until("somebody leads", async || terms.leads()).await;
        let began = terms.count();
        let proxy = &proxies[random.usize(..CANDIDATES)];
        match random.u8(..8) {
            0 => proxy.cut(),
            1 => proxy.partition(),
            2 => proxy.drop_responses(),
            3 => server.freeze(),
            4 => proxies.iter().for_each(|proxy| proxy.partition()),
            5 => server.stop_watches(true),
            6 => {
                server.compact();
                server.end_watches();
            }
            _ => {}
        }
        // Until the leader has lost, or is found not to be concerned.
        let requests = server.executed() + random.usize(1..20);
        until("the fault has an effect, or none", async || {
            if patches_label(n) {
                server.edit("e", |lease| lease["metadata"]["labels"]["touched"] = n.to_string().into());
            }
            !terms.leads() || terms.count() > began || server.executed() > requests
        })
        .await;
        server.thaw();
        server.stop_watches(false);
        proxies.iter().for_each(Proxy::heal);
        proxies.iter().for_each(Proxy::reset_connections);
    }
    for elector in &electors {
        elector.close().await;
    }
    for campaign in campaigns {
        campaign.await.unwrap();
    }
    assert!(!terms.leads());
    let terms = terms.0.lock().unwrap_or_else(PoisonError::into_inner);
    let tokens: Vec<_> = terms.iter().map(LeadershipHandle::fencing_token).collect();
    assert!(tokens.is_sorted_by(|a, b| a < b), "{tokens:?}");
    assert!(terms.len() > 2, "{tokens:?}");
    assert_eq!(server.holder("e"), "", "nothing is left");
}

/// During every third fault somebody patches a label all the time.
fn patches_label(fault: usize) -> bool {
    fault.is_multiple_of(3)
}
