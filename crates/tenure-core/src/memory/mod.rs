//! An in-memory store, for elections within one process, tests and simulations.
//!
//! A [`MemoryStore`] is the server. Each [`MemoryBackend`] is a client with a network [`Link`] of its own, on which requests and
//! responses can be dropped, held back, delayed or failed. The store measures time with tokio's clock, so that under
//! `tokio::time::pause` everything is simulated.

mod backend;
mod link;
mod store;

pub use backend::MemoryBackend;
pub use link::{Delivery, Direction, Link, Op};
pub use store::{MemoryStore, Proof, StoredEntry};
