//! Leader election on PostgreSQL: tenure's PostgreSQL backend.
//!
//! ```no_run
//! # fn main() -> Result<(), tenure_core::Error> {
//! use tenure_postgres::PostgresConfig;
//!
//! let url = "postgres://app@10.0.0.1,10.0.0.2/billing".parse()?;
//! let backend = tenure_postgres::backend(PostgresConfig::from_url(&url)?)?;
//! # let _ = backend;
//! # Ok(())
//! # }
//! ```
#![doc(test(attr(deny(warnings))))]

mod config;
mod connect;
mod connection;
mod diagnose;
mod error;
mod fence;
mod hints;
mod passfile;
mod schema;
mod store;
#[cfg(feature = "tls")]
mod tls;

use std::time::Duration;

use tenure_cas::{CasBackend, CasSettings};
use tenure_core::Error;

pub use crate::{
    config::PostgresConfig,
    fence::{FenceError, FenceQuery, fence},
    store::PostgresStore,
};
/// The client library of [`fence`].
pub use tokio_postgres;

/// A PostgreSQL database as a store for elections.
pub type PostgresBackend = CasBackend<PostgresStore>;

/// How much longer the recipe waits than an attempt to connect and one statement may take.
const SLACK: Duration = Duration::from_secs(1);

/// A backend for the database that `config` describes. Does not connect yet.
///
/// # Errors
/// When `config` has no host, or a name or a time that is not allowed.
pub fn backend(config: PostgresConfig) -> Result<PostgresBackend, Error> {
    let settings = CasSettings::new()
        .with_poll_interval(config.poll_interval)
        .with_request_timeout(config.connect_timeout + config.attempt_timeout + SLACK);
    Ok(CasBackend::with_settings(PostgresStore::new(config)?, settings))
}
