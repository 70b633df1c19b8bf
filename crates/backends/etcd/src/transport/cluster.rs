//! Which cluster the members of the URL belong to.
//!
//! A URL that names members of two clusters would have two leaders with the same token (hazard G34). Every etcd
//! response has the ids of the cluster and of the member that sent it, so that they can be compared:
//!
//! - Before the first request, and before every session, all members are queried at the same time. When two of those
//!   that answer belong to different clusters, the request fails permanently, because nothing shows which one is
//!   meant. A member that does not answer in time is skipped.
//! - The cluster is then pinned. A later response of another cluster is discarded, and its member is treated as
//!   unavailable, so that a session continues with the members of its own cluster. An error response names no
//!   cluster; it is accepted only once its member has confirmed that it belongs to the pinned cluster.
//! - Another cluster is pinned once all members that the URL names belong to it: the old one was replaced. The members
//!   that its list named are not used any more.
//!
//! Clusters of one member that were started with default flags have the same cluster id, and their members the same
//! member id. So two members of a URL with the same member id are rejected as well: they are one member under two
//! names, or two clusters.

use std::{sync::Mutex, time::Duration};

use etcd_client::ResponseHeader;
use tenure_core::{
    internal::lock,
    spi::{BackendError, BackendErrorKind},
};
use tokio::time::Instant;

/// The least time between two checks of all members, after a response of another cluster.
const RECHECK_INTERVAL: Duration = Duration::from_secs(5);

/// The ids that a member reports.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct MemberIdentity {
    pub(crate) cluster: u64,
    pub(crate) member: u64,
}

impl MemberIdentity {
    pub(crate) fn of(header: &ResponseHeader) -> Self {
        Self { cluster: header.cluster_id(), member: header.member_id() }
    }
}

/// The only cluster whose responses are accepted.
#[derive(Debug, Default)]
pub(crate) struct PinnedCluster(Mutex<State>);

#[derive(Debug, Default)]
struct State {
    pinned: Option<u64>,
    /// When all members were last queried.
    last_check: Option<Instant>,
    /// Whether a response of another cluster was received since.
    saw_other_cluster: bool,
}

impl PinnedCluster {
    pub(crate) fn pinned(&self) -> Option<u64> {
        lock(&self.0).pinned
    }

    pub(crate) fn is_unpinned(&self) -> bool {
        self.pinned().is_none()
    }

    /// Pins the cluster of the first response, and compares later ones with it. Returns the pinned cluster as the
    /// error when the response is of another one.
    pub(crate) fn accept(&self, cluster: u64) -> Result<(), u64> {
        let mut state = lock(&self.0);
        match *state.pinned.get_or_insert(cluster) {
            pinned if pinned == cluster => Ok(()),
            pinned => {
                state.saw_other_cluster = true;
                Err(pinned)
            }
        }
    }

    /// Whether all members should be queried again, because one of them answered for another cluster.
    pub(crate) fn needs_recheck(&self) -> bool {
        let state = lock(&self.0);
        state.saw_other_cluster && state.last_check.is_none_or(|at| at.elapsed() >= RECHECK_INTERVAL)
    }

    /// Removes the pin. A URL with one member means whatever cluster that member belongs to.
    pub(crate) fn unpin(&self) {
        *lock(&self.0) = State::default();
    }

    /// Evaluates what the members of the URL reported; `None` stands for a member that did not answer. Returns whether
    /// another cluster is pinned now.
    ///
    /// # Errors
    /// [`Invalid`](BackendErrorKind::Invalid) when they belong to two clusters;
    /// [`Unavailable`](BackendErrorKind::Unavailable) when those that answered belong to another cluster than the
    /// pinned one, and not all have answered.
    pub(crate) fn verify(&self, reported: &[(&str, Option<MemberIdentity>)]) -> Result<bool, BackendError> {
        let mut state = lock(&self.0);
        (state.last_check, state.saw_other_cluster) = (Some(Instant::now()), false);
        let answers: Vec<_> =
            reported.iter().filter_map(|(member, identity)| Some((*member, (*identity)?))).collect();
        if let Some(conflict) = conflict_among(&answers) {
            return Err(BackendError::new(BackendErrorKind::Invalid, conflict));
        }
        let Some((member, MemberIdentity { cluster, .. })) = answers.first().copied() else {
            return Ok(false);
        };
        match state.pinned {
            Some(pinned) if pinned != cluster && answers.len() < reported.len() => Err(BackendError::new(
                BackendErrorKind::Unavailable,
                format!(
                    "member {member} belongs to cluster {cluster:x}, but the members belonged to cluster {pinned:x} \
                     before: waiting for every member of the URL to answer"
                ),
            )),
            _ => Ok(state.pinned.replace(cluster).is_some_and(|pinned| pinned != cluster)),
        }
    }
}

