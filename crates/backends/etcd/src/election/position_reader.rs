//! Reads the queue positions of many entries in one linearizable transaction.
//!
//! When the holder of thousands of elections leaves, as many candidates read their positions at the same time.

use std::sync::Arc;

use etcd_client::{GetOptions, KeyValue, SortOrder, SortTarget, Txn, TxnOp};
use tenure_core::spi::BackendError;

use crate::transport::{
    batcher::BatchOp,
    error::{TOO_LARGE, malformed, status_contains},
    members::{CallClass, Members},
    request::{kv, ranges},
};

/// How many payloads a transaction reads at most. Each may have 64 KiB.
const MAX_PAYLOADS_PER_BATCH: usize = 8;

/// Reads positions on one cluster.
pub(crate) struct PositionReader {
    pub(crate) members: Arc<Members>,
}

/// The entry to read, and whether to read the entries ahead of it.
#[derive(Clone, Debug)]
pub(crate) struct PositionQuery {
    pub(crate) key: Arc<str>,
    /// Whether to read the entry's payload.
    pub(crate) with_payload: bool,
    pub(crate) ahead: Option<EntriesAhead>,
}

/// The newest entries of an election that were created before a revision.
#[derive(Clone, Debug)]
pub(crate) struct EntriesAhead {
    pub(crate) election_prefix: String,
    pub(crate) before_revision: i64,
    pub(crate) limit: i64,
}

/// The result of a query, all of one revision.
#[derive(Debug)]
pub(crate) struct Snapshot {
    pub(crate) revision: i64,
    pub(crate) own: Option<KeyValue>,
    /// The newest first.
    pub(crate) ahead: Vec<KeyValue>,
}

impl PositionQuery {
    fn ops(&self) -> impl Iterator<Item = TxnOp> {
        let options = GetOptions::new();
        let options = if self.with_payload { options } else { options.with_keys_only() };
        let own = TxnOp::get(&*self.key, Some(options));
        let ahead = self.ahead.as_ref().map(|ahead| {
            let options = GetOptions::new()
                .with_prefix()
                .with_keys_only()
                .with_max_create_revision(ahead.before_revision - 1)
                .with_sort(SortTarget::Create, SortOrder::Descend)
                .with_limit(ahead.limit);
            TxnOp::get(ahead.election_prefix.as_str(), Some(options))
        });
        std::iter::once(own).chain(ahead)
    }
}

impl BatchOp for PositionReader {
    type Request = PositionQuery;
    type Response = Snapshot;

    fn can_join(&self, batch: &[PositionQuery], next: &PositionQuery) -> bool {
        let payloads = batch.iter().filter(|query| query.with_payload).count();
        !next.with_payload || payloads < MAX_PAYLOADS_PER_BATCH
    }

    async fn run(&self, queries: &[PositionQuery]) -> Result<Vec<Option<Snapshot>>, BackendError> {
        let call = self.members.call("read position", CallClass::Bulk, |client| async move {
            let txn = Txn::new().and_then(queries.iter().flat_map(PositionQuery::ops).collect::<Vec<_>>());
            let mut response = match kv(&client).txn(txn).await {
                // One response cannot hold all of them.
                Err(error) if status_contains(&error, TOO_LARGE) => {
                    return Ok((None, queries.iter().map(|_| None).collect()));
                }
                response => response?,
            };
            let header = response.take_header().ok_or_else(|| malformed("header"))?;
            let mut found = ranges(response.op_responses());
            let snapshots = queries.iter().map(|query| {
                let own = found.next().ok_or_else(|| malformed("range"))?.pop();
                let ahead = match query.ahead {
                    Some(_) => found.next().ok_or_else(|| malformed("range"))?,
                    None => Vec::new(),
                };
                Ok(Some(Snapshot { revision: header.revision(), own, ahead }))
            });
            let snapshots = snapshots.collect::<Result<_, BackendError>>()?;
            Ok((Some(header), snapshots))
        });
        call.await
    }
}
