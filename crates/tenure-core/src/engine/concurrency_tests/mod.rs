//! Concurrency tests of the engine's own code under loom and shuttle: `cargo xtask races`.
//!
//! `loom` tries every schedule of two to four threads, up to a number of preemptions, and the stale values that
//! a weak memory model lets a load return, except for a few that its documentation names. So it checks the
//! orderings of atomics too. It tests the parts that have no tasks: the window, the ends of sessions and terms,
//! work that begins, the watchdog's thread. `shuttle` draws schedules at random, of whole electors with all
//! their tasks. It treats every access as sequentially consistent.
//!
//! For the primitives that neither can replace see [`sync`](crate::sync). The watchdog waits as it does on
//! systems without `timerfd`: on Linux the kernel keeps the flag that remembers a wake-up, and nothing else
//! differs.
//!
//! With `--cfg tenure_mutants`, tests disable safety rules to check that the models notice.

mod harness;

#[cfg(tenure_shuttle)]
mod electors;
#[cfg(tenure_loom)]
mod term_end;
#[cfg(tenure_loom)]
mod watchdog;
#[cfg(tenure_loom)]
mod window;
#[cfg(tenure_loom)]
mod work;
#[cfg(tenure_shuttle)]
mod world;
