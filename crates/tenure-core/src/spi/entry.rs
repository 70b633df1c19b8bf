//! Entries: what a candidate stores to take part in an election, and their payload.

use std::sync::Arc;

use super::{BackendError, BackendErrorKind};
use crate::{Candidate, CandidateId, ElectionName, candidate};

/// A candidate's request to enter an election.
#[derive(Clone, Debug)]
pub struct EntryRequest {
    /// The election.
    pub election: ElectionName,
    /// The candidate.
    pub candidate: CandidateId,
    /// The value that others can read, at most 64 KiB.
    pub value: Arc<[u8]>,
    /// Identifies this attempt. Every entry has a new one.
    pub nonce: u128,
}

impl EntryRequest {
    /// The bytes to store in the entry; [`Candidate::decode`] reads them. They contain the nonce, so that no two requests
    /// have the same payload.
    pub fn payload(&self) -> Vec<u8> {
        candidate::encode(&self.candidate, self.nonce, &self.value)
    }
}

/// A candidate's entry in the store.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Entry {
    /// The election.
    pub election: ElectionName,
    /// The entry's key, path or file name, in the format of the backend.
    pub key: Arc<str>,
    /// The number that distinguishes this entry from an earlier one with the same key: create revision, czxid, counter.
    pub version: u64,
}

/// What an [`EntryWatcher`](super::EntryWatcher) reports of an entry.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum EntryEvent {
    /// The entry no longer exists, or no longer belongs to this session.
    Deleted,
    /// The candidate was asked to resign.
    ResignRequested,
}

/// Marks `payload` as that of an entry whose candidate is asked to resign. Returns `None` when it is a foreign payload,
/// one that [`EntryRequest::payload`] has not encoded.
pub fn mark_resign_requested(payload: &[u8]) -> Option<Vec<u8>> {
    candidate::mark_resign_requested(payload)
}

/// Whether `payload` was marked by [`mark_resign_requested`].
pub fn is_resign_requested(payload: &[u8]) -> bool {
    candidate::is_resign_requested(payload)
}

/// The payload with which [`BackendSession::update`](super::BackendSession::update) replaces the payload it `found`. A resign
/// request in `found` is kept: it may have been written just before the update.
pub fn replacement_payload(found: &[u8], request: &EntryRequest) -> Vec<u8> {
    let payload = request.payload();
    if is_resign_requested(found) { mark_resign_requested(&payload).unwrap_or(payload) } else { payload }
}

/// The error that [`Backend::request_resign`](super::Backend::request_resign) returns when the leader is a foreign entry.
pub fn foreign_leader_error(leader: &Candidate) -> BackendError {
    BackendError::new(
        BackendErrorKind::Invalid,
        format!(
            "cannot ask the leader {} to resign: it was not entered by tenure and reads no resign requests; stop the program \
             that entered it",
            leader.id
        ),
    )
}
