//! For anybody who writes a backend: the conformance suite, the history checker, a fault-injecting proxy, and programs as
//! processes.
//!
//! A backend's tests are a [`Harness`](harness::Harness) and one macro call:
//!
//! ```no_run
//! # #![allow(dead_code)]
//! # use std::{sync::Arc, time::Duration};
//! # use tenure_core::memory::MemoryStore;
//! # use tenure_testkit::harness::{HarnessCapabilities, Client, Harness};
//! struct MyStore(MemoryStore);
//!
//! #[async_trait::async_trait]
//! impl Harness for MyStore {
//!     fn capabilities(&self) -> HarnessCapabilities { HarnessCapabilities::NONE }
//!     async fn client(&self) -> Client {
//!         Client { backend: Arc::new(self.0.backend()), faults: None }
//!     }
//!     fn ttl(&self) -> Duration { Duration::from_secs(2) }
//!     async fn remaining_state(&self) -> Vec<String> {
//!         self.0.sessions().iter().map(|session| format!("session {session}")).collect()
//!     }
//!     // The rest is for what `capabilities` declares.
//! #   async fn delete_entry(&self, _: &str, _: &str, _: u64) {}
//! #   async fn expire_session(&self, _: &str) {}
//! #   async fn add_foreign_entries(&self, _: &str) {}
//! #   async fn foreign_entries_untouched(&self, _: &str) -> bool { true }
//! }
//!
//! tenure_testkit::conformance!(async { MyStore(MemoryStore::new()) });
//! # fn main() {}
//! ```
#![doc(test(attr(deny(warnings))))]

pub mod harness;
pub mod history;
pub mod program;
pub mod proxy;
pub mod recorder;
pub mod simulated;
pub mod suite;
