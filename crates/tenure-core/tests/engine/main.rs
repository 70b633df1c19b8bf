//! Tests of the engine's rules with the in-memory store, in simulated time. The doc comment of a test contains the numbers of
//! the hazards that it covers.

#[cfg(tenure_mutants)]
mod broken;
mod campaign_options;
mod chaos;
mod check;
mod closing;
mod election_status;
mod entering;
mod faulty_backend;
mod handle;
mod heartbeats;
mod hierarchy;
mod host;
mod keepalives;
mod late_entries;
mod log_panics;
mod loss;
mod observing;
mod order;
mod overrun;
mod panics;
mod races;
mod resign_requests;
#[cfg(target_os = "linux")]
mod resume;
mod row_store;
mod runner;
mod sequences;
mod session_records;
mod settings;
mod shared_session;
mod shutdown;
mod shutdown_outcome;
mod tokens;
mod tracing;
mod values;
mod withdrawal;
mod work;
