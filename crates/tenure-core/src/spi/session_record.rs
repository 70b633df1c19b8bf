//! What is left of a session once its process is dead.

use serde::{Deserialize, Serialize};

use crate::candidate;

/// Identifies a session for another process, which ends it when the process of the session is dead.
///
/// A process saves it in its [resume file](crate::Config::with_resume_file), or gives it to its supervisor
/// ([`LeadershipHandle::session_record`](crate::LeadershipHandle::session_record)). See
/// [`Backend::end_session`](super::Backend::end_session).
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[non_exhaustive]
pub struct SessionRecord {
    /// [`BackendSession::id`](super::BackendSession::id).
    pub session: String,
    /// [`BackendSession::cluster`](super::BackendSession::cluster).
    pub cluster: String,
    /// The upper half of the nonce of every entry of the session: see [`is_nonce_of_session`](Self::is_nonce_of_session).
    pub nonce: u64,
}

impl SessionRecord {
    /// A record.
    pub fn new(session: impl Into<String>, cluster: impl Into<String>, nonce: u64) -> Self {
        Self { session: session.into(), cluster: cluster.into(), nonce }
    }

    /// Whether a request with this nonce was made by the process that saved the record. Nonces of other processes differ,
    /// because the upper half is random as well.
    pub fn is_nonce_of_session(&self, nonce: u128) -> bool {
        nonce >> 64 == u128::from(self.nonce)
    }

    /// Whether `payload` is that of an entry that the process created which saved the record.
    pub fn is_payload_of_session(&self, payload: &[u8]) -> bool {
        candidate::nonce_of(payload).is_some_and(|nonce| self.is_nonce_of_session(nonce))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{CandidateId, candidate::encode};

    /// Hazard G39: a record matches the entries of its own process only.
    #[test]
    fn a_record_matches_its_own_entries() {
        let record = SessionRecord::new("7", "c", 0xabc);
        let id = CandidateId::new("me").unwrap();
        let payload = |nonce: u128| encode(&id, nonce, b"value");
        assert!(record.is_payload_of_session(&payload((0xabc << 64) | 5)));
        for other in [payload((0xabd << 64) | 5), payload(0xabc), b"10.0.0.1".to_vec()] {
            assert!(!record.is_payload_of_session(&other));
        }
    }
}
