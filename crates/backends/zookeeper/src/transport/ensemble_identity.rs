//! The root on the servers of a URL: what it is on each, and what is known from earlier sessions.

use std::{
    collections::{HashMap, HashSet},
    fmt,
    sync::{Mutex, MutexGuard},
};

use tenure_core::spi::{BackendError, BackendErrorKind};
use zookeeper_client::Stat;

use super::{lock, servers::Target, znode_stat::is_unreadable};

/// Identifies a root: the transaction and the time of its creation.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct RootId {
    czxid: i64,
    ctime: i64,
}

impl fmt::Display for RootId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "czxid {:#x}, ctime {}", self.czxid, self.ctime)
    }
}

/// What a server has at the root's path.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum RootState {
    Present(RootId),
    Missing,
    /// It exists, and this user may not read it.
    Unreadable,
}

impl From<Option<Stat>> for RootState {
    fn from(stat: Option<Stat>) -> Self {
        match stat {
            None => Self::Missing,
            Some(stat) if is_unreadable(&stat) => Self::Unreadable,
            Some(Stat { czxid, ctime, .. }) => Self::Present(RootId { czxid, ctime }),
        }
    }
}

impl RootState {
    /// Whether both are known and cannot be of one ensemble.
    pub(crate) fn differs(self, other: Self) -> bool {
        self != other && self != Self::Unreadable && other != Self::Unreadable
    }
}

impl fmt::Display for RootState {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Present(root) => root.fmt(f),
            Self::Missing => f.write_str("missing"),
            Self::Unreadable => f.write_str("not readable"),
        }
    }
}

/// The text for two servers whose roots differ.
pub(crate) fn conflict(
    root: &str,
    (one, own): (impl fmt::Display, RootState),
    (two, other): (impl fmt::Display, RootState),
) -> String {
    format!(
        "the URL names servers of two ensembles: the root {root} is not the same on {one} ({own}) and on {two} ({other}), so \
         that each ensemble would have a leader; name the servers of one ensemble only"
    )
}

/// The root that the servers agreed on, and which servers have it.
#[derive(Debug, Default)]
pub(super) struct EnsembleIdentity(Mutex<PinnedRoot>);

#[derive(Debug, Default)]
struct PinnedRoot {
    root: Option<RootId>,
    /// The servers that have this root.
    servers: HashSet<Target>,
    /// The servers that had another root in a late answer while the session's own server had this one, and that root.
    conflicts: HashMap<Target, RootId>,
}

impl EnsembleIdentity {
    /// Which servers to ask if `server` has `own`; `None` if there is nothing to compare or no server to ask.
    pub(super) fn servers_to_ask(
        &self,
        servers: &[Target],
        server: &Target,
        own: RootState,
    ) -> Option<Vec<Target>> {
        if own == RootState::Unreadable {
            return None;
        }
        let pinned = self.pinned();
        let is_pinned = matches!(own, RootState::Present(root) if pinned.root == Some(root));
        let others = servers.iter().filter(|other| *other != server);
        let unknown: Vec<_> =
            others.filter(|other| !is_pinned || !pinned.servers.contains(*other)).cloned().collect();
        (!unknown.is_empty()).then_some(unknown)
    }

