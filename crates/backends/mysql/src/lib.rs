//! Leader election on MariaDB and MySQL: tenure's backend over InnoDB tables.
//!
//! It is the recipe of [`tenure_cas`] over two tables, `tenure_records` and `tenure_epoch`. A heartbeat is one `UPDATE`. The fencing token is a
//! counter in the election's record, whose upper bits are the epoch, which rises at each failover.
//!
//! ```no_run
//! # fn main() -> Result<(), tenure_core::Error> {
//! use tenure_mysql::MysqlConfig;
//!
//! let url = "mysql://app@10.0.0.1,10.0.0.2/billing".parse()?;
//! let backend = tenure_mysql::backend(MysqlConfig::from_url(&url)?)?;
//! # let _ = backend;
//! # Ok(())
//! # }
//! ```
//!
//! # Guarantees
//!
//! After the promotion of an asynchronous or semisynchronous replica the guarantees hold only if the former primary answers nobody any more when
//! the replica is promoted, and all candidates have the same TTL.
//!
//! | Servers | At most one leader | Tokens rise |
//! |---|---|---|
//! | one, or one whose disk fails over (replicated by the storage, synchronously) | yes [^visible] | yes [^visible] |
//! | a primary and replicas, of which one is promoted: the last writes may be lost | yes, if the former primary no longer answers when the replica is promoted, and all candidates have the same TTL | yes, under the same condition; not if a second replica is promoted that has missed the first promotion, and no candidate that has lived through both connects before somebody leads |
//! | two primaries, because the former one was not stopped, or a replica is not read-only | no | on each primary; those of the promoted one are higher, once a candidate has used it |
//! | a former primary that comes back with its own rows, while the promoted one does not answer | no; candidates that have seen the promoted one refuse it | no |
//! | a replica that lacks the tables is promoted; or they are dropped | yes, under the conditions of the second row | yes, if the server's time of day is five minutes after that at which the lost epoch began, or more |
//! | a Galera cluster (not tested) | yes, unless all nodes crash at once without durable writes | under the same condition |
//! | a Galera cluster that was bootstrapped from a node without the last writes | no | no |
//!
//! [^visible]: With a binary log. Without one, InnoDB shows a commit to others shortly before it is on the disk: if the machine loses power just then, a
//!     leader that was seen can be forgotten, and its token given again.
//!
//! - Tested with MariaDB 10.11: alone, and with an asynchronous replica. Oracle's MySQL, Galera and group replication are not tested.
//! - The epoch is a number in `tenure_epoch`, beside the identity of the server that it began on: the `server_id`, host name and port of MariaDB,
//!   the `server_uuid` and `server_id` of MySQL, and the `wsrep_cluster_name` of Galera. The row is replicated with the others. The first
//!   candidate that finds it on another server begins the next epoch there, and every statement checks both.
//!   After that nobody leads for the TTL and the drift bound, once per store: a leader's entry may have been lost.
//! - New tables begin at an epoch from the server's time of day, in steps of five minutes. So the first campaign in a new database waits for the TTL
//!   and the drift bound, too: the tables may be missing because a replica did not have them.
//! - A server that comes back with its own rows begins no epoch. Let a former primary come back as a replica of the new one only, or run
//!   `UPDATE tenure_epoch SET server = ''` on it first.
//! - A server is used only if it accepts writes, does not replicate from another one (which MySQL does not show), and keeps what it has acknowledged
//!   when its machine crashes: `innodb_flush_log_at_trx_commit=1`, and `sync_binlog=1` with a binary log. Nodes of Galera are exempt from
//!   the last check, because the other nodes have the writes: if all nodes crash at once, writes can be lost.
//! - A swap is one `UPDATE` or `INSERT` in a transaction of its own. It names the digest of the body that it replaces, so that one which is carried out late, or
//!   twice, changes nothing that was written since. It also changes a counter in the row: drivers and proxies that count changed rows, and those that
//!   count matched ones, agree.
//! - A read is a statement of its own on the primary, at `REPEATABLE READ` with autocommit, and sees every commit that was acknowledged before. The server may have
//!   other defaults: each session sets its own.
//! - Candidates never go back to an earlier epoch. Among several primaries they choose the one with the highest.
//! - The server's time counts in no deadline.
//!
//! # Replication
//!
//! | Kind | What holds |
//! |---|---|
//! | asynchronous, semisynchronous | as in the table above. Semisynchronous replication falls back to asynchronous when no replica answers, so that it promises no more |
//! | Galera | a swap is certified: of two at different nodes one is rolled back with error 1213, which counts as a conflict. Reads wait for what other nodes have committed (`wsrep_sync_wait=15`). A node outside the primary component refuses with error 1047 |
//! | group replication, single primary | as asynchronous, since each member has its own `server_uuid`: an epoch begins at each failover. Set `group_replication_consistency=BEFORE_ON_PRIMARY_FAILOVER` |
//! | group replication, several primaries; circular replication | not supported: each member begins epochs of its own |
//!
//! Two Galera clusters of which one is an asynchronous replica of the other need different values of `wsrep_cluster_name`.
//!
//! # Backups
//!
//! After older rows were restored into the same server nothing shows that. Stop the candidates, restore, and run
//! `UPDATE tenure_epoch SET server = ''`, which begins an epoch.
//!
//! # Assumptions
//!
//! - MariaDB 10.3 or MySQL 5.7 or later. Servers that replicate from each other have different values of `server_id`, as replication needs.
//! - Replicas are read-only (`read_only=1`), and candidates have no user with `READ_ONLY ADMIN` or `SUPER`.
//! - A promotion ends when the replica has applied its relay log: rows do not arrive afterwards.
//! - Nobody changes the tables, and they stay InnoDB's. No disk goes back to a snapshot: nothing would show it.
//! - Connections reach the server itself. A proxy that sends the statements of one session to several servers (as ProxySQL does with multiplexing or with
//!   reads at replicas) loses the settings of the session; statements are refused there if the server is another one or read-only.
//!
//! # Limitations
//!
//! - Up to four connections for heartbeats and four for other requests, for each elector; mostly one of each.
//! - The server sends no notifications: elections are polled.
//! - A transaction that locks a record delays its swap for up to a second, which then fails and is tried again.
//! - The client library logs in by `mysql_native_password` and `caching_sha2_password`, not by `ed25519`, `parsec`, GSSAPI or PAM. Without TLS the latter
//!   takes the server's public key on trust.
//! - Certificate revocation lists are not checked, and a `ca` with one is refused.
//! - The client library trusts the server with memory: one that announces 2⁴⁰ columns can end the process. Use TLS on a network that others share.
#![doc(test(attr(deny(warnings))))]

mod config;
mod diagnose;
mod error;
mod requests;
mod schema;
mod server;
mod store;

use std::time::Duration;

use tenure_cas::CasBackend;
use tenure_core::Error;

pub use crate::{config::MysqlConfig, store::MysqlStore};

/// A MariaDB or MySQL database as a store for elections.
pub type MysqlBackend = CasBackend<MysqlStore>;

/// How much longer the recipe waits than the adapter, whose error says what did not answer.
const TIMEOUT_MARGIN: Duration = Duration::from_millis(250);

/// A backend for the database that `config` describes. Does not connect yet.
///
/// # Errors
/// When `config` has no host, or a name that is not allowed.
pub fn backend(config: MysqlConfig) -> Result<MysqlBackend, Error> {
    let settings = config.settings.clone();
    let settings = settings.clone().with_request_timeout(settings.request_timeout() + TIMEOUT_MARGIN);
    Ok(CasBackend::with_settings(MysqlStore::new(config)?, settings))
}
