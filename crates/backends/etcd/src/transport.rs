//! Requests and watches on an etcd cluster. Nothing here depends on [`election`](crate::election).
//!
//! - [`members`] makes a call on one member and fails over to the next; [`hedge`] times the attempts, [`limiter`]
//!   bounds how many calls are in flight, and [`cluster`] rejects answers of another cluster.
//! - [`connection`] keeps one client per member; [`connect`] makes it.
//! - [`request`] is one attempt's client; [`error`] classifies what failed.
//! - [`batcher`] puts concurrent requests into one transaction; [`pages`] reads a key range in parts; [`retry`]
//!   repeats a read until the store answers.
//! - [`watch`] runs all watches of a backend on one stream.

pub(crate) mod batcher;
pub(crate) mod cluster;
pub(crate) mod connect;
pub(crate) mod connection;
pub(crate) mod error;
pub(crate) mod hedge;
pub(crate) mod limiter;
pub(crate) mod members;
pub(crate) mod pages;
pub(crate) mod request;
pub(crate) mod retry;
pub(crate) mod watch;
