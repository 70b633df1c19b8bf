//! The in-memory store: elections within one process, and the store that simulations drive.
//!
//! A [`MemoryStore`] plays the server. Each [`MemoryBackend`] is one client with a [`Link`] of
//! its own, on which requests and answers can be lost, held back, refused or cut off. The
//! store's own time is tokio's, so that under `tokio::time::pause` all of it is simulated.

mod backend;
mod link;
mod store;

pub use backend::MemoryBackend;
pub use link::{Link, Op, Path, Side};
pub use store::{MemoryStore, StoredEntry};
