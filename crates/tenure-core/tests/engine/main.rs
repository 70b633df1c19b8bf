//! The engine's rules over the simulated store, in simulated time. Each hazard's number
//! stands in the doc comment of the test that shows it.

mod asked;
#[cfg(tenure_mutants)]
mod broken;
mod chaos;
mod closing;
mod election_status;
mod entering;
mod faulty;
mod ghosts;
mod heartbeats;
mod hierarchy;
mod host;
mod loss;
mod order;
mod overrun;
mod panics;
mod races;
mod row_store;
mod runner;
mod sequences;
mod settings;
mod shutdown;
mod together;
mod tracing;
mod watching;
mod withdrawal;
mod work;
