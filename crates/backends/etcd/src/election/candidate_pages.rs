//! Lists the candidates of an election. Counts and skips foreign keys.

use etcd_client::KeyValue;
use tenure_core::spi::BackendError;

use crate::{
    election::{keys::is_candidate, store::ElectionStore},
    transport::pages::Pages,
};

/// The candidates of an election, by key, all as of one revision.
pub(crate) struct CandidatePages<'a> {
    store: &'a ElectionStore,
    election_prefix: &'a str,
    pages: Pages<'a>,
    foreign: ForeignEntries,
}

/// The keys that no candidate created.
#[derive(Debug, Default)]
struct ForeignEntries {
    count: u64,
    first_key: Vec<u8>,
}

impl<'a> CandidatePages<'a> {
    /// All candidates with their values, as of now.
    pub(crate) fn with_values(store: &'a ElectionStore, election_prefix: &'a str) -> Self {
        Self::new(store, election_prefix, Pages::with_values(&store.members, election_prefix))
    }

    /// All candidates without their values, as of `revision`; zero for now.
    pub(crate) fn keys_at_revision(
        store: &'a ElectionStore,
        election_prefix: &'a str,
        revision: i64,
    ) -> Self {
        let pages = Pages::keys_at_revision(&store.members, election_prefix, revision);
        Self::new(store, election_prefix, pages)
    }

    fn new(store: &'a ElectionStore, election_prefix: &'a str, pages: Pages<'a>) -> Self {
        Self { store, election_prefix, pages, foreign: ForeignEntries::default() }
    }

    /// The revision that is read, after the first page was returned.
    pub(crate) fn revision(&self) -> i64 {
        self.pages.revision()
    }

    /// The candidates of the next page; `None` after the last, once the foreign keys were reported.
    ///
    /// # Errors
    /// Also when etcd has compacted the revision in the meantime: start again.
    pub(crate) async fn next(&mut self) -> Result<Option<Vec<KeyValue>>, BackendError> {
        let Some(found) = self.pages.next().await? else {
            let ForeignEntries { count, first_key } = std::mem::take(&mut self.foreign);
            self.store.note_foreign_entries(self.election_prefix, count, &first_key);
            return Ok(None);
        };
        let (candidates, foreign): (Vec<_>, Vec<_>) =
            found.into_iter().partition(|kv| is_candidate(self.election_prefix, kv));
        if let Some(first) = foreign.first()
            && self.foreign.count == 0
        {
            self.foreign.first_key = first.key().to_vec();
        }
        self.foreign.count += foreign.len() as u64;
        Ok(Some(candidates))
    }
}
