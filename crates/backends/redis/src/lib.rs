//! Leader election on one Redis or Valkey server. **A single node: a failover to a replica loses safety. Two candidates can lead, and tokens
//! can repeat.**
#![doc(test(attr(deny(warnings))))]

mod config;
mod connection;
mod diagnose;
mod error;
mod hints;
mod store;
mod stream;

use std::time::Duration;

use tenure_cas::CasBackend;
use tenure_core::Error;

pub use crate::{config::RedisConfig, store::RedisStore};

/// A Redis or Valkey server as a store for elections.
pub type RedisBackend = CasBackend<RedisStore>;

/// What everybody has to know.
const SINGLE_NODE: &str = "Redis is a single node here: a failover to a replica loses safety: two candidates can lead, and tokens can repeat";

/// How much longer the recipe waits than an attempt to connect and one request may take.
const SLACK: Duration = Duration::from_millis(500);

/// A backend for the server that `config` describes. Does not connect yet.
///
/// # Errors
/// When `config` has a host or a prefix that is not allowed.
pub fn backend(config: RedisConfig) -> Result<RedisBackend, Error> {
    let settings = config.settings.clone();
    let limit = 2 * settings.request_timeout() + SLACK;
    Ok(CasBackend::with_settings(RedisStore::new(config)?, settings.with_request_timeout(limit)))
}
