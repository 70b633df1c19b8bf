//! What a store has to provide.

use std::{fmt, sync::Arc};

use async_trait::async_trait;
use futures::stream::BoxStream;
use tenure_core::{Diagnosis, spi::BackendError};

/// A client of a store that keeps records and can compare and swap them. An adapter implements it by requests, without any rule of
/// elections.
///
/// Keys are `s/ID`, `e/NAME` and `store`, where `ID` is hexadecimal and `NAME` has the characters of an election's name. An adapter puts
/// its own prefix before them.
///
/// # Rules for implementers
/// - Every future may be dropped at any time; its request may still be carried out, however much later.
/// - An error that leaves the outcome unknown is [`Unavailable`](tenure_core::spi::BackendErrorKind::Unavailable). A request
///   may be repeated by the client library: a swap then reports [`Conflict`](Swap::Conflict) though it was done.
/// - The store removes no record by itself.
#[async_trait]
pub trait CasStore: Send + Sync + fmt::Debug + 'static {
    /// The store for people who read the log; see [`Backend::store_name`](tenure_core::spi::Backend::store_name).
    fn name(&self) -> String {
        "the store".to_owned()
    }

    /// Reads a record; `None` if there is none.
    async fn read(&self, key: &str, freshness: Freshness) -> Result<Option<Record>, BackendError>;

    /// Replaces the record if it has the version `expected`, or creates it if `expected` is `None` and there is none.
    ///
    /// # Behavior
    /// - Linearizable: one atomic step in the store, before the answer.
    /// - Checks in the same step that the store's epoch is `epoch`, unless it is [fixed](EpochState::Fixed) or unknown.
    /// - A version is never used twice for a key, also after the record was deleted. It may be a hash of the body: no two bodies of a
    ///   key are equal.
    async fn swap(
        &self,
        key: &str,
        expected: Option<&Version>,
        epoch: Epoch,
        body: &[u8],
    ) -> Result<Swap, BackendError>;

    /// Deletes the record if it has the version `expected`. Returns whether it did.
    ///
    /// Called for the records of sessions that have ended, which nobody swaps any more. So a store without a conditional
    /// deletion may compare first and then delete. If the deletion is carried out late, and the record was deleted and created again before
    /// that, it also says that the session has ended.
    async fn delete(&self, key: &str, expected: &Version) -> Result<bool, BackendError>;

    /// The records whose keys begin with `prefix`, which is `s/` or `e/`, in any order: with every write that was answered before the request
    /// was sent.
    async fn list(&self, prefix: &str) -> Result<Vec<Record>, BackendError>;

    /// Yields when the record may have changed. Only a hint: it may miss changes, repeat itself and end. `None` if the store has
    /// none; the record is polled then.
    fn changes(&self, key: &str) -> Option<BoxStream<'static, ()>> {
        let _ = key;
        None
    }

    /// The store's epoch.
    async fn epoch(&self) -> Result<EpochState, BackendError>;

    /// Checks of the store for an operator; see [`Backend::diagnose`](tenure_core::spi::Backend::diagnose).
    async fn diagnose(&self) -> Vec<Diagnosis> {
        Vec::new()
    }

    /// Releases connections and tasks. May be called more than once.
    async fn close(&self) {}
}

/// How recent a read has to be.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Freshness {
    /// Linearizable: the result includes every write that was answered before the read was sent.
    Fresh,
    /// A replica may answer. One read may show an older state than the read before.
    MayBeStale,
}

/// A record in the store.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Record {
    /// Its key, without the adapter's prefix.
    pub key: String,
    /// Its version.
    pub version: Version,
    /// Its content.
    pub body: Vec<u8>,
}

/// The version of a record: a revision, a row version or an ETag.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Version(Arc<str>);

impl Version {
    /// A version, as the store writes it.
    pub fn new(version: impl Into<Arc<str>>) -> Self {
        Self(version.into())
    }

    /// The version as the store writes it.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl From<u64> for Version {
    fn from(number: u64) -> Self {
        Self(number.to_string().into())
    }
}

/// The outcome of a [`swap`](CasStore::swap) that was answered.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Swap {
    /// Done; the record has this version.
    Done(Version),
    /// The record has another version, exists already, or does not exist. An earlier attempt of this very request may be the
    /// reason.
    Conflict,
    /// The store has another epoch. Nothing was done.
    EpochChanged,
}

/// Counts the failovers of a store that can lose acknowledged writes. Zero where the store loses none, or does not know.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Epoch(pub u64);

/// What a store knows of its epoch.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum EpochState {
    /// The store never loses an acknowledged write.
    Fixed,
    /// A number that rises at each failover, and is zero only before the first one. At most [`MAX_EPOCH`](Self::MAX_EPOCH). After a
    /// failover nobody leads until a TTL has passed, once for all elections of the store.
    ///
    /// A store whose number begins again, as one that was upgraded by a dump may do, is refused while it is lower than one in which candidates
    /// have led.
    ///
    /// A failover loses the last writes, of all keys together: a store that keeps a write keeps all that were answered before it was sent.
    Known(Epoch),
    /// The store can lose acknowledged writes, and cannot tell. Refused unless
    /// [allowed](crate::CasSettings::with_unknown_epochs).
    Unknown,
}

impl EpochState {
    /// The largest epoch that leaves room for the terms of an epoch in a fencing token.
    pub const MAX_EPOCH: Epoch = Epoch((1 << 22) - 1);
}
