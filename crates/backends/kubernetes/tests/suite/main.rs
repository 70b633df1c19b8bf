//! Tests of the backend against an API server for Leases within the process.

mod api_server;
mod candidate;
mod conformance;
mod elector;
mod faults;
mod label;
mod late_writes;
mod log;
mod observing;
mod requests;
mod rules;
mod watches;
