//! What a backend, its sessions and its observers share: the elections below one prefix of a cluster.

use std::sync::{
    Arc,
    atomic::{AtomicU64, Ordering::Relaxed},
};

use etcd_client::KeyValue;
use tenure_core::{
    internal,
    spi::{self, BackendError},
};
use tracing::warn;

use crate::{
    config::EtcdConfig,
    election::{
        keys::{Keys, election_name, is_candidate},
        position_reader::{PositionQuery, PositionReader, Snapshot},
    },
    transport::{batcher::Batcher, members::Members, pages::Pages, watch::Watcher},
};

/// How much of a foreign key is logged, in bytes.
const MAX_LOGGED_KEY_BYTES: usize = 256;

/// The elections below one prefix of a cluster.
pub(crate) struct ElectionStore {
    pub(crate) keys: Keys,
    pub(crate) members: Arc<Members>,
    pub(crate) watcher: Watcher,
    position_reader: Arc<Batcher<PositionReader>>,
    foreign_entries: AtomicU64,
}

impl ElectionStore {
    pub(crate) fn new(config: EtcdConfig) -> Self {
        let keys = Keys::new(&config.prefix);
        let members = Arc::new(Members::new(config, keys.absent_key()));
        let watcher = Watcher::new(Arc::clone(&members));
        let position_reader = Batcher::new(PositionReader { members: Arc::clone(&members) });
        Self { keys, members, watcher, position_reader, foreign_entries: AtomicU64::new(0) }
    }

    /// Reads an entry and those ahead of it, in one transaction with other queries.
    pub(crate) async fn read_position(&self, query: PositionQuery) -> Result<Snapshot, BackendError> {
        self.position_reader.submit(query).await
    }

    /// How many foreign keys were found in elections.
    pub(crate) fn foreign_entries(&self) -> u64 {
        self.foreign_entries.load(Relaxed)
    }

    /// Calls `visit` with each candidate of an election, by key, all as of one revision. Returns that revision.
    ///
    /// Foreign keys, which no candidate created, are skipped and counted, and the first one is logged. It is logged only once,
    /// because foreign keys stay.
    ///
    /// # Errors
    /// Also when etcd has compacted the revision in the meantime: start again.
    pub(crate) async fn read_candidates(
        &self,
        election_prefix: &str,
        mut pages: Pages<'_>,
        mut visit: impl FnMut(KeyValue) + Send,
    ) -> Result<i64, BackendError> {
        let (mut count, mut first_key) = (0, None);
        while let Some(page) = pages.next().await? {
            for kv in page {
                if is_candidate(election_prefix, &kv) {
                    visit(kv);
                } else {
                    first_key.get_or_insert_with(|| kv.key().to_vec());
                    count += 1;
                }
            }
        }
        if let Some(key) = first_key {
            let election = election_name(election_prefix);
            spi::note_foreign_entries(election, count);
            if self.foreign_entries.fetch_add(count, Relaxed) == 0 {
                warn!(
                    election,
                    key = %internal::printable(&String::from_utf8_lossy(&key), MAX_LOGGED_KEY_BYTES),
                    count,
                    "foreign keys in this etcd election: no candidate created them, and Go's candidates wait for them \
                     until they are deleted"
                );
            }
        }
        Ok(pages.revision())
    }
}
