//! The engine's rules over the simulated store, in simulated time. Each hazard's number
//! stands in the doc comment of the test that shows it.

mod chaos;
mod host;
mod loss;
mod order;
mod runner;
mod watching;
mod withdrawal;
mod work;
