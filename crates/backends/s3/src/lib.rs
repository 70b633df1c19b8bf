//! Leader election on Amazon S3 and servers that speak its protocol: tenure's S3 backend.
//!
//! It is the recipe of [`tenure_cas`] over objects below a prefix of a bucket. A heartbeat is one conditional `PUT`. The fencing token is a
//! counter in the election's object.
//!
//! ```no_run
//! # fn main() -> Result<(), tenure_core::Error> {
//! use tenure_s3::S3Config;
//!
//! let url = "s3://acme-elections/billing?region=eu-west-1".parse()?;
//! let backend = tenure_s3::backend(S3Config::from_url(&url)?)?;
//! # let _ = backend;
//! # Ok(())
//! # }
//! ```
//!
//! # Guarantees
//!
//! | Servers | At most one leader | Tokens rise |
//! |---|---|---|
//! | Amazon S3, which acknowledges a write once it is durable, and whose reads and lists show it from then on | yes | yes |
//! | another server that does the same, and carries out a conditional write as one atomic step | yes | yes |
//! | a server, a proxy or a gateway that ignores conditions | refused when a candidate connects, and by the doctor | |
//! | a server that can lose acknowledged writes (no flush to the disk, an asynchronous replica that takes over) | not across such a loss | not across such a loss |
//!
//! - A swap is a `PUT` with `If-Match`, or with `If-None-Match: *` where there must be no object. The version is the ETag. No two bodies are
//!   equal, so that no two ETags of a key are either, although S3 computes them from the body.
//! - Each conditional write is sent once. One whose answer is lost is not repeated before the object was read.
//! - Server time is not used. A clock that is wrong by more than 15 minutes makes S3 refuse the requests: leaders stop at their deadlines.
//!
//! # Assumptions
//!
//! - The server honours `If-Match` and `If-None-Match` of a `PUT` in one step with the write. Each process tries that with an object of its
//!   own before its first candidate enters an election; the doctor does so too. Neither can try whether the step is atomic.
//! - The server loses no acknowledged write. It has no number that would rise when it does.
//! - Nothing else removes or changes the objects: no lifecycle rule expires objects below the prefix, nothing replicates into it, and nobody
//!   edits it. Versioning, encryption and replication *from* the bucket do no harm.
//!
//! ## Deletion
//!
//! S3 has no conditional delete that all servers know. The recipe deletes records of *ended* sessions only, and an adapter
//! may read the record, compare its version and then delete it, because in between and after that
//! nothing can go wrong:
//!
//! - Nobody swaps a record that says `ended`, because `ended` is permanent. So the record that was compared is the one that is deleted, or
//!   somebody has deleted it already.
//! - A deletion that is carried out late can meet a newer record of the key only if one was created after the first deletion. The owner of the
//!   session creates the record once, before anybody else knows its random id, and replaces it before it uses it. Others create it
//!   only as `ended`, when they find it absent. So the deletion removes an `ended` record.
//! - A record that is absent says the same as before: absence proves nothing, and who meets it writes `ended` (hazard C11). A session
//!   that has ended stays ended: each of its heartbeats names a version that is gone.
//! - The records of elections are never deleted.
//!
//! # Limitations
//!
//! - Elections are polled every 2 s (`poll_interval`), and the provider charges for each request. `docs/guide/operating/s3.md` in the
//!   repository has the cost.
//! - The doctor cannot see lifecycle rules.
//! - Google Cloud Storage and Azure Blob Storage are not supported: their conditional requests differ from S3's and were not tested.
//! - Tested with SeaweedFS 4.48. Not tested: Amazon S3 itself, directory buckets (S3 Express One Zone), MinIO, Ceph, R2.
#![doc(test(attr(deny(warnings))))]

mod config;
mod diagnose;
mod error;
mod http;
mod store;
#[cfg(test)]
mod tests;

use std::time::Duration;

use tenure_cas::CasBackend;
use tenure_core::Error;

pub use crate::{config::S3Config, store::S3Store};

/// A bucket as a store for elections.
pub type S3Backend = CasBackend<S3Store>;

/// How much longer the recipe waits than an attempt with the current secret and one with the previous secret may take.
const TIMEOUT_MARGIN: Duration = Duration::from_secs(1);

/// A backend for the bucket that `config` describes. Does not connect yet.
///
/// # Errors
/// When `config` has a name or an endpoint that is not allowed.
pub fn backend(config: S3Config) -> Result<S3Backend, Error> {
    let attempts = 2 * config.settings.request_timeout();
    let settings = config.settings.clone().with_request_timeout(attempts + TIMEOUT_MARGIN);
    Ok(CasBackend::with_settings(S3Store::new(config)?, settings))
}
