//! Leader election on Consul: tenure's Consul backend.
//!
//! It is the recipe of [`tenure_cas`] over the key-value store, by check-and-set. A heartbeat is one transaction. No session of Consul is used:
//! sessions can end early, when a health check fails or a server leaves, and late, after up to twice their TTL. The fencing token is a counter
//! in the election's record.
//!
//! ```no_run
//! # fn main() -> Result<(), tenure_core::Error> {
//! use tenure_consul::ConsulConfig;
//!
//! let url = "consul://10.0.0.1,10.0.0.2/acme?password_file=/run/secrets/token".parse()?;
//! let backend = tenure_consul::backend(ConsulConfig::from_url(&url)?)?;
//! # let _ = backend;
//! # Ok(())
//! # }
//! ```
//!
//! # Guarantees
//!
//! | Servers | At most one leader | Tokens rise |
//! |---|---|---|
//! | a Raft cluster whose servers keep their disks | yes | yes |
//! | `consul snapshot restore`, or servers whose data was lost (`-dev`, `peers.json` with a server that lags) | no, until one TTL after it | no: they continue from those of the snapshot |
//!
//! - A version is a `ModifyIndex`: the index in the Raft log, which rises with each write, whatever was deleted. It is not used twice for a key.
//! - A swap is a transaction with one `cas` operation. It is answered with its `ModifyIndex` after a majority has written it. Of
//!   a record that is too large for a transaction, above 382 KiB, the index is read after the swap.
//! - Reads on which a decision rests are `?consistent`. Others use the default mode, in which an earlier leader may answer for a
//!   moment. `?stale` is not used: a server that was cut off would go on answering.
//! - Hints of changes are blocking queries. They end when an index goes back, and are begun anew.
//! - Consul's time is not used, nor its TTLs.
//!
//! # Assumptions
//!
//! - Consul 1.8 (tested with 1.8.7) or later (not tested), with its servers' disks intact.
//! - Nobody changes the keys below the prefix. After `consul snapshot restore` the records are old ones again, and nothing shows that: stop all
//!   candidates before it, and start them one TTL after it.
//! - All hosts in the URL are agents of the same datacenter. Before the first request those that answer are compared, and those of two clusters are
//!   refused.
//!
//! # Limitations
//!
//! - While the cluster has no leader nothing is answered. After the leader of three servers was killed that took 15 to 18 s with the default
//!   `raft_multiplier` of 5, and 2.4 to 3.9 s with 1 (measured, four times each). Leaders lose leadership then,
//!   unless it is set to 1, or the TTL is 40 s or more.
//! - Of up to 32 elections for which an elector waits the changes are known at once; others are read every `poll_interval`. An agent allows
//!   200 connections from one address (`limits.http_max_conns_per_client`), and each blocking query takes one. An elector
//!   has up to 32 requests at a time besides, and its heartbeat.
//! - A record has at most 512 KiB (`limits.kv_max_value_size`).
//! - One agent is used at a time. After a request without an answer the next one goes to the next host.
//! - Proxies of the environment (`HTTP_PROXY`) are not used.
#![doc(test(attr(deny(warnings))))]

mod client;
mod config;
mod diagnose;
mod store;

use std::time::Duration;

use tenure_cas::CasBackend;
use tenure_core::Error;

pub use crate::{config::ConsulConfig, store::ConsulStore};

/// The key-value store of a Consul cluster as a store for elections.
pub type ConsulBackend = CasBackend<ConsulStore>;

/// How much longer the recipe waits than a request may take, and the comparison of the hosts before the first one.
const TIMEOUT_MARGIN: Duration = Duration::from_millis(500);

/// A backend for the cluster that `config` describes. Does not connect yet.
///
/// # Errors
/// When `config` has no host, or a prefix that is not allowed.
pub fn backend(config: ConsulConfig) -> Result<ConsulBackend, Error> {
    let limit = 2 * config.settings.request_timeout() + TIMEOUT_MARGIN;
    let settings = config.settings.clone().with_request_timeout(limit);
    Ok(CasBackend::with_settings(ConsulStore::new(config)?, settings))
}