/// What is wrong with the ids that members report: the first two that exclude each other.
pub(crate) fn conflict_among(reported: &[(&str, MemberIdentity)]) -> Option<String> {
    let (one, a, two, b) = reported.iter().enumerate().find_map(|(n, (two, b))| {
        let (one, a) = reported[..n].iter().find(|(_, a)| a.cluster != b.cluster || a.member == b.member)?;
        Some((one, a, two, b))
    })?;
    Some(match a.cluster == b.cluster {
        false => format!(
            "the URL names members of two clusters: {one} is of cluster {:x}, and {two} of cluster {:x}: each \
             cluster would have a leader; name the members of one cluster only",
            a.cluster, b.cluster
        ),
        true => format!(
            "the URL names {one} and {two}, and both say that they are member {:x} of cluster {:x}: they are \
             one member under two names, or two clusters with the same id; name each member once, and give each \
             cluster its own --initial-cluster-token",
            a.member, a.cluster
        ),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn id(cluster: u64, member: u64) -> MemberIdentity {
        MemberIdentity { cluster, member }
    }

    /// Hazard G34: the error names the members of two clusters, and one member under two names.
    #[test]
    fn members_of_two_clusters_are_named() {
        let among = |ids: &[MemberIdentity]| {
            let reported: Vec<_> = ["a:1", "b:2", "c:3"].into_iter().zip(ids.iter().copied()).collect();
            conflict_among(&reported)
        };
        assert_eq!(among(&[]), None);
        assert_eq!(among(&[id(1, 1), id(1, 2), id(1, 3)]), None);
        let two = among(&[id(0xaa, 1), id(0xaa, 2), id(0xbb, 3)]).unwrap();
        assert!(two.contains("a:1 is of cluster aa, and c:3 of cluster bb"), "{two}");
        let same = among(&[id(0xaa, 1), id(0xaa, 2), id(0xaa, 2)]).unwrap();
        assert!(
            same.contains("names b:2 and c:3, and both say that they are member 2 of cluster aa"),
            "{same}"
        );
    }

    /// Hazard G34: the pinned cluster stays, unless all members belong to another one.
    #[tokio::test(start_paused = true)]
    async fn a_cluster_is_pinned_until_all_members_are_of_another() {
        let cluster = PinnedCluster::default();
        assert!(cluster.is_unpinned());
        assert!(!cluster.verify(&[("a", Some(id(1, 1))), ("b", None)]).unwrap());
        assert_eq!((cluster.accept(1), cluster.needs_recheck()), (Ok(()), false));
        assert_eq!(cluster.accept(2), Err(1));
        tokio::time::advance(RECHECK_INTERVAL).await;
        assert!(cluster.needs_recheck());
        let refused = cluster.verify(&[("a", Some(id(1, 1))), ("b", Some(id(2, 1)))]).unwrap_err();
        assert_eq!(refused.kind(), BackendErrorKind::Invalid, "{refused}");
        let waiting = cluster.verify(&[("a", None), ("b", Some(id(2, 1)))]).unwrap_err();
        assert_eq!(waiting.kind(), BackendErrorKind::Unavailable, "{waiting}");
        cluster.verify(&[("a", None), ("b", None)]).unwrap();
        assert_eq!(cluster.accept(2), Err(1));
        assert!(cluster.verify(&[("a", Some(id(2, 1))), ("b", Some(id(2, 2)))]).unwrap());
        assert_eq!(cluster.accept(2), Ok(()));
    }
}
