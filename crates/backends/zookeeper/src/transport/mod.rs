//! Connections and sessions of one ZooKeeper ensemble, whatever is stored over them.
//!
//! A [`Connection`](connection::Connection) is one TCP connection. A
//! [`ResumableSession`](resumable_session::ResumableSession) moves a session from one connection to the next
//! ([`failover`]), over the [`servers`] of one [`ensemble`]. The [`reader_sessions`] shares sessions for reading.

mod client_task;
pub(crate) mod connect_options;
pub(crate) mod connection;
pub(crate) mod ensemble;
pub(crate) mod ensemble_identity;
pub(crate) mod error;
mod failover;
pub(crate) mod parents;
pub(crate) mod reader_sessions;
mod requests;
pub(crate) mod resumable_session;
#[cfg(test)]
pub(crate) mod scripted_server;
pub(crate) mod servers;
mod session_state;
pub(crate) mod watch;
pub(crate) mod znode_stat;
