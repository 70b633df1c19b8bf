//! Leaderships in the local store when runtimes of the application end.
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

const TEST_TIMEOUT: Duration = Duration::from_secs(30);

fn elector(directory: &std::path::Path) -> StoreElector {
    StoreElector::new(Arc::new(LocalBackend::open(directory).unwrap()), Config::new()).unwrap()
}

fn runtime() -> Runtime {
    Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap()
}

/// Clears the flag when the work is dropped.
struct ClearOnDrop(Arc<AtomicBool>);

impl Drop for ClearOnDrop {
    fn drop(&mut self) {
        self.0.store(false, SeqCst);
    }
}

/// Hazards G27, G28, case 7: the runtime of a leader has been shut down. Its lock is released once the work has stopped, and
/// other candidates lead.
#[test]
fn a_leader_whose_runtime_is_gone_releases_its_lock() {
    let directory = tempfile::tempdir().unwrap();
    let (first, second) = (elector(directory.path()), elector(directory.path()));
    let working = Arc::new(AtomicBool::new(true));
    let clear_on_drop = ClearOnDrop(Arc::clone(&working));
    let leader_runtime = runtime();
    let leadership = leader_runtime.block_on(first.campaign("e")).unwrap();
    leader_runtime.spawn(async move {
        let handle = leadership.handle();
        let work = async move {
            let _clear_on_drop = clear_on_drop;
            std::future::pending::<()>().await;
        };
        let _ = handle.run(work).await;
        drop(leadership);
    });
    let follower_runtime = runtime();
    follower_runtime.block_on(async {
        let campaign = second.campaign("e");
        let mut campaign = std::pin::pin!(campaign);
        assert!(tokio::time::timeout(Duration::from_millis(50), campaign.as_mut()).await.is_err());
        leader_runtime.shutdown_background();
        let next =
            tokio::time::timeout(TEST_TIMEOUT, campaign).await.expect("the lock was not released").unwrap();
        assert!(
            next.is_leader() && !working.load(SeqCst),
            "the work continues while another candidate leads"
        );
        // The engine of the first elector also serves other runtimes.
        next.resign().await.unwrap();
        let again = tokio::time::timeout(TEST_TIMEOUT, first.campaign("e"))
            .await
            .expect("the first elector still holds the lock")
            .unwrap();
        again.resign().await.unwrap();
    });
}
