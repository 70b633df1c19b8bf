//! Races between threads over the engine's own code: `cargo xtask races`.
//!
//! `loom` tries every schedule of two to four threads, up to a number of preemptions, and the old values that a
//! weak memory model lets a load return, but for a few that its documentation names; so it checks the atomics'
//! orderings too. It is used for the parts that have no tasks: the window, the ends of sessions and terms, work that
//! begins, the watchdog's thread. `shuttle` draws schedules at random, of whole electors with all their tasks; to it
//! every access is of the strongest ordering.
//!
//! What neither can look into: see [`sync`](crate::sync). The watchdog waits as it does on systems without
//! `timerfd`: Linux keeps the flag that remembers a wake-up in the kernel, and nothing else is different.
//!
//! Rules are broken on purpose, with `--cfg tenure_mutants`, to see that the models notice.

mod stage;

#[cfg(tenure_loom)]
mod ending;
#[cfg(tenure_shuttle)]
mod guard;
#[cfg(tenure_shuttle)]
mod host;
#[cfg(tenure_loom)]
mod watchdog;
#[cfg(tenure_loom)]
mod window;
#[cfg(tenure_loom)]
mod work;
