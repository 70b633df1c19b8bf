//! Where things lie in etcd, and which keys are candidates.
//!
//! The layout is that of Go's `concurrency.Election` (`client/v3/concurrency/election.go`):
//! an entry is `PREFIX/ELECTION/HEX(lease)`, and whoever has the lowest create
//! revision leads. So a Go candidate at `PREFIX/ELECTION` stands in the same queue.

use etcd_client::KeyValue;
use tenure_core::{Candidate, ElectionName, FencingToken};

/// Builds keys below one prefix.
#[derive(Clone, Debug)]
pub(crate) struct Keys {
    prefix: String,
}

impl Keys {
    /// `prefix` has no slash at its end.
    pub(crate) fn new(prefix: &str) -> Self {
        Self { prefix: prefix.to_owned() }
    }

    /// What all entries of `election` begin with.
    pub(crate) fn election(&self, election: &ElectionName) -> String {
        format!("{}/{election}/", self.prefix)
    }

    /// The entry of `lease` in `election`: Go's `fmt.Sprintf("%s/%x", pfx, leaseID)`.
    pub(crate) fn entry(&self, election: &ElectionName, lease: i64) -> String {
        format!("{}/{election}/{lease:x}", self.prefix)
    }

    /// How much of an entry's key is the prefix of its election.
    pub(crate) fn election_within(key: &str) -> usize {
        key.rfind('/').map_or(0, |slash| slash + 1)
    }

    /// The mark that the request of this nonce has been withdrawn; see [`crate::election::withdrawal`].
    ///
    /// No election's name may have a `~`, so that no candidate can lie here.
    pub(crate) fn withdrawn(&self, lease: i64, nonce: u128) -> String {
        format!("{}/~withdrawn/{lease:x}/{nonce:032x}", self.prefix)
    }

    /// A key that a read of nothing in particular may name.
    pub(crate) fn probe(&self) -> String {
        format!("{}/~probe", self.prefix)
    }
}

/// The name of the election whose entries begin with `election`.
pub(crate) fn name(election: &str) -> &str {
    let path = election.trim_end_matches('/');
    path.rsplit_once('/').map_or(path, |(_, name)| name)
}

/// Whether `kv`, found under `election` (with its slash), is a candidate.
///
/// A candidate, Go's or ours, is named after the lease that it hangs on. Go waits for
/// every key under the prefix, whatever it is; we wait for candidates only. The two
/// can still never both lead: each waits for every *candidate* ahead of it.
pub(crate) fn is_candidate(election: &str, kv: &KeyValue) -> bool {
    names_its_lease(election, kv.key(), kv.lease())
}

pub(crate) fn names_its_lease(election: &str, key: &[u8], lease: i64) -> bool {
    lease != 0
        && key.strip_prefix(election.as_bytes()).is_some_and(|name| name == format!("{lease:x}").as_bytes())
}

/// What others see of the candidate in `kv`.
pub(crate) fn candidate(election: &str, kv: &KeyValue) -> Candidate {
    let name = String::from_utf8_lossy(kv.key().strip_prefix(election.as_bytes()).unwrap_or(kv.key()));
    Candidate::decode(&name, format!("{:x}", kv.lease()), kv.value(), token(kv.create_revision()))
}

/// The token of an entry with this create revision.
pub(crate) fn token(create_revision: i64) -> Option<FencingToken> {
    u64::try_from(create_revision).ok().and_then(FencingToken::new)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_layout_is_that_of_go() {
        let keys = Keys::new("/acme");
        let election = ElectionName::new("billing").unwrap();
        assert_eq!(keys.election(&election), "/acme/billing/");
        assert_eq!(name(&keys.election(&election)), "billing");
        let entry = keys.entry(&election, 0x694d_71dd_acfd_a227);
        assert_eq!(entry, "/acme/billing/694d71ddacfda227");
        assert_eq!(&entry[..Keys::election_within(&entry)], keys.election(&election));
    }

    /// G18: nothing that is written beside the entries can be taken for one.
    #[test]
    fn marks_lie_in_no_election() {
        let keys = Keys::new("/acme");
        assert_eq!(keys.withdrawn(0x1f, 0xab), "/acme/~withdrawn/1f/000000000000000000000000000000ab");
        assert!(ElectionName::new("~withdrawn").is_err());
        assert!(ElectionName::new("~probe").is_err());
    }

    /// G18, E13: only a key that is named after its own lease is a candidate.
    #[test]
    fn candidates_are_named_after_their_lease() {
        for (key, lease, yes) in [
            ("/acme/a/1f", 0x1f, true),
            ("/acme/a/1f", 0, false),
            ("/acme/a/1f", 0x2f, false),
            ("/acme/a/1F", 0x1f, false),
            ("/acme/a/01f", 0x1f, false),
            ("/acme/a/b/1f", 0x1f, false),
            ("/acme/a/", 0x1f, false),
            ("/acme/ab/1f", 0x1f, false),
        ] {
            assert_eq!(names_its_lease("/acme/a/", key.as_bytes(), lease), yes, "{key} {lease:x}");
        }
    }
}
