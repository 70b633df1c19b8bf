//! Leader election on Kubernetes: tenure's backend over Leases.
//!
//! Each election has a Lease of `coordination.k8s.io/v1`, with the fields that client-go's `leaderelection` writes. Candidates in Go and in
//! Rust can take part in one election, and `kubectl get lease` shows who leads.
//!
//! ```no_run
//! # fn main() -> Result<(), tenure_core::Error> {
//! use tenure_kubernetes::{KubernetesBackend, KubernetesConfig};
//!
//! let url = "kubernetes:///billing".parse()?;
//! let backend = KubernetesBackend::new(KubernetesConfig::from_url(&url)?)?;
//! # let _ = backend;
//! # Ok(())
//! # }
//! ```
//!
//! # Guarantees
//!
//! | Candidates | At most one leader | Tokens rise |
//! |---|---|---|
//! | of tenure only, with the same TTL | yes | yes |
//! | of tenure with different TTLs | yes; a warning is logged, because it is not safe beside challengers that wait for their own duration | yes |
//! | of tenure and of client-go | no: a Go leader counts its lease from the answer to a renewal, and does not stop its work in time | yes; a Go candidate has no token, and what it does is not fenced |
//! | of tenure, and somebody deletes the Lease of a living leader | no, if a candidate that has not seen the leader creates it again. Candidates that have seen it wait. | yes |
//!
//! - A candidate takes a Lease over once the *spec* has not changed for the Lease's duration and the drift bound, by its own monotonic
//!   clock, from when it has seen the spec. Other changes of the object, as of a label, extend nothing. No time of day is compared.
//! - It does so by a write that names the `resourceVersion` of a quorum's answer.
//! - The leader's deadline is counted from before the renewal was sent that was answered.
//! - The fencing token is the `resourceVersion` of the write that has acquired the Lease. It is greater than every earlier one, also when
//!   the Lease was deleted in between, which `leaseTransitions` is not. Kubernetes 1.35 and later document that; before, it is etcd's revision.
//! - A write that is executed late, after its request was withdrawn, changes nothing.
//!
//! # The Lease
//!
//! | Field | Value |
//! |---|---|
//! | `metadata.name` | the election. If that is no legal name of an object, as with capitals: `tenure-x-`, and a hash. |
//! | `spec.holderIdentity` | `CANDIDATE_NONCE`, empty once it was released |
//! | `spec.leaseDurationSeconds` | the TTL, rounded up to whole seconds |
//! | `spec.acquireTime`, `renewTime` | the time of day, for others. Every renewal is later than the one before. |
//! | `spec.leaseTransitions` | 0, and one more with every leader after the first |
//! | annotation `tenure/token` | the leader's fencing token, a moment after it has won |
//! | annotation `tenure/payload` | the candidate's id, nonce and value, in base64, and a resign request |
//! | annotation `tenure/session` | the session's id |
//! | annotation `tenure/election` | the election, if the name is a hash |
//! | annotation `tenure/withdrawn` | a random number, which a withdrawal changes so that a late write conflicts |
//!
//! # Rights
//!
//! A Role in the namespace: the verbs `get`, `create` and `update` on the resource `leases` of the group `coordination.k8s.io`. Add `watch`:
//! without it Leases are polled, every seventh of their duration. `list` is for listing elections only. `create` cannot be restricted to names.
//!
//! # Assumptions
//!
//! - Clock rates differ by less than the drift bound.
//! - Nobody changes the spec of a Lease that is held, or deletes it.
//! - The cluster is not restored from a backup while candidates run. Candidates refuse a `resourceVersion` lower than one that they have
//!   seen. Later tokens may be lower than earlier ones.
//!
//! # Limitations
//!
//! - There is no queue: who is first when a Lease is released or expires leads. All candidates that wait try.
//! - [`Backend::candidates`](tenure_core::spi::Backend::candidates) shows the leader only, as a Lease names nobody else.
//! - A session of a dead process cannot be ended: there are no resume files.
//! - A leader that is dead is shown as the leader until an observer has seen its Lease stand still for its duration.
//! - Each watch is a connection of its own. Beyond 100 for each elector, Leases are polled.
//! - A credential plugin of a kubeconfig (`exec`) blocks the engine's thread while it runs, and so does a kubeconfig on a file system that hangs.
//! - Not done yet: a refusal (401, 403) that passes by itself ends a campaign, as during a restart of the control plane; a watch that is refused
//!   stays off for that candidate's wait; a watch that never works for another reason is not reported, and the Lease is read every two thirds of
//!   its duration; one request that is throttled (429) delays the renewals of all elections of an elector; records of Leases that were seen
//!   are kept for as long as the elector lives, and Leases are never deleted.
#![doc(test(attr(deny(warnings))))]

mod backend;
mod config;
mod diagnose;
mod election;
mod observed;
mod record;
mod session;
mod transport;

pub use crate::{
    backend::KubernetesBackend,
    config::{KubernetesConfig, pod_identity},
};
