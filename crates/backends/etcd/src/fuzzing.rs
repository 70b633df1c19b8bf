//! What the fuzz targets call: parsers that no user can call. In no other build.

use tenure_core::ElectionName;

use crate::{EtcdConfig, diagnose, election::keys, election::keys::Keys};

/// What all entries of `election` below `prefix` begin with.
pub fn election_key(prefix: &str, election: &ElectionName) -> String {
    Keys::new(prefix).election(election)
}

/// The key of the entry that hangs on `lease`.
pub fn entry_key(prefix: &str, election: &ElectionName, lease: i64) -> String {
    Keys::new(prefix).entry(election, lease)
}

/// Whether the key that hangs on `lease` is a candidate's, of the election whose entries begin with `election`.
pub fn names_its_lease(election: &str, key: &[u8], lease: i64) -> bool {
    keys::names_its_lease(election, key, lease)
}

/// What an operator is told of a member with this version.
pub fn known_bug(version: &str) -> Option<(String, String)> {
    diagnose::known_bug(version, false)
}

/// The members and the prefix that a URL has come to.
pub fn reach(config: &EtcdConfig) -> (&[String], &str) {
    (&config.endpoints, &config.prefix)
}
