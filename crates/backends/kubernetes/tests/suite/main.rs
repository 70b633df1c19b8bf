//! Tests of the backend against an API server for Leases within the process.

mod api_server;
mod candidate;
mod conformance;
mod elector;
mod faults;
mod log;
mod rules;
