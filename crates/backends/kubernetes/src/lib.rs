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
//! The label of the leader's pod needs `get`, `list` and `patch` on the resource `pods` of the core group.
//!
//! A verb that was never allowed is a permanent error at once. What was allowed before may be refused (401, 403) for two minutes, as a control
//! plane does that restarts, until that is permanent.
//!
//! # The label of the leader's pod
//!
//! With `leader_label=true` in the URL, or [`KubernetesConfig::leader_label`], the pod has the label `tenure/leader` while it leads, with the
//! election as its value: a Service with that selector sends requests to the leader. The pod that wins removes the label from others, and a pod
//! that starts removes what its earlier container has left.
//!
//! It is a hint for routing, and promises nothing: a pod that is cut off keeps its label until another leads, and a Service follows late. The
//! leader must still [fence](tenure_core::FencingToken) what it writes. A label that cannot be set is said once and tried again; it delays no
//! election. A label has one value: a pod that leads several elections shows the one that it won first. Use one elector for each pod.
//!
//! Whoever may patch pods may change any of the namespace, their images too: the right cannot be restricted to labels.
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
//! - Each watch is a connection of its own. Beyond 100 for each elector, Leases are read every two thirds of their duration.
//! - An elector forgets a Lease that it has not used for ten minutes, or ten durations. For the rule about deleted Leases it is then one that
//!   has not seen the leader.
//! - A candidate that starts while a control plane refuses everybody ends with an error: it cannot tell that from a missing right.
//! - Leases are never deleted.
#![doc(test(attr(deny(warnings))))]

mod backend;
mod config;
mod diagnose;
mod election;
mod label;
mod observed;
mod record;
mod session;
mod transport;

pub use crate::{
    backend::KubernetesBackend,
    config::{KubernetesConfig, pod_identity},
};
