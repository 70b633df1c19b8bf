//! Leader election on PostgreSQL: tenure's PostgreSQL backend.
//!
//! It is the recipe of [`tenure_cas`] over two tables, `records` and `epoch`, in a schema of their own. A heartbeat is one `UPDATE`. The fencing
//! token is a counter in the election's record, whose upper bits count failovers.
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
//!
//! [`fence`] makes a transaction of your own one that commits only under a leadership.
//!
//! # Guarantees
//!
//! | Servers | At most one leader | Tokens rise |
//! |---|---|---|
//! | one, or one whose disk fails over (replicated by the storage, synchronously) | yes | yes |
//! | a primary and synchronous standbys, of which one is promoted | yes | yes |
//! | a primary and asynchronous standbys: a promotion loses the last writes | yes, if the former primary no longer answers when the standby is promoted, and all candidates have the same TTL | yes, under the same condition |
//! | two primaries, because the former one was not stopped | no, until one TTL after the *former* one was stopped or cut off from its clients; yes if its only synchronous standby was promoted, since it acknowledges nothing then | yes per primary: those of the promoted one are higher; not if two standbys were promoted to one timeline |
//!
//! - The epoch is the timeline, which a promotion raises, and every swap checks it in the same statement. After a promotion nobody leads for one
//!   TTL and the drift bound, once per store: a leader's entry may have been lost.
//! - A swap counts as done only after the commit was acknowledged, with `synchronous_commit` of at least `on`, whatever the role's setting is. A commit
//!   that somebody cancels while it waits for a standby has an unknown outcome. Nothing is ever cancelled here.
//! - A statement that is carried out late, on a connection that was given up, changes nothing that was written since: it names the version that it replaces.
//! - Candidates never go back to a lower timeline of the same cluster. Among several primaries they choose the one with the highest.
//! - Server time is not used.
//!
//! # Upgrades and backups
//!
//! When the tables have come to another cluster (`pg_upgrade`, a dump, logical replication), or the timeline is lower than it was, the epoch
//! rises by more than one, by itself: sessions end, one TTL passes, and tokens go on above all earlier ones. Stop all candidates before the move
//! and start them after it: a running candidate refuses another cluster.
//!
//! After older rows were restored into the *same* cluster nothing shows that. Stop the candidates, restore, and run
//! `UPDATE tenure.epoch SET cluster = 0`, which has the same effect.
//!
//! # Assumptions
//!
//! - PostgreSQL 12 or later, tested with 15 and 17, with `fsync` and `full_page_writes` on. The role may call `pg_control_system`,
//!   `pg_current_wal_lsn` and `pg_walfile_name`, as everybody may by default.
//! - Nobody changes the tables, and they are not unlogged. No disk goes back to a snapshot: nothing would show it.
//! - Two standbys are not promoted one after the other from the same timeline without a WAL archive that they share: the number of the
//!   timeline would repeat. With asynchronous replication neither promise holds then. With a synchronous standby no acknowledged write exists that the
//!   second one lacks, if it is one of those that had to confirm. `ANY 1 (s1, s2)` in `synchronous_standby_names` prevents no second
//!   primary: either standby can be promoted while the other one still confirms commits.
//! - The database's encoding is UTF-8, or its candidates' values have characters of its encoding only, for [`fence`].
//!
//! # Limitations
//!
//! - Three connections for each elector: for heartbeats, for other requests, and for notifications. While the server does not answer, up to four
//!   of each of the first two.
//! - A transaction that is open for long, anywhere in the database, keeps dead versions of the records from being removed. Elections
//!   become slower after some hours.
//! - A fenced transaction holds up a takeover of its election until it ends.
//! - The statements set `lock_timeout` when they run, after the server has locked the table. Behind an `ACCESS EXCLUSIVE` lock, as of `VACUUM FULL`,
//!   they wait until the lock is gone; `ALTER ROLE … SET lock_timeout = '1s'` bounds that.
//! - While a synchronous standby is missing nothing is acknowledged, and leaders step down at their deadlines.
//! - Notifications need a connection to the server itself, or a pool in session mode, of which it takes a connection for itself. Elections are polled
//!   otherwise.
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
const TIMEOUT_MARGIN: Duration = Duration::from_secs(1);

/// A backend for the database that `config` describes. Does not connect yet.
///
/// # Errors
/// When `config` has no host, or a name or a time that is not allowed.
pub fn backend(config: PostgresConfig) -> Result<PostgresBackend, Error> {
    let settings = CasSettings::new()
        .with_poll_interval(config.poll_interval)
        .with_request_timeout(config.connect_timeout + config.attempt_timeout + TIMEOUT_MARGIN);
    Ok(CasBackend::with_settings(PostgresStore::new(config)?, settings))
}
