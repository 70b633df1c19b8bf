//! What the controller is for: the digest of a ConfigMap's data.

use std::fmt::Write as _;

use k8s_openapi::api::core::v1::ConfigMap;
use sha2::{Digest as _, Sha256};

/// The annotation with the digest; and the label, with the value `wanted`, of the objects that get one.
pub(crate) const DIGEST: &str = "example.com/digest";

/// The SHA-256 of the keys and values.
pub(crate) fn of(config_map: &ConfigMap) -> String {
    let mut hash = Sha256::new();
    for (key, value) in config_map.data.iter().flatten() {
        for part in [key, value] {
            // With its length, so that no two ConfigMaps have the same bytes.
            hash.update((part.len() as u64).to_be_bytes());
            hash.update(part);
        }
    }
    hash.finalize().iter().fold(String::new(), |mut text, byte| {
        // Writing to a string cannot fail.
        let _ = write!(text, "{byte:02x}");
        text
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn config_map(data: &[(&str, &str)]) -> ConfigMap {
        let data = data.iter().map(|(key, value)| ((*key).to_owned(), (*value).to_owned())).collect();
        ConfigMap { data: Some(data), ..ConfigMap::default() }
    }

    #[test]
    fn it_depends_on_keys_and_values() {
        let digests = [&[("a", "bc")][..], &[("ab", "c")], &[("a", "b"), ("c", "")], &[]];
        for (index, one) in digests.iter().enumerate() {
            assert_eq!(of(&config_map(one)).len(), 64);
            for other in &digests[index + 1..] {
                assert_ne!(of(&config_map(one)), of(&config_map(other)));
            }
        }
        assert_eq!(of(&ConfigMap::default()), of(&config_map(&[])));
    }
}
