//! Lists the elections below the prefix.

use tenure_core::{
    ElectionName,
    spi::{BackendError, BackendErrorKind},
};

use crate::{election::store::ElectionStore, transport::pages::Pages};

/// The largest number of keys that are read, most of which may be foreign: some 500 requests.
const MAX_KEYS: usize = 1_000_000;

/// The elections that have a candidate, all as of one revision. Reads keys without values.
///
/// # Errors
/// Also when etcd has compacted the revision in the meantime: start again.
pub(crate) async fn elections(store: &ElectionStore) -> Result<Vec<ElectionName>, BackendError> {
    let prefix = store.keys.all_prefix();
    let mut pages = Pages::keys_at_revision(&store.members, &prefix, 0);
    let mut elections: Vec<ElectionName> = Vec::new();
    let mut read = 0;
    while let Some(page) = pages.next().await? {
        read += page.len();
        if read > MAX_KEYS {
            let message = format!(
                "cannot list the elections: there are more than {MAX_KEYS} keys below {prefix}; give elections a prefix \
                 of their own"
            );
            return Err(BackendError::new(BackendErrorKind::Invalid, message));
        }
        for kv in &page {
            // The keys of one election follow each other.
            let election = store.keys.election_of(kv.key(), kv.lease());
            if let Some(election) = election.filter(|election| elections.last() != Some(election)) {
                elections.push(election);
            }
        }
    }
    Ok(elections)
}
