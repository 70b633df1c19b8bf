//! The raw operations of a store, through the client that the backend uses: nothing can be quicker. On a store that compares and swaps, single
//! requests of the adapter.

mod cas;
mod etcd;
pub(crate) mod postgres;
mod zookeeper;

use std::time::Duration;

use anyhow::Result;
use async_trait::async_trait;

pub(crate) use cas::Cas;
pub(crate) use etcd::Etcd;
pub(crate) use postgres::Postgres;
pub(crate) use zookeeper::Zookeeper;

/// What elections on a store are made of.
#[async_trait]
pub(crate) trait RawStore: Send {
    /// What the two below consist of, in words.
    fn entering(&self) -> (&'static str, &'static str);

    /// Enters an empty election, with a session held, and sees who is first.
    async fn enter(&mut self) -> Result<Duration>;

    /// The same from nothing: connects, opens a session, enters.
    async fn enter_from_nothing(&mut self) -> Result<Duration>;

    /// From a deletion to the event that tells another of it. The watch was opened `quiet` before.
    async fn handover(&mut self, quiet: Duration) -> Result<Duration>;

    /// Enters so many elections as fast as the store takes them, in its own best way.
    async fn enter_many(&mut self, count: usize) -> Result<Duration>;

    /// From asking for a session of which nothing is heard after that to the event of its entry's end; so many times, begun
    /// at any time within `spread`. None where sessions do not expire by themselves.
    async fn expire(&mut self, ttl: Duration, spread: Duration, times: usize) -> Result<Vec<Duration>>;

    /// How many requests the server has been asked so far.
    async fn requests(&mut self) -> Result<u64>;

    /// How many writes among these, where the server tells.
    async fn writes(&mut self) -> Result<Option<u64>> {
        Ok(None)
    }
}
