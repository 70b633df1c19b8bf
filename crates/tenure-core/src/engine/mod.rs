//! The engine: every deadline rule, once, for every store.
//!
//! | part | what |
//! |---|---|
//! | `rules` | pure functions and data: the window, the timing of heartbeats, the end of a term |
//! | `runtime` | where engine code and application code run: threads, callbacks, reports, retries |
//! | `enforcement` | threads that enforce deadlines, whatever the engine and the application do |
//! | `shared_engine` | the threads of both, which several electors can share |
//! | `resume` | ends the sessions of an earlier process, and saves those of this one and the highest tokens seen |
//! | `elector_context` | what the parts of one elector share |
//! | `tasks` | sessions, campaigns, terms and their entries, and the tasks that drive them |
//! | `campaigning` | starts campaigns and ends them, and sets the values of candidates |
//! | `check` | checks that the store can be used, for services that end at their start otherwise |
//! | `diagnose` | examines the store, the machine and the settings for an operator |
//! | `elector` | the [`Elector`](crate::Elector) over all of it |
//!
//! Each part uses only those above it in this table: `rules` depends on no other part.

mod campaigning;
mod check;
mod diagnose;
mod elector;
mod elector_context;
mod enforcement;
mod resume;
pub(crate) mod rules;
pub(crate) mod runtime;
mod shared_engine;
pub(crate) mod tasks;

#[cfg(all(test, any(tenure_loom, tenure_shuttle)))]
mod concurrency_tests;

pub use elector::StoreElector;
pub use shared_engine::Engine;
