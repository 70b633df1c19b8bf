//! Misbehaving applications break no promise of the engine: they drop or block runtimes, and have subscribers and wakers
//! that block or panic. These tests run in real time, because the threads of the engine are their subject. cargo-nextest runs
//! each of them in a process of its own.

mod custom_backend;
mod harness;
mod logging;
mod overruns;
mod promises;
mod shared_engine;
mod shutdown;
mod wakers;
