//! Shared by the tests: a backend in a temporary directory, requests, and waiting with a timeout.
#![allow(dead_code, missing_docs, unreachable_pub, reason = "no test file uses every item")]

use std::{future::Future, path::Path, sync::Arc, time::Duration};

use tempfile::TempDir;
use tenure_core::{
    BootClock, CandidateId, ElectionName, FencingToken,
    spi::{Backend, BackendError, BackendSession, Entry, EntryRequest, QueuePosition, SessionOptions},
};
use tenure_local::LocalBackend;

pub const TEST_TIMEOUT: Duration = Duration::from_secs(20);

pub fn new_backend() -> (TempDir, LocalBackend) {
    let dir = tempfile::tempdir().unwrap();
    let backend = LocalBackend::open(dir.path()).unwrap();
    (dir, backend)
}

pub async fn session(backend: &LocalBackend) -> Box<dyn BackendSession> {
    let options = SessionOptions::new(Duration::from_secs(5), Arc::new(BootClock), 0.1);
    backend.open_session(&options).await.unwrap()
}

/// Waits until `entry` leads.
pub async fn wait_turn(session: &dyn BackendSession, entry: &Entry) -> Result<FencingToken, BackendError> {
    let request = request(entry.election.as_str(), "waiting");
    let won = session.wait_turn(&request, Some(entry), &QueuePosition::new(|_| {})).await?;
    assert_eq!(won.entry, *entry);
    Ok(won.token)
}

pub fn election(name: &str) -> ElectionName {
    ElectionName::new(name).unwrap()
}

pub fn request(election_name: &str, id: &str) -> EntryRequest {
    EntryRequest {
        election: election(election_name),
        candidate: CandidateId::new(id).unwrap(),
        value: format!("value of {id}").into_bytes().into(),
        nonce: fastrand::u128(..),
    }
}

/// The names of the files in an election's directory.
pub fn files(dir: &Path, election: &str) -> Vec<String> {
    let Ok(entries) = std::fs::read_dir(dir.join("elections").join(election)) else { return Vec::new() };
    let mut names: Vec<_> = entries.map(|e| e.unwrap().file_name().into_string().unwrap()).collect();
    names.sort();
    names
}

pub async fn within<T>(what: &str, future: impl Future<Output = T>) -> T {
    tokio::time::timeout(TEST_TIMEOUT, future).await.unwrap_or_else(|_| panic!("timed out: {what}"))
}

/// Waits until `condition` holds.
pub async fn until(what: &str, mut condition: impl AsyncFnMut() -> bool) {
    within(what, async {
        while !condition().await {
            tokio::time::sleep(Duration::from_millis(2)).await;
        }
    })
    .await;
}