    /// Pins the root of `server` and of the servers that have `answered`, of all that were `asked`.
    pub(super) fn agree(
        &self,
        server: &Target,
        own: RootState,
        asked: &[Target],
        answered: &[(Target, RootState)],
    ) -> Result<(), BackendError> {
        let mut pinned = self.pinned();
        let silent = asked.iter().filter(|server| answered.iter().all(|(other, _)| other != *server));
        let in_conflict = silent.filter_map(|server| Some((server, pinned.conflicts.get(server)?))).next();
        if let Some((silent, shown)) = in_conflict {
            let text = format!(
                "{silent} had another root ({shown}) than {server} ({own}), and does not answer: waiting until it does; name \
                 the servers of one ensemble only"
            );
            return Err(BackendError::new(BackendErrorKind::Unavailable, text));
        }
        let RootState::Present(root) = own else { return Ok(()) };
        if pinned.root != Some(root) {
            let is_in_conflict = pinned.conflicts.get(server) == Some(&root);
            let is_unknown = pinned.root.is_some() && !pinned.servers.contains(server);
            // By name: a name may have addresses that never answer.
            let has_answer =
                |name: &str| name == server.server || answered.iter().any(|(other, _)| other.server == name);
            if (is_in_conflict && answered.len() < asked.len())
                || (is_unknown && !asked.iter().all(|other| has_answer(&other.server)))
            {
                let text = format!(
                    "{server} has another root ({root}) than the servers used before: waiting until every server of the URL \
                     answers"
                );
                return Err(BackendError::new(BackendErrorKind::Unavailable, text));
            }
            (pinned.root, pinned.servers) = (Some(root), HashSet::new());
        }
        let same = answered.iter().filter(|(_, found)| *found == own).map(|(server, _)| server.clone());
        for server in same.chain([server.clone()]) {
            pinned.conflicts.remove(&server);
            pinned.servers.insert(server);
        }
        Ok(())
    }

    /// Records that `server` has `other` while the session's own server has another root.
    pub(super) fn record_conflict(&self, server: &Target, other: RootId) {
        let mut pinned = self.pinned();
        pinned.servers.remove(server);
        pinned.conflicts.insert(server.clone(), other);
    }

    /// Records that `server` has `found`, which counts if it is the root that is pinned.
    pub(super) fn record_same(&self, server: &Target, found: RootState) {
        let mut pinned = self.pinned();
        if matches!(found, RootState::Present(root) if pinned.root == Some(root)) {
            pinned.conflicts.remove(server);
            pinned.servers.insert(server.clone());
        }
    }

    /// Whether one of `servers` had another root, and has not had the same one since.
    pub(super) fn has_conflict(&self, servers: &[Target]) -> bool {
        let pinned = self.pinned();
        servers.iter().any(|server| pinned.conflicts.contains_key(server))
    }

    /// Whether a late answer of `server` was `found`, and another root than the one that is pinned.
    pub(super) fn has_shown(&self, server: &Target, found: RootState) -> bool {
        let shown = self.pinned().conflicts.get(server).copied();
        shown.is_some_and(|shown| found == RootState::Present(shown))
    }

