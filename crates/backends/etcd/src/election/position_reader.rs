//! Looking where entries stand: one linearizable transaction of reads for as many as look at the same time.
//!
//! When a holder of thousands of elections goes, as many candidates look at once.

use std::{sync::Arc, time::Duration};

use etcd_client::{GetOptions, KeyValue, SortOrder, SortTarget, Txn, TxnOp};
use tenure_core::spi::BackendError;

use crate::{
    election::wait::ranges,
    transport::batcher::{Answered, Kind, Refused, Waiting},
    transport::error::{Failure, is_too_large, malformed},
    transport::hedge::Won,
    transport::members::{Call, Members},
    transport::request::kv,
};

/// How many payloads a transaction reads at most, each of which may have 64 KiB.
const PAYLOADS: usize = 8;

/// Looks at one cluster.
pub(crate) struct Looking {
    pub(crate) members: Arc<Members>,
}

/// What to look at: a key, and what may be ahead of it.
#[derive(Clone, Debug)]
pub(crate) struct Look {
    pub(crate) key: Arc<str>,
    /// Whether the key's payload is wanted.
    pub(crate) payload: bool,
    pub(crate) ahead: Option<Ahead>,
}

/// The entries of an election that are older than a revision.
#[derive(Clone, Debug)]
pub(crate) struct Ahead {
    /// The election's prefix.
    pub(crate) election: String,
    pub(crate) before: i64,
    /// How many of them, the newest first.
    pub(crate) most: i64,
}

/// What was seen, all at one revision.
#[derive(Debug)]
pub(crate) struct Seen {
    pub(crate) read_at: i64,
    pub(crate) own: Option<KeyValue>,
    pub(crate) ahead: Vec<KeyValue>,
}

impl Look {
    fn ops(&self) -> impl Iterator<Item = TxnOp> {
        let options = GetOptions::new();
        let options = if self.payload { options } else { options.with_keys_only() };
        let own = TxnOp::get(&*self.key, Some(options));
        let ahead = self.ahead.as_ref().map(|ahead| {
            let options = GetOptions::new()
                .with_prefix()
                .with_keys_only()
                .with_max_create_revision(ahead.before - 1)
                .with_sort(SortTarget::Create, SortOrder::Descend)
                .with_limit(ahead.most);
            TxnOp::get(ahead.election.as_str(), Some(options))
        });
        std::iter::once(own).chain(ahead)
    }
}

impl Looking {
    /// What each of them sees; `None` when that is too much for one answer.
    async fn look(&self, looks: &[Look]) -> Result<Won<Option<Vec<Seen>>>, BackendError> {
        let call = self.members.call("look", Call::Bulk, |client| async move {
            let txn = Txn::new().and_then(looks.iter().flat_map(Look::ops).collect::<Vec<_>>());
            let answer = match kv(&client).txn(txn).await {
                Err(error) if is_too_large(&error) => return Ok(None),
                answer => answer?,
            };
            let read_at = answer.header().ok_or_else(|| malformed("header"))?.revision();
            let mut found = ranges(answer.op_responses());
            let seen = looks.iter().map(|look| {
                let own = found.next().ok_or_else(|| malformed("range"))?.pop();
                let ahead = match look.ahead {
                    Some(_) => found.next().ok_or_else(|| malformed("range"))?,
                    None => Vec::new(),
                };
                Ok(Seen { read_at, own, ahead })
            });
            Ok(Some(seen.collect::<Result<Vec<_>, Failure>>()?))
        });
        call.await
    }
}

/// What failed has changed nothing.
impl From<BackendError> for Refused {
    fn from(error: BackendError) -> Self {
        Self { error, settled: true }
    }
}

impl Kind for Looking {
    type Ask = Look;
    type Answer = Seen;

    const PATIENCE: Option<Duration> = Some(Duration::from_secs(10));

    fn goes_with(&self, chosen: &[Waiting<Self>], next: &Look) -> bool {
        let payloads = chosen.iter().filter(|waiting| waiting.ask.payload).count();
        !next.payload || payloads < PAYLOADS
    }

    async fn make_one(&self, look: &Look) -> Answered<Seen> {
        let Won { mut value, attempt, attempts } = self.look(std::slice::from_ref(look)).await?;
        let value =
            value.as_mut().and_then(Vec::pop).ok_or_else(|| malformed("range of a size that we take"))?;
        Ok(Won { value, attempt, attempts })
    }

    async fn make_all(&self, looks: &[Look]) -> Answered<Option<Vec<Seen>>> {
        Ok(self.look(looks).await?)
    }
}
