//! The members that calls can go to: those of the configuration, and those that the cluster's member list adds.

use std::{
    fmt,
    sync::{
        Arc, PoisonError,
        atomic::{AtomicBool, AtomicU64, Ordering::Relaxed},
    },
};

use super::{Members, outage::MemberOutage};
use crate::transport::connection::Connection;

/// One member.
pub(crate) struct Member {
    /// `host:port`.
    pub(crate) endpoint: String,
    pub(crate) connection: Arc<Connection>,
    /// When this member last returned an answer that needed a quorum, in milliseconds since the start plus one.
    /// Zero when the member is suspected to be frozen or partitioned.
    pub(super) last_quorum_answer: AtomicU64,
    /// Whether it was logged that the member belongs to another cluster.
    pub(super) is_foreign: AtomicBool,
    pub(super) outage: MemberOutage,
    pub(super) origin: Origin,
}

impl Member {
    /// Records that the member may be frozen or partitioned.
    pub(super) fn suspect(&self) {
        self.last_quorum_answer.store(0, Relaxed);
    }
}

/// From where a member is known.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Origin {
    /// From the configuration, or from the DNS records that it names.
    Configured,
    /// From the cluster's member list, with this id.
    Listed(u64),
}

impl Origin {
    /// The id in the member list; `None` for a configured member.
    pub(super) const fn listed_id(self) -> Option<u64> {
        match self {
            Self::Configured => None,
            Self::Listed(id) => Some(id),
        }
    }
}

impl Members {
    /// Makes `endpoints` the configured members.
    pub(super) fn configure(&self, endpoints: &[String]) {
        let known = self.all();
        let is_known = |endpoint: &&String| {
            known.iter().any(|member| member.endpoint == **endpoint && member.origin == Origin::Configured)
        };
        let new = endpoints.iter().filter(|endpoint| !is_known(endpoint));
        let new = new.map(|endpoint| self.member(endpoint, Origin::Configured)).collect();
        self.update(new, |member| {
            member.origin == Origin::Configured && !endpoints.contains(&member.endpoint)
        });
    }

    /// A member that is not in a slot yet.
    pub(super) fn member(&self, endpoint: &str, origin: Origin) -> Member {
        Member {
            endpoint: endpoint.to_owned(),
            connection: Connection::new(Arc::clone(&self.config), endpoint, Arc::clone(&self.probe_key)),
            last_quorum_answer: AtomicU64::new(0),
            is_foreign: AtomicBool::new(false),
            outage: MemberOutage::default(),
            origin,
        }
    }

    /// All members.
    pub(crate) fn all(&self) -> Arc<[Arc<Member>]> {
        Arc::clone(&self.slots.read().unwrap_or_else(PoisonError::into_inner))
    }

    /// Removes the members that are `gone`, and adds `new` ones. Calls and watches in flight keep theirs.
    pub(super) fn update(&self, new: Vec<Member>, gone: impl Fn(&Member) -> bool) {
        let mut current = self.slots.write().unwrap_or_else(PoisonError::into_inner);
        let kept = current.iter().filter(|member| !gone(member)).map(Arc::clone);
        *current = kept.chain(new.into_iter().map(Arc::new)).collect();
    }
}

impl fmt::Debug for Member {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Member").field("endpoint", &self.endpoint).field("origin", &self.origin).finish()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::EtcdConfig;

    fn endpoints(members: &Members) -> Vec<String> {
        members.all().iter().map(|member| member.endpoint.clone()).collect()
    }

    #[tokio::test]
    async fn members_are_added_and_removed() {
        let members = Members::new(EtcdConfig::new(["a:1", "b:1"]), "/t/~probe".to_owned());
        let listed = |host: &str, id| members.member(host, Origin::Listed(id));
        let gone = |id| move |member: &Member| member.origin == Origin::Listed(id);
        members.update(vec![listed("c:1", 3), listed("d:1", 4)], |_| false);
        assert_eq!(endpoints(&members), ["a:1", "b:1", "c:1", "d:1"]);
        members.update(vec![listed("e:1", 5), listed("f:1", 3)], gone(3));
        assert_eq!(endpoints(&members), ["a:1", "b:1", "d:1", "e:1", "f:1"]);
        members.update(vec![], gone(4));
        assert_eq!(endpoints(&members), ["a:1", "b:1", "e:1", "f:1"]);
        members.update(vec![], |_| true);
        assert!(members.all().is_empty());
    }
}
