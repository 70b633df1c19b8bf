//! Leader election on one Redis or Valkey server. **A single node: a failover to a replica loses safety. Two candidates can lead, and tokens
//! can repeat.**
//!
//! It is the recipe of [`tenure_cas`] over the fields of one hash. Every operation is one Lua script. A heartbeat is one script, whatever the number
//! of elections. The fencing token is a counter in the election's record, whose upper bits are the epoch.
//!
//! ```no_run
//! # fn main() -> Result<(), tenure_core::Error> {
//! use tenure_redis::RedisConfig;
//!
//! let url = "redis://app@10.0.0.1/0?password_file=/run/secrets/redis".parse()?;
//! # if false {
//! let backend = tenure_redis::backend(RedisConfig::from_url(&url)?)?;
//! # let _ = backend;
//! # }
//! # Ok(())
//! # }
//! ```
//!
//! # Guarantees
//!
//! | Server | At most one leader | Tokens rise |
//! |---|---|---|
//! | one node, with `appendonly yes` and `appendfsync always`: a restart loses nothing | yes | yes |
//! | one node, with `appendfsync everysec`: a crash of the machine loses the last second or two | yes, if all candidates have the same TTL | yes |
//! | one node, with RDB snapshots only or without persistence: a restart loses the last records, or all | yes, under the same condition | in most cases [^clock] |
//! | a `maxmemory-policy` of `allkeys-*`, `FLUSHALL`, `DEL`: all records are lost while the server runs | yes, under the same condition | in most cases [^clock] |
//! | a replica is promoted after the former primary was stopped for good | yes, under the same condition | yes; not if two replicas with the same records are promoted one after the other |
//! | a replica is promoted while the former primary serves some candidates, as Sentinel and Cluster do | **no**, until one TTL after the former primary has stopped | **no** |
//! | a node of Redis Cluster | as the two rows before | as the two rows before |
//! | a virtual machine is reset to a snapshot with its memory; or a primary is made a replica and then a primary again, without a restart | **no** | **no** |
//!
//! [^clock]: Unless the last epoch is lost, with all records or with those since the last snapshot, and no candidate that still runs knows it. Then the next
//!     one comes from the server's time of day, in steps of five minutes. Tokens can repeat if the lost epoch began in the same step, if epochs
//!     began more often than once per step (each restart begins one), or if that clock was set back.
//!
//! - The epoch is a number in the hash, beside the `run_id` of the server's process and a nonce. Every swap checks all three inside the script. When
//!   one of them is not as a candidate knows it, the number is raised above all that the hash and the candidate have seen. The records are in the
//!   same hash: who loses records loses the epoch.
//! - So **every restart of the server ends all sessions, and nobody leads for the TTL and the drift bound after it**, once per prefix: a leader's entry may
//!   have been lost. That is also so for the very first candidate, since an empty hash may have been a full one.
//! - The version of a record is the SHA-1 of its body, which the script compares with that of the stored value. No two bodies are equal.
//! - A replica refuses the script, reads too. A script that is carried out late, on a connection that was given up, changes nothing that was written
//!   since: it names the version that it replaces.
//! - The server's time counts in no deadline.
//!
//! # Assumptions
//!
//! - Redis 7.0 or later, or Valkey; tested with Redis 7.0 and Valkey 8.1. Through a proxy only if it passes RESP3 and all connections on to one server.
//! - `fsync` of the server's disk works, if `appendfsync always` is to keep the records. The epoch and the tokens survive a restart then, and do not
//!   depend on the server's time of day; candidates that wait enter again.
//! - Nobody but candidates writes to the hash.
//!
//! # Limitations
//!
//! - One connection for each elector, which receives the notifications as well. A server that does not answer within `attempt_timeout` gets another one.
//! - A script stops the server for as long as it runs: 15 to 22 µs on average in the conformance suite, and some 2 ms for a record of 400 KB
//!   (measured). Lists are read in parts by `HSCAN`.
//! - While another program's script or command blocks the server, heartbeats wait with all other requests.
//! - There is no client of Sentinel or Cluster: `failover=unsafe` uses the one of several hosts that is a primary, and the node that has the slot of the prefix.
//! - A fenced write needs a resource that compares tokens; Redis itself has no part that does.
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
const TIMEOUT_MARGIN: Duration = Duration::from_millis(500);

/// A backend for the server that `config` describes. Does not connect yet.
///
/// # Errors
/// When `config` has a host or a prefix that is not allowed.
pub fn backend(config: RedisConfig) -> Result<RedisBackend, Error> {
    let settings = config.settings.clone();
    let limit = 2 * settings.request_timeout() + TIMEOUT_MARGIN;
    Ok(CasBackend::with_settings(RedisStore::new(config)?, settings.with_request_timeout(limit)))
}
