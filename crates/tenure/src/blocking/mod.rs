//! Leader election for code without an executor: the calls block the current thread.
//!
//! The engine, its heartbeats and its deadlines run on threads of their own as always; this module only waits for them.
//!
//! ```
//! # #[cfg(feature = "memory")]
//! # fn main() -> Result<(), tenure::Error> {
//! # fn charge(_: tenure::FencingToken) {}
//! use std::time::Duration;
//!
//! let elector = tenure::blocking::Elector::connect("memory:blocking")?;
//! elector.run("billing", |leadership| {
//!     // Until the leadership is lost, every 10 s.
//!     while leadership.ensure().is_ok() {
//!         charge(leadership.fencing_token()); // send the token with each write
//! #       if leadership.is_leader() { return Ok(()); }
//!         leadership.lost_within(Duration::from_secs(10))?;
//!     }
//!     Ok::<_, tenure::Error>(())
//! })??;
//! elector.close()?;
//! # Ok(()) }
//! # #[cfg(not(feature = "memory"))]
//! # fn main() {}
//! ```
//!
//! # Work that blocks cannot be dropped
//!
//! A future that works is dropped before the deadline. A closure is not: nothing can stop a thread. When the leadership is
//! lost while the closure runs,
//!
//! - its [handle](LeadershipHandle) says so: [`ensure`](tenure_core::LeadershipHandle::ensure) fails from one grace period before
//!   the deadline on, and [`lost_within`](LeadershipHandle::lost_within) returns;
//! - the entry stays in the store until the closure has returned, at most until the deadline;
//! - a closure that still runs at the deadline has overrun: it is reported, or the process is aborted, as
//!   [`OnOverrun`](tenure_core::OnOverrun) says. From then on only the fencing token protects what it writes.
//!
//! So call `ensure` before each side effect, keep the steps between two calls shorter than the grace period
//! ([`Config::with_grace_period`](tenure_core::Config::with_grace_period)), and set a timeout on blocking I/O.
//!
//! # Where these calls are allowed
//!
//! On any thread of the application. On an engine thread, where a backend runs, they return
//! [`Error::OnEngineThread`](tenure_core::Error::OnEngineThread). In an async task they block the worker that runs the task:
//! the elector goes on, but other tasks of that worker do not; use a thread for blocking calls there, such as tokio's
//! `spawn_blocking`. Electors in simulated time (`StoreElector::with_clock`) run in the current runtime, so that a blocking call
//! in that runtime would wait for ever.

mod elector;
mod leaders;
mod leadership;

pub use elector::Elector;
pub use leaders::Leaders;
pub use leadership::{Leadership, LeadershipHandle};
