//! Looking where entries stand: one linearizable transaction of reads for as many as look at the same time.
//!
//! When a holder of thousands of elections goes, as many candidates look at once.

use std::sync::Arc;

use etcd_client::{GetOptions, KeyValue, SortOrder, SortTarget, Txn, TxnOp};

use crate::{
    error::malformed,
    members::{Call, Members, kv},
    together::{Kind, Made, Refused},
    wait::ranges,
};

/// How many bytes of payloads may be in an answer, about: reads of larger ones go alone.
const PAYLOADS: usize = 8;

/// Looks at one cluster.
pub(crate) struct Looking {
    pub(crate) members: Arc<Members>,
}

/// What to look at: a key, and what may be ahead of it.
#[derive(Clone, Debug)]
pub(crate) struct Look {
    pub(crate) key: String,
    /// Whether its payload is wanted, of which nobody knows the size.
    pub(crate) payload: bool,
    pub(crate) ahead: Option<Ahead>,
}

/// The entries of an election that are older than a revision.
#[derive(Clone, Debug)]
pub(crate) struct Ahead {
    pub(crate) election: String,
    pub(crate) before: i64,
    /// Only the newest of them.
    pub(crate) nearest: bool,
}

/// What was seen, all at one revision.
#[derive(Debug)]
pub(crate) struct Seen {
    pub(crate) read_at: i64,
    pub(crate) own: Vec<KeyValue>,
    pub(crate) ahead: Vec<KeyValue>,
}

impl Look {
    fn ops(&self) -> impl Iterator<Item = TxnOp> {
        let options = GetOptions::new();
        let own = TxnOp::get(
            self.key.as_str(),
            Some(if self.payload { options } else { options.with_keys_only() }),
        );
        let ahead = self.ahead.as_ref().map(|Ahead { election, before, nearest }| {
            let older = GetOptions::new().with_prefix().with_keys_only().with_max_create_revision(before - 1);
            let options = match nearest {
                true => older.with_sort(SortTarget::Create, SortOrder::Descend).with_limit(1),
                false => older,
            };
            TxnOp::get(election.as_str(), Some(options))
        });
        std::iter::once(own).chain(ahead)
    }

    fn is_small(&self) -> bool {
        self.ahead.as_ref().is_none_or(|ahead| ahead.nearest)
    }
}

impl Kind for Looking {
    type Ask = Look;
    type Answer = Seen;

    fn goes_with(&self, chosen: &[&Look], next: &Look) -> bool {
        let payloads = chosen.iter().filter(|look| look.payload).count();
        let small = next.is_small() && chosen.iter().all(|look| look.is_small());
        small && (!next.payload || payloads < PAYLOADS)
    }

    async fn make(&self, looks: &[Look]) -> Made<Seen> {
        let outcome = self.members.call("look", Call::Bulk, |client| async move {
            let txn = Txn::new().and_then(looks.iter().flat_map(Look::ops).collect::<Vec<_>>());
            let answer = kv(&client).txn(txn).await?;
            let read_at = answer.header().ok_or_else(|| malformed("header"))?.revision();
            let mut found = ranges(answer.op_responses());
            let seen = looks.iter().map(|look| {
                let own = found.next().ok_or_else(|| malformed("range"))?;
                let ahead = match look.ahead {
                    Some(_) => found.next().ok_or_else(|| malformed("range"))?,
                    None => Vec::new(),
                };
                Ok(Seen { read_at, own, ahead })
            });
            seen.collect::<Result<Vec<_>, _>>()
        });
        outcome.await.map_err(|error| Refused { settled: error.is_permanent(), error })
    }
}
