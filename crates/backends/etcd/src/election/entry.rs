//! Tells apart the entries that one key has over time.

use etcd_client::KeyValue;
use tenure_core::spi::{BackendError, BackendErrorKind, Entry};

/// The error of an entry that no longer exists.
pub(crate) fn entry_gone(entry: &Entry) -> BackendError {
    BackendError::new(
        BackendErrorKind::EntryGone,
        format!("the entry {} of revision {} is gone", entry.key, entry.version),
    )
}

/// An entry's version as etcd's create revision; zero, which no key has, when it is none.
pub(crate) fn create_revision(entry: &Entry) -> i64 {
    i64::try_from(entry.version).unwrap_or(0)
}

/// Whether `kv` is still the entry that was created at `create_revision` under `lease`.
pub(crate) fn is_same_entry(kv: &KeyValue, lease: i64, create_revision: i64) -> bool {
    kv.create_revision() == create_revision && kv.lease() == lease
}