    fn pinned(&self) -> MutexGuard<'_, PinnedRoot> {
        lock(&self.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn root(czxid: i64) -> RootState {
        RootState::Present(RootId { czxid, ctime: 7 })
    }

    fn answers(found: &[(&str, RootState)]) -> Vec<(Target, RootState)> {
        found.iter().map(|(server, found)| (Target::from(*server), *found)).collect()
    }

    /// Hazard G34: roots that were created in two transactions are of two ensembles; an unreadable root proves nothing.
    #[test]
    fn roots_tell_ensembles_apart() {
        assert!(root(1).differs(root(2)) && root(1).differs(RootState::Missing));
        assert!(!root(1).differs(root(1)) && !RootState::Missing.differs(RootState::Missing));
        assert!(
            !root(1).differs(RootState::Unreadable) && !RootState::Unreadable.differs(RootState::Missing)
        );
    }

    /// Hazard G34: known servers are not asked again; a new root on a server that was never asked needs every answer.
    #[test]
    fn a_root_is_pinned() {
        let identity = EnsembleIdentity::default();
        let servers = ["a", "b", "c"].map(Target::from).to_vec();
        let to_ask =
            |server: &str, own| identity.servers_to_ask(&servers, &server.into(), own).unwrap_or_default();
        assert_eq!(to_ask("a", root(1)), ["b", "c"].map(Target::from));
        identity.agree(&"a".into(), root(1), &to_ask("a", root(1)), &answers(&[("b", root(1))])).unwrap();
        assert_eq!(to_ask("b", root(1)), ["c"].map(Target::from));
        // The root was created again.
        assert_eq!(to_ask("b", root(2)), ["a", "c"].map(Target::from));
        identity.agree(&"b".into(), root(2), &to_ask("b", root(2)), &[]).unwrap();
        assert_eq!(to_ask("b", root(2)), ["a", "c"].map(Target::from));
        let asked = to_ask("c", root(3));
        let alone = identity.agree(&"c".into(), root(3), &asked, &answers(&[("a", root(3))])).unwrap_err();
        assert_eq!(alone.kind(), BackendErrorKind::Unavailable, "{alone}");
        identity.agree(&"c".into(), root(3), &asked, &answers(&[("a", root(3)), ("b", root(3))])).unwrap();
        assert_eq!(to_ask("a", root(3)), []);
        assert_eq!(to_ask("a", RootState::Unreadable), []);
    }

    /// Hazard G34: an ensemble that is created again with other addresses is used although some of them never answer.
    #[test]
    fn a_silent_address_delays_no_new_ensemble() {
        let target =
            |server: &str, address: &str| Target { server: server.to_owned(), address: address.to_owned() };
        let [old, new, silent] = ["1", "2", "3"].map(|address| target("a", address));
        let other = target("b", "4");
        let identity = EnsembleIdentity::default();
        identity.agree(&old, root(1), &[], &[]).unwrap();
        // An address that had no root before: each other name has to answer, by one of its addresses.
        let asked = [silent.clone(), other.clone()];
        identity.agree(&new, root(2), &asked, &[]).unwrap_err();
        identity.agree(&new, root(2), &asked, &[(other.clone(), root(2))]).unwrap();
        identity.agree(&new, root(1), &asked, &[]).unwrap();
        let asked = [new.clone(), silent.clone()];
        identity.agree(&other, root(3), &asked, &[]).unwrap_err();
        identity.agree(&other, root(3), &asked, &[(new.clone(), root(3))]).unwrap();
        // An address that still has the root that was in conflict: all have to answer.
        let RootState::Present(foreign) = root(4) else { unreachable!() };
        identity.record_conflict(&silent, foreign);
        identity.agree(&silent, root(4), &[new, other], &[]).unwrap_err();
    }

    /// Hazard G34: a server that had another root is asked by every session, which is not used without its answer, until it
    /// has the same root.
    #[test]
    fn a_conflict_is_kept_until_the_server_agrees() {
        let identity = EnsembleIdentity::default();
        let servers = ["a", "b", "c"].map(Target::from).to_vec();
        let to_ask = || identity.servers_to_ask(&servers, &"a".into(), root(1)).unwrap_or_default();
        identity.agree(&"a".into(), root(1), &to_ask(), &answers(&[("b", root(1)), ("c", root(1))])).unwrap();
        assert_eq!(to_ask(), []);
        identity.record_conflict(&"b".into(), RootId { czxid: 2, ctime: 7 });
        assert!(identity.has_conflict(&servers) && identity.has_shown(&"b".into(), root(2)));
        assert!(!identity.has_shown(&"b".into(), root(3)) && !identity.has_shown(&"c".into(), root(2)));
        assert_eq!(to_ask(), ["b"].map(Target::from));
        let silent = identity.agree(&"a".into(), root(1), &to_ask(), &[]).unwrap_err();
        assert_eq!(silent.kind(), BackendErrorKind::Unavailable, "{silent}");
        identity.record_same(&"b".into(), root(2));
        assert!(identity.has_conflict(&servers));
        identity.agree(&"a".into(), root(1), &to_ask(), &answers(&[("b", root(1))])).unwrap();
        assert!(!identity.has_conflict(&servers) && to_ask().is_empty());
        identity.record_conflict(&"b".into(), RootId { czxid: 2, ctime: 7 });
        identity.record_same(&"b".into(), root(1));
        assert!(!identity.has_conflict(&servers) && to_ask().is_empty(), "it has answered late");
    }
}
