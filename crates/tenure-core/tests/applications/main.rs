//! What the rest of a program may do without breaking a promise: drop or block its runtimes, log to a subscriber that
//! blocks or panics, wake with wakers that do. In real time, for the engine's threads are the subject; run by
//! cargo-nextest, each test in a process of its own.

mod found;
mod promises;
mod stage;
