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
//! | of tenure with different TTLs | yes. A warning is logged, because older candidates of client-go wait for their own duration and not for that of the Lease | yes |
//! | of tenure and of client-go | no: a Go leader counts its deadline from the answers to its renewals, and its work need not stop by then | yes, from one leader of tenure to the next. A Go leader has no token, so that nothing can refuse its late writes |
//! | of tenure, and somebody deletes the Lease of a living leader | no, if a candidate that has not seen the leader creates it again. Candidates that have seen it wait | yes |
//!
//! - A candidate takes a Lease over once the *spec* has not changed for the Lease's duration and the drift bound, by its own monotonic
//!   clock, from when it has seen the spec. A Lease without a duration counts as one of 15 s. Other changes of the object, as of a label,
//!   extend nothing. No time of day is compared.
//! - It takes the Lease over by a write whose precondition is the `resourceVersion` of a read that a quorum of etcd has answered.
//! - A leader counts its deadline from before it sent the last renewal that was answered.
//! - The fencing token is the `resourceVersion` of the write that has acquired the Lease. It is greater than every earlier one, also when
//!   the Lease was deleted in between, which `leaseTransitions` is not.
//! - A write that is executed late, after its request was withdrawn, changes nothing.
//!
//! # The Lease
//!
//! | Field | Value |
//! |---|---|
//! | `metadata.name` | the election. If that is no legal name of an object, as with capitals: `tenure-x-`, and a hash. |
//! | `spec.holderIdentity` | `CANDIDATE_NONCE`, empty once it was released |
//! | `spec.leaseDurationSeconds` | the TTL, rounded up to whole seconds; 1 after a release, as with client-go |
//! | `spec.acquireTime`, `renewTime` | the time of day, for others; a release sets both, too. Every `renewTime` is later than the one before. |
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
//! With `resourceNames`, name the Lease `tenure-doctor` as well: [`Elector::check`](tenure_core::Elector::check) reads it, and
//! [`Elector::diagnose`](tenure_core::Elector::diagnose) enters that election. The latter asks for each verb without a name, and so reports
//! verbs as missing that are allowed for names only.
//!
//! A verb that was never allowed is a permanent error at once. A refusal (401, 403) of a verb that was allowed before is retried for two minutes,
//! because a control plane that restarts refuses everybody for a while; and so is that of a verb that is first needed after two minutes in which
//! the API server knew the user. Each object's name counts by itself.
//!
//! # The label of the leader's pod
//!
//! With `leader_label=true` in the URL, or [`KubernetesConfig::leader_label`], the pod has the label `tenure/leader` while it leads, with the
//! election as its value, so that a Service can select the leader. The pod that wins removes the label from others, and a pod
//! that starts removes what its earlier container has left.
//!
//! It is a hint for routing: a pod that is cut off keeps its label until another leads, and a Service follows late. The
//! leader must still [fence](tenure_core::FencingToken) what it writes. A label that cannot be set is logged once and tried again; it delays no
//! election. A label has one value: a pod that leads several elections shows the one that it won first. Use one elector for each pod.
//!
//! The right to patch pods cannot be restricted to labels: its owner can change every pod of the namespace, also the images.
//!
//! # Assumptions
//!
//! - Clock rates differ by less than the drift bound.
//! - Nobody changes the spec of a Lease that is held, or deletes it.
//! - A later write of a Lease has a higher `resourceVersion`, as a number. Kubernetes documents that since 1.35. Before, it is etcd's revision;
//!   an API server over another database, as k3s with kine, may number differently.
//! - The cluster is not restored from a backup while candidates run: stop all candidates before, and start them after it. Later tokens may be
//!   lower than earlier ones then. A candidate that runs meanwhile refuses a lower `resourceVersion` of the same object (the same uid). A Lease
//!   that was created again, as after the store was wiped, is accepted, with lower tokens.
//!
//! # Limitations
//!
//! - There is no queue. All candidates that wait try when a Lease is released or expires, and the first one leads.
//! - A process that has just started does not replace a dead leader at once: it takes the Lease over once it has itself seen it unchanged for
//!   1.1 times its duration (with the default drift bound). So [`Elector::try_campaign`](tenure_core::Elector::try_campaign) in a new process never
//!   succeeds after a leader that died without a release. Wait for longer than that.
//! - [`Backend::candidates`](tenure_core::spi::Backend::candidates) shows the leader only, as a Lease names nobody else.
//! - A session of a dead process cannot be ended: there are no resume files.
//! - A dead leader is shown as the leader until an observer has seen its Lease unchanged for 1.1 times its duration. What reads it once, as
//!   [`Elector::leader`](tenure_core::Elector::leader) does, cannot tell a dead leader from a living one.
//! - A request to resign fails while a candidate of client-go leads.
//! - Each watch is a connection of its own. Beyond 100 for each elector, Leases are read every two thirds of their duration.
//! - A token file of a kubeconfig (`tokenFile`) is read on the engine's thread. On a file system that hangs, that thread hangs with it; work is
//!   stopped by its deadline all the same.
//! - An elector that knows 100 Leases or more forgets those that it has not used for ten minutes or ten durations, whichever is longer. If the
//!   Lease of a living leader is deleted then, it creates it again at once, as a candidate that has not seen the leader.
//! - A candidate that starts while a control plane refuses everybody ends with an error: it cannot tell that from a missing right.
//! - kube's client logs each failed request as an error, with the target `kube_client::client`. tenure reports an outage by itself.
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
