//! Connections and sessions of one ZooKeeper ensemble, whatever is stored over them.
//!
//! | what | where |
//! |---|---|
//! | one TCP connection, with the workarounds for the client library | [`connection`], [`client_task`], [`connect_options`] |
//! | its requests and watches | [`requests`], [`watch`], [`znode_stat`], [`error`] |
//! | a session that moves from one connection to the next | [`resumable_session`], [`session_state`] |
//! | when a connection is given up | [`unresponsive`], with [`unanswered`], [`silence_limit`], [`single_flight`] |
//! | at which server the session is resumed, and when | [`failover`], [`servers`], [`reconnect_delay`] |
//! | why no server was reached | [`reachability`] |
//! | whether the servers belong to one ensemble | [`ensemble`], [`ensemble_identity`] |
//! | sessions to read over | [`reader_sessions`] |
//! | the parents of all znodes | [`parents`] |

mod client_task;
pub(crate) mod connect_options;
pub(crate) mod connection;
pub(crate) mod ensemble;
pub(crate) mod ensemble_identity;
pub(crate) mod error;
mod failover;
pub(crate) mod parents;
mod reachability;
pub(crate) mod reader_sessions;
mod reconnect_delay;
mod requests;
pub(crate) mod resumable_session;
#[cfg(test)]
pub(crate) mod scripted_server;
pub(crate) mod servers;
mod session_state;
mod silence_limit;
mod single_flight;
mod unanswered;
mod unresponsive;
pub(crate) mod watch;
pub(crate) mod znode_stat;

use std::sync::{Mutex, MutexGuard, PoisonError};

/// Locks a mutex. A panic while it was locked leaves nothing half done here.
pub(crate) fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
