//! The lock file of a leadership, for another process.
#![allow(missing_docs)]

use std::{sync::Arc, time::Duration};

use tenure_core::{Config, Elector, Error, StoreElector, memory::MemoryStore};
use tenure_local::{LocalBackend, lock_file};

const TEST_TIMEOUT: Duration = Duration::from_secs(20);

fn elector(directory: &std::path::Path) -> StoreElector {
    StoreElector::new(Arc::new(LocalBackend::open(directory).unwrap()), Config::new()).unwrap()
}

/// A resignation releases the lock although a duplicate of its file is open.
#[tokio::test]
async fn a_resignation_releases_the_lock_whoever_has_its_file() {
    let directory = tempfile::tempdir().unwrap();
    let (first, second) = (elector(directory.path()), elector(directory.path()));
    let leadership = first.campaign("e").await.unwrap();
    let handle = leadership.handle();
    let file = lock_file(&leadership).unwrap();
    assert!(file.is_some() && lock_file(&handle).unwrap().is_some());
    leadership.resign().await.unwrap();
    assert!(matches!(lock_file(&handle), Err(Error::Unavailable(_))), "there is no entry any more");
    let next = tokio::time::timeout(TEST_TIMEOUT, second.campaign("e")).await.unwrap().unwrap();
    assert!(next.is_leader());
    drop(file);
}

#[tokio::test]
async fn a_leadership_of_another_store_has_no_lock_file() {
    let elector = StoreElector::new(Arc::new(MemoryStore::new().backend()), Config::new()).unwrap();
    let leadership = elector.campaign("e").await.unwrap();
    assert!(lock_file(&leadership).unwrap().is_none());
}

/// The kernel ends the session with the process, so that nothing is left for any time.
#[tokio::test]
async fn a_leadership_is_over_when_its_process_ends() {
    let directory = tempfile::tempdir().unwrap();
    let elector = elector(directory.path());
    let leadership = elector.campaign("e").await.unwrap();
    assert_eq!((leadership.remaining(), leadership.valid_for()), (Duration::MAX, Duration::MAX));
    // The guard is held, so that the shutdown cannot be confirmed.
    let shutdown = elector.close_within(Duration::from_millis(50)).await;
    assert!(!shutdown.confirmed && shutdown.expires_in.is_zero(), "{shutdown:?}");
    drop(leadership);
    assert!(elector.close_within(TEST_TIMEOUT).await.confirmed);
}
