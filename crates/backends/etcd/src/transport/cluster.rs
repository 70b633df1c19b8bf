//! Which cluster the members of the URL belong to.
//!
//! A URL that names members of two clusters would have two leaders with the same token (hazard G34). Every answer of etcd names
//! the cluster and the member that gave it, so that they can be compared:
//!
//! - Before the first request, and before every session, all members are asked at once. When two that answer belong to two
//!   clusters, nobody can know which is meant: the request is refused for good. A member that does not answer in time is not
//!   waited for.
//! - After that the cluster is pinned. A later answer of another cluster is thrown away, and its member counts as one that does
//!   not answer: a session goes on with the members of its own cluster. A refusal, which names no cluster, is believed only
//!   once its member has said that it is of the pinned one.
//! - Another cluster is pinned when all members belong to it: the old one was replaced.
//!
//! Clusters of one member that were started with default flags have the same id, and so have their members. So two members
//! of a URL with the same member id are refused too: they are one member under two names, or two clusters.

use std::{
    fmt,
    sync::{Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use etcd_client::ResponseHeader;
use tenure_core::spi::{BackendError, BackendErrorKind};
use tokio::time::Instant;

/// How often the members are asked again after an answer of another cluster.
const ASK_AGAIN: Duration = Duration::from_secs(5);

/// What a member says of itself.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Identity {
    pub(crate) cluster: u64,
    pub(crate) member: u64,
}

impl Identity {
    pub(crate) fn of(header: &ResponseHeader) -> Self {
        Self { cluster: header.cluster_id(), member: header.member_id() }
    }
}

/// The cluster whose answers count.
#[derive(Debug, Default)]
pub(crate) struct Cluster(Mutex<State>);

#[derive(Debug, Default)]
struct State {
    pinned: Option<u64>,
    /// When the members were asked last.
    asked: Option<Instant>,
    /// An answer of another cluster has come since.
    is_in_doubt: bool,
}

impl Cluster {
    /// Whether no cluster is pinned yet.
    pub(crate) fn is_unknown(&self) -> bool {
        self.state().pinned.is_none()
    }

    /// Takes the first answer's cluster for the one that is meant, and compares later ones with it. Returns the pinned
    /// cluster when the answer is of another one.
    pub(crate) fn admit(&self, cluster: u64) -> Result<(), u64> {
        let mut state = self.state();
        match *state.pinned.get_or_insert(cluster) {
            pinned if pinned == cluster => Ok(()),
            pinned => {
                state.is_in_doubt = true;
                Err(pinned)
            }
        }
    }

    /// Whether it is time to ask all members again, because one of them answered for another cluster.
    pub(crate) fn is_in_doubt(&self) -> bool {
        let state = self.state();
        state.is_in_doubt && state.asked.is_none_or(|at| at.elapsed() >= ASK_AGAIN)
    }

    /// Whatever the only member of a URL belongs to is meant.
    pub(crate) fn forget(&self) {
        *self.state() = State::default();
    }

    /// Draws the conclusion from what the members of the URL said: `None` of those that did not answer.
    ///
    /// # Errors
    /// [`Invalid`](BackendErrorKind::Invalid) when they are of two clusters;
    /// [`Unavailable`](BackendErrorKind::Unavailable) when those that answered are of another one than before, and
    /// not all have answered.
    pub(crate) fn agree(&self, said: &[(&str, Option<Identity>)]) -> Result<(), BackendError> {
        let mut state = self.state();
        (state.asked, state.is_in_doubt) = (Some(Instant::now()), false);
        let answers: Vec<_> = said.iter().filter_map(|(member, said)| Some((*member, (*said)?))).collect();
        if let Some(conflict) = Conflict::among(&answers) {
            return Err(BackendError::new(BackendErrorKind::Invalid, conflict.to_string()));
        }
        let Some((member, Identity { cluster, .. })) = answers.first().copied() else { return Ok(()) };
        match state.pinned {
            Some(pinned) if pinned != cluster && answers.len() < said.len() => Err(BackendError::new(
                BackendErrorKind::Unavailable,
                format!(
                    "member {member} is of cluster {cluster:x}, and the members were of cluster {pinned:x} before: \
                     waiting for every member of the URL to answer"
                ),
            )),
            _ => {
                state.pinned = Some(cluster);
                Ok(())
            }
        }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Two members of a URL that cannot both be meant.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Conflict<'a> {
    members: [&'a str; 2],
    ids: [Identity; 2],
}

impl<'a> Conflict<'a> {
    /// The first conflict among members and what they say of themselves.
    pub(crate) fn among(said: &[(&'a str, Identity)]) -> Option<Self> {
        said.iter().enumerate().find_map(|(n, (two, b))| {
            let (one, a) = said[..n].iter().find(|(_, a)| a.cluster != b.cluster || a.member == b.member)?;
            Some(Self { members: [one, two], ids: [*a, *b] })
        })
    }
}

impl fmt::Display for Conflict<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let ([one, two], [a, b]) = (self.members, self.ids);
        match a.cluster == b.cluster {
            false => write!(
                f,
                "the URL names members of two clusters: {one} is of cluster {:x}, and {two} of cluster {:x}: candidates \
                 would lead on each; name the members of one cluster only",
                a.cluster, b.cluster
            ),
            true => write!(
                f,
                "the URL names {one} and {two}, and both say that they are member {:x} of cluster {:x}: they are one member \
                 under two names, or two clusters with the same id; name each member once, and give each cluster an \
                 --initial-cluster-token of its own",
                a.member, a.cluster
            ),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn id(cluster: u64, member: u64) -> Identity {
        Identity { cluster, member }
    }

    /// Hazard G34: two clusters in one URL, and one member under two names, are told by name.
    #[test]
    fn members_of_two_clusters_are_named() {
        let among = |ids: &[Identity]| {
            let said: Vec<_> = ["a:1", "b:2", "c:3"].into_iter().zip(ids.iter().copied()).collect();
            Conflict::among(&said).map(|conflict| conflict.to_string())
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

    /// Hazard G34: what was pinned stays, unless all members are of another cluster.
    #[tokio::test(start_paused = true)]
    async fn a_cluster_is_pinned_until_all_members_are_of_another() {
        let cluster = Cluster::default();
        assert!(cluster.is_unknown());
        cluster.agree(&[("a", Some(id(1, 1))), ("b", None)]).unwrap();
        assert_eq!((cluster.admit(1), cluster.is_in_doubt()), (Ok(()), false));
        assert_eq!(cluster.admit(2), Err(1));
        tokio::time::advance(ASK_AGAIN).await;
        assert!(cluster.is_in_doubt());
        let refused = cluster.agree(&[("a", Some(id(1, 1))), ("b", Some(id(2, 1)))]).unwrap_err();
        assert_eq!(refused.kind(), BackendErrorKind::Invalid, "{refused}");
        let waits = cluster.agree(&[("a", None), ("b", Some(id(2, 1)))]).unwrap_err();
        assert_eq!(waits.kind(), BackendErrorKind::Unavailable, "{waits}");
        cluster.agree(&[("a", None), ("b", None)]).unwrap();
        assert_eq!(cluster.admit(2), Err(1));
        cluster.agree(&[("a", Some(id(2, 1))), ("b", Some(id(2, 2)))]).unwrap();
        assert_eq!(cluster.admit(2), Ok(()));
    }
}
