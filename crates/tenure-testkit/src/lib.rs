//! Tests for authors of backends: a conformance suite, a history checker, a fault-injecting proxy, and helpers for child
//! processes and simulated time.
//!
//! | module | content |
//! |---|---|
//! | [`suite`], [`harness`] | the conformance suite, and the trait through which it accesses a store |
//! | [`history`] | checks what candidates recorded for overlapping terms and stale tokens |
//! | [`proxy`] | a TCP proxy that cuts, delays, holds or discards |
//! | [`program`] | child processes, for tests that kill a candidate |
//! | [`recorder`] | a backend that records the sessions opened through it |
//! | [`simulated`] | electors in simulated time |
//!
//! To test a backend, implement [`Harness`](harness::Harness) and call one macro:
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
//!     // The other methods are called only if `capabilities` declares them.
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
