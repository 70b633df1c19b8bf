//! Tests that use several stores, and the conformance suite on the in-memory and the file-lock store.

mod alerts;
mod bad_input;
mod connect_checked;
mod local;
mod memory;
mod password_files;
mod plain_text;
mod secrets;
mod tls;
mod two_clusters;
mod wiped_store;
