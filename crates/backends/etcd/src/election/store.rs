//! What a backend, its sessions and its observers share: the elections below one prefix of a cluster.

use std::sync::{
    Arc,
    atomic::{AtomicU64, Ordering::Relaxed},
};

use tenure_core::{
    internal,
    spi::{self, BackendError},
};
use tracing::warn;

use crate::{
    config::EtcdConfig,
    election::{
        keys::{self, Keys},
        position_reader::{PositionQuery, PositionReader, Snapshot},
    },
    transport::{batcher::Batcher, members::Members, watch::watcher::Watcher},
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

    /// Reads an entry and those ahead of it, in one transaction with other queries, or alone when that fails.
    pub(crate) async fn read_position(&self, query: PositionQuery) -> Result<Snapshot, BackendError> {
        let outcome = match self.position_reader.submit(query.clone()).await {
            // One of the other queries may be the cause.
            Err(failure) if failure.error.is_retryable() => self.position_reader.submit_alone(&query).await,
            outcome => outcome,
        };
        Ok(outcome.map_err(|failure| failure.error)?.value)
    }

    /// How many foreign keys were found in elections.
    pub(crate) fn foreign_entries(&self) -> u64 {
        self.foreign_entries.load(Relaxed)
    }

    /// Counts `count` foreign keys below `election_prefix`, which no candidate created, and logs the first one. It
    /// logs only once, because foreign keys stay.
    pub(crate) fn note_foreign_entries(&self, election_prefix: &str, count: u64, first_key: &[u8]) {
        if count == 0 {
            return;
        }
        let election = keys::election_name(election_prefix);
        spi::note_foreign_entries(election, count);
        if self.foreign_entries.fetch_add(count, Relaxed) == 0 {
            warn!(
                election,
                key = %internal::printable(&String::from_utf8_lossy(first_key), MAX_LOGGED_KEY_BYTES),
                count,
                "foreign keys in this etcd election: no candidate created them, and Go's candidates wait for them \
                 until they are deleted"
            );
        }
    }
}
