//! Leaderships on a lock file, and the runtimes of the application that holds them.
#![allow(missing_docs)]

use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering::SeqCst},
    },
    time::Duration,
};

use tenure_core::{Config, Elector, StoreElector};
use tenure_local::LocalBackend;
use tokio::runtime::{Builder, Runtime};

const PATIENCE: Duration = Duration::from_secs(30);

fn elector(directory: &std::path::Path) -> StoreElector {
    StoreElector::new(Arc::new(LocalBackend::open(directory).unwrap()), Config::new()).unwrap()
}

fn runtime() -> Runtime {
    Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap()
}

/// Says when work is over.
struct Working(Arc<AtomicBool>);

impl Drop for Working {
    fn drop(&mut self) {
        self.0.store(false, SeqCst);
    }
}

/// Hazards G27, G28, case 7: the runtime of a leader is gone. Its lock is released once the work has stopped, and others lead.
#[test]
fn a_leader_whose_runtime_is_gone_releases_its_lock() {
    let directory = tempfile::tempdir().unwrap();
    let (first, second) = (elector(directory.path()), elector(directory.path()));
    let working = Arc::new(AtomicBool::new(true));
    let work = Working(Arc::clone(&working));
    let leads = runtime();
    let leadership = leads.block_on(first.campaign("e")).unwrap();
    leads.spawn(async move {
        let handle = leadership.handle();
        let work = async move {
            let _work = work;
            std::future::pending::<()>().await;
        };
        let _ = handle.run(work).await;
        drop(leadership);
    });
    let follows = runtime();
    follows.block_on(async {
        let campaign = second.campaign("e");
        let mut campaign = std::pin::pin!(campaign);
        assert!(tokio::time::timeout(Duration::from_millis(50), campaign.as_mut()).await.is_err());
        leads.shutdown_background();
        let next = tokio::time::timeout(PATIENCE, campaign).await.expect("the lock is held").unwrap();
        assert!(next.is_leader() && !working.load(SeqCst), "the work goes on beside the next leader");
        // Its engine serves it on any other runtime.
        next.resign().await.unwrap();
        let again =
            tokio::time::timeout(PATIENCE, first.campaign("e")).await.expect("it waits for itself").unwrap();
        again.resign().await.unwrap();
    });
}
