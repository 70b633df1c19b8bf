//! The key layout in etcd, and which keys are candidates.
//!
//! The layout is that of Go's `concurrency.Election` (`client/v3/concurrency/election.go`): an entry is
//! `PREFIX/ELECTION/HEX(lease)`, and the entry with the lowest create revision leads. So a Go candidate at
//! `PREFIX/ELECTION` is in the same queue.

use etcd_client::KeyValue;
use tenure_core::{Candidate, ElectionName, FencingToken};

/// Builds keys below one prefix.
#[derive(Clone, Debug)]
pub(crate) struct Keys {
    prefix: String,
}

impl Keys {
    /// `prefix` does not end with a slash.
    pub(crate) fn new(prefix: &str) -> Self {
        Self { prefix: prefix.to_owned() }
    }

    /// The prefix of all entries of `election`, with its slash.
    pub(crate) fn election_prefix(&self, election: &ElectionName) -> String {
        format!("{}/{election}/", self.prefix)
    }

    /// The prefix of all keys, with its slash.
    pub(crate) fn all_prefix(&self) -> String {
        format!("{}/", self.prefix)
    }

    /// The election of which the key `key`, attached to `lease`, is a candidate's entry; `None` for any other key.
    pub(crate) fn election_of(&self, key: &[u8], lease: i64) -> Option<ElectionName> {
        let below = key.strip_prefix(self.all_prefix().as_bytes())?;
        let name = below.split(|byte| *byte == b'/').next()?;
        let election = ElectionName::new(std::str::from_utf8(name).ok()?).ok()?;
        names_its_lease(&self.election_prefix(&election), key, lease).then_some(election)
    }

    /// The key of the entry of `lease` in `election`: Go's `fmt.Sprintf("%s/%x", pfx, leaseID)`.
    pub(crate) fn entry(&self, election: &ElectionName, lease: i64) -> String {
        format!("{}/{election}/{lease:x}", self.prefix)
    }

    /// The length of the election's prefix in an entry's key, in bytes.
    pub(crate) fn election_prefix_len(key: &str) -> usize {
        key.rfind('/').map_or(0, |slash| slash + 1)
    }

    /// The key of the marker that the request with this nonce was withdrawn; see [`crate::election::withdrawal`].
    ///
    /// Election names cannot contain `~`, so no candidate can have this key.
    pub(crate) fn withdrawal_marker(&self, lease: i64, nonce: u128) -> String {
        format!("{}/~withdrawn/{lease:x}/{nonce:032x}", self.prefix)
    }

    /// Whether `key` is that of an entry of `lease` below `prefix`, which ends with a slash.
    pub(crate) fn is_entry_of(prefix: &str, key: &[u8], lease: i64) -> bool {
        let name = key.strip_prefix(prefix.as_bytes()).and_then(|name| str::from_utf8(name).ok());
        name.and_then(|name| name.rsplit_once('/'))
            .is_some_and(|(election, last)| !election.starts_with('~') && last == format!("{lease:x}"))
    }

    /// A key that never exists, for linearizable reads that only check the store.
    pub(crate) fn absent_key(&self) -> String {
        format!("{}/~probe", self.prefix)
    }
}

/// The name of the election with this prefix.
pub(crate) fn election_name(election_prefix: &str) -> &str {
    let path = election_prefix.trim_end_matches('/');
    path.rsplit_once('/').map_or(path, |(_, name)| name)
}

/// Whether `kv`, found below `election_prefix`, is a candidate.
///
/// A candidate's key is named after its lease, in Go and here. Go waits for every key below the prefix, whatever it
/// is; this backend waits for candidates only. The two still cannot both lead: each waits for every *candidate* ahead
/// of it.
pub(crate) fn is_candidate(election_prefix: &str, kv: &KeyValue) -> bool {
    names_its_lease(election_prefix, kv.key(), kv.lease())
}

/// Whether the last part of `key` is the hexadecimal id of `lease`, the lease that the key is attached to.
pub(crate) fn names_its_lease(election_prefix: &str, key: &[u8], lease: i64) -> bool {
    lease != 0
        && key
            .strip_prefix(election_prefix.as_bytes())
            .is_some_and(|name| name == format!("{lease:x}").as_bytes())
}

/// Decodes the candidate that `kv` stores.
pub(crate) fn decode_candidate(election_prefix: &str, kv: &KeyValue) -> Candidate {
    let name = kv.key().strip_prefix(election_prefix.as_bytes()).unwrap_or(kv.key());
    let name = String::from_utf8_lossy(name);
    Candidate::decode(&name, format!("{:x}", kv.lease()), kv.value(), fencing_token(kv.create_revision()))
}

/// The fencing token of an entry with this create revision.
pub(crate) fn fencing_token(create_revision: i64) -> Option<FencingToken> {
    u64::try_from(create_revision).ok().and_then(FencingToken::new)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_layout_is_that_of_go() {
        let keys = Keys::new("/acme");
        let election = ElectionName::new("billing").unwrap();
        assert_eq!(keys.election_prefix(&election), "/acme/billing/");
        assert_eq!(election_name(&keys.election_prefix(&election)), "billing");
        let entry = keys.entry(&election, 0x694d_71dd_acfd_a227);
        assert_eq!(entry, "/acme/billing/694d71ddacfda227");
        assert_eq!(&entry[..Keys::election_prefix_len(&entry)], keys.election_prefix(&election));
    }

    /// Hazard G39: an entry of a lease is recognized among the lease's keys.
    #[test]
    fn the_entries_of_a_lease_are_recognized() {
        let keys = Keys::new("/acme");
        let election = ElectionName::new("billing").unwrap();
        let is_entry = |key: &str| Keys::is_entry_of("/acme/", key.as_bytes(), 0x1f);
        assert!(is_entry(&keys.entry(&election, 0x1f)));
        for other in [
            &keys.entry(&election, 0x2f),
            &keys.withdrawal_marker(0x1f, 0x1f),
            "/other/billing/1f",
            "/acme/1f",
        ] {
            assert!(!is_entry(other), "{other}");
        }
    }

    /// G18: neither markers nor keys below a longer prefix are elections.
    #[test]
    fn an_election_is_known_by_its_entries() {
        let keys = Keys::new("/acme");
        let election_of = |key: &str| keys.election_of(key.as_bytes(), 0x1f).map(|name| name.to_string());
        assert_eq!(election_of("/acme/billing/1f").as_deref(), Some("billing"));
        for other in [
            "/acme/billing/2f",
            "/acme/billing",
            "/acme/billing/",
            "/acme/team/billing/1f",
            "/acme/~withdrawn/1f",
            "/acme/~withdrawn/1f/000000000000000000000000000000ab",
            "/acmebilling/1f",
            "/acme//1f",
            "/acme/bill ing/1f",
            "/other/billing/1f",
        ] {
            assert_eq!(election_of(other), None, "{other}");
        }
        assert_eq!(keys.election_of(b"/acme/\xff/1f", 0x1f), None);
    }

    /// G18: markers cannot be mistaken for entries.
    #[test]
    fn markers_are_in_no_election() {
        let keys = Keys::new("/acme");
        assert_eq!(
            keys.withdrawal_marker(0x1f, 0xab),
            "/acme/~withdrawn/1f/000000000000000000000000000000ab"
        );
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
