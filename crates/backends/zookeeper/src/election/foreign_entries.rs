//! Counts and reports znodes in an election that no candidate created, or that may be such znodes.

use std::{
    collections::HashSet,
    sync::{
        Mutex,
        atomic::{AtomicU64, Ordering::Relaxed},
    },
};

use tenure_core::spi;
use tracing::warn;
use zookeeper_client::Stat;

use crate::transport::{lock, znode_stat::is_unreadable};

/// How many unreadable znodes are remembered, so that each is reported once.
const MAX_REPORTED: usize = 1000;

#[derive(Debug, Default)]
pub(crate) struct ForeignEntries {
    seen: AtomicU64,
    /// The unreadable znodes that were waited for and reported.
    reported: Mutex<HashSet<String>>,
}

impl ForeignEntries {
    /// How often a foreign entry was seen.
    pub(crate) fn seen(&self) -> u64 {
        self.seen.load(Relaxed)
    }

    /// Counts `count` foreign entries in a listing of `parent`, and logs the first ones.
    pub(crate) fn record(&self, parent: &str, count: usize) {
        if count > 0 {
            let election = parent.rsplit_once('/').map_or(parent, |(_, election)| election);
            spi::note_foreign_entries(election, count as u64);
        }
        if count > 0 && self.seen.fetch_add(count as u64, Relaxed) == 0 {
            warn!(parent, count, "this ZooKeeper election contains znodes that no candidate created");
        }
    }

    /// Warns once that the znode at `path` is waited for and may be garbage, if the user may not read it. A user that may
    /// create znodes beside it can create one that outlives its session, and forbid us to see that.
    pub(crate) fn warn_if_unreadable(&self, path: &str, stat: &Stat) {
        if !is_unreadable(stat) {
            return;
        }
        let mut reported = lock(&self.reported);
        if reported.len() >= MAX_REPORTED {
            reported.clear();
        }
        if reported.insert(path.to_owned()) {
            warn!(
                path,
                "this user may not read this znode, which is named like an entry: it is waited for as if a candidate had \
                 created it; with a user that may read it, check whether it has an owner (zkCli.sh: stat) and who may create \
                 znodes beside it"
            );
        }
    }
}
