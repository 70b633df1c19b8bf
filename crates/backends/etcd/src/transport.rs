//! Requests and watches on an etcd cluster. Nothing here depends on [`election`](crate::election).
//!
//! - [`members`] makes a call on one member and fails over to the next; [`hedge`] times the attempts, and
//!   [`cluster`] rejects answers of another cluster. With the feature `srv`, `srv`
//!   finds the members by DNS.
//! - [`connection`] keeps one client per member; [`connect`] makes it, and [`tls_probe`] explains why it gets no answer.
//! - [`proxy`] refuses etcd's grpc-proxy, whose keepalives prove nothing.
//! - [`request`] has the clients for requests; [`error`] classifies what failed.
//! - [`batcher`] puts concurrent requests into one transaction; [`pages`] reads a key range in parts.
//! - [`watch`] runs all watches of a backend on one stream.

pub(crate) mod batcher;
pub(crate) mod cluster;
pub(crate) mod connect;
pub(crate) mod connection;
pub(crate) mod error;
pub(crate) mod hedge;
pub(crate) mod members;
pub(crate) mod pages;
pub(crate) mod proxy;
pub(crate) mod request;
#[cfg(feature = "srv")]
mod srv;
pub(crate) mod tls_probe;
pub(crate) mod watch;
