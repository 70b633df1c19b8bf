//! Leader election on NATS: tenure's NATS backend.
//!
//! It is the recipe of [`tenure_cas`] over a key-value bucket of JetStream. A heartbeat is one write. The fencing token is a counter in the
//! election's record.
//!
//! ```no_run
//! # fn main() -> Result<(), tenure_core::Error> {
//! use tenure_nats::NatsConfig;
//!
//! let url = "nats://10.0.0.1,10.0.0.2,10.0.0.3/billing".parse()?;
//! let backend = tenure_nats::backend(NatsConfig::from_url(&url)?)?;
//! # let _ = backend;
//! # Ok(())
//! # }
//! ```
//!
//! # Guarantees
//!
//! With the servers' default `sync_interval` of 2 min, acknowledged writes are lost when several machines crash at once; two candidates may then
//! lead, with the same fencing token. Set `sync_interval: always`.
//!
//! | Servers | At most one leader | Tokens rise |
//! |---|---|---|
//! | a cluster, a bucket with three replicas or more, and `sync_interval: always` | yes | yes |
//! | the same with the default `sync_interval` | yes, unless machines crash within 2 min of each other, or one crashes while another lags ([nats-server#7564](https://github.com/nats-io/nats-server/issues/7564)) | under the same condition |
//! | one server, or a bucket with one replica, and `sync_interval: always` | yes, while the disk is not lost | yes, while the disk is not lost |
//! | any, when files of a server are damaged or its disk goes back to a snapshot ([#7567](https://github.com/nats-io/nats-server/issues/7567)), or a server is removed and added ([#7545](https://github.com/nats-io/nats-server/issues/7545)) | not promised | not promised |
//!
//! - A swap names the number of the message that it replaces. It counts as done when the stream's leader has acknowledged it, after a quorum of
//!   the replicas has it. Numbers are never used twice. No deduplication by `Nats-Msg-Id` is used.
//! - A request that is carried out late changes nothing that was written since.
//! - A bucket that would remove or lose records by itself is refused: one with a TTL (`max_age`), with a limit beyond which old records are
//!   discarded, in memory, with sources, or with `persist_mode: async`.
//! - Server time is not used.
//!
//! # Fresh reads
//!
//! JetStream answers reads without a quorum: any replica answers a direct read, and for another read a leader that has been cut off
//! answers for some seconds ([nats-server#6970](https://github.com/nats-io/nats-server/pull/6970)). So each read that has to be fresh writes to the key
//! `barrier` first, which a quorum acknowledges, and then asks the leader. A client whose server is cut off gets an error rather than an
//! old record.
//!
//! One case is left. The new leader has acknowledged the write. Then the former leader, which was frozen and does not know of the new one yet,
//! answers the read first. That record is an earlier one. Neither guarantee depends on such a read:
//!
//! - A swap of an earlier version fails.
//! - A session is ended only by a swap of the version that was timed.
//! - A session that has ended stays ended.
//! - No read concludes a withdrawal.
//!
//! A leader may give up its leadership without need, and an observer may see the former leader for a moment.
//!
//! # Assumptions
//!
//! - NATS 2.11 or later on all servers of the cluster, tested with 2.15. A server that is older is refused: two swaps of the same version could
//!   both be done when the stream's leader changes. Since 2.11 a new leader serves only when it has applied its log, and knows of the conditional
//!   writes in flight (nats-server [#6194](https://github.com/nats-io/nats-server/pull/6194),
//!   [#6485](https://github.com/nats-io/nats-server/pull/6485), [#6518](https://github.com/nats-io/nats-server/pull/6518)).
//! - Nobody changes the records, or adds a TTL to the bucket while candidates use it: its settings are checked for each connection.
//! - The bucket is not restored from a backup, or created again, while candidates run. Candidates notice another bucket when they connect, and
//!   when a heartbeat fails; then they refuse it until they are restarted. A swap that was meant for the former bucket fails if the bucket was created
//!   by tenure: its numbers begin with the time in milliseconds.
//! - The hosts belong to one cluster. Those that answer when a process first connects are compared, by the time at which the bucket was created.
//!
//! # Limitations
//!
//! - After the stream's leader has failed, nothing is written for 4 to 10 s, which no setting of NATS changes. A leader keeps its leadership through
//!   all of that with a TTL of 22 s or more.
//! - A read that has to be fresh costs a write of a few bytes.
//! - Changes are announced by messages to `tenure.BUCKET.>` outside of the stream. Also without permission for them a waiting
//!   candidate and a leader read an election's record every ten `poll_interval`s only.
//! - The client library reads an answer of any size into memory; only a server that is not NATS, or is hostile, sends one.
//! - The servers that the cluster announces are not used: name them all.
#![doc(test(attr(deny(warnings))))]

mod bucket;
mod config;
mod connection;
mod diagnose;
mod store;

use std::time::Duration;

use tenure_cas::CasBackend;
use tenure_core::Error;

pub use crate::{config::NatsConfig, store::NatsStore};

/// A bucket of NATS JetStream as a store for elections.
pub type NatsBackend = CasBackend<NatsStore>;

/// How much longer the recipe waits than connecting, opening the bucket, comparing the hosts, and the two requests of a fresh read may take.
const TIMEOUT_MARGIN: Duration = Duration::from_secs(1);

/// A backend for the bucket that `config` describes. Does not connect yet.
///
/// # Errors
/// When `config` has no host, or a name or a number that is not allowed.
pub fn backend(config: NatsConfig) -> Result<NatsBackend, Error> {
    let limit = 4 * config.settings.request_timeout() + TIMEOUT_MARGIN;
    let settings = config.settings.clone().with_request_timeout(limit);
    Ok(CasBackend::with_settings(NatsStore::new(config)?, settings))
}
