//! Groups elect, and their leaders elect one.

use std::{
    sync::{Arc, OnceLock},
    time::Duration,
};

use async_trait::async_trait;
use futures::{FutureExt as _, future::BoxFuture};
use tokio::time::Instant;
use tracing::{info, warn};

use crate::{
    Backoff, Candidate, CandidateId, Connection, Diagnosis, ElectionName, Elector, Error, InvalidConfig,
    Leaders, Leadership, LeadershipHandle, Status, engine::runtime::retry::Retry,
};

/// An elector in two tiers: every group elects its leader, and only the groups' leaders stand in the election itself.
///
/// With hundreds of candidates, a few of each group's (a rack's, a region's) wait at the top, and the group's own election can
/// be held in a store nearby. Leadership at the top rests on that in the group: the loss of either ends both
/// ([`Leadership::with_parent`]).
///
/// The group's election is called `ELECTION.GROUP`: both tiers may share a store, and even an elector. So groups have no dot in
/// their names, and no other election is to be called like that. A group is itself an
/// elector of any kind, so that tiers can be stacked.
///
/// ```
/// # #[tokio::main(flavor = "current_thread")]
/// # async fn main() -> Result<(), tenure_core::Error> {
/// use std::sync::Arc;
/// use tenure_core::{Config, Elector, Hierarchy, StoreElector, memory::MemoryStore};
///
/// let store = MemoryStore::new();
/// let elector = Arc::new(StoreElector::new(Arc::new(store.backend()), Config::new())?);
/// let hierarchy = Hierarchy::new(elector, "berlin")?;
/// let leadership = hierarchy.campaign("billing").await?;
/// assert_eq!(leadership.election().as_str(), "billing");
/// let in_the_group = hierarchy.group_leader("billing").await?;
/// assert_eq!(in_the_group.map(|leader| leader.id), Some(hierarchy.candidate().to_string()));
/// leadership.resign().await?; // at the top, and in the group
/// # Ok(()) }
/// ```
#[derive(Debug)]
pub struct Hierarchy {
    top: Arc<dyn Elector>,
    groups: Arc<dyn Elector>,
    group: ElectionName,
}

impl Hierarchy {
    /// An elector whose candidates belong to `group`; both tiers' elections are held by `elector`.
    ///
    /// # Errors
    /// A group's name that is no election's, or has a dot.
    pub fn new(elector: Arc<dyn Elector>, group: &str) -> Result<Self, Error> {
        let name = ElectionName::new(group)?;
        if group.contains('.') {
            return Err(InvalidConfig::Group { given: group.to_owned() }.into());
        }
        let group = name;
        Ok(Self { groups: Arc::clone(&elector), top: elector, group })
    }

    /// The same, with the group's elections held by `elector`: in a store of the group's own, say.
    pub fn with_group_elector(mut self, elector: Arc<dyn Elector>) -> Self {
        self.groups = elector;
        self
    }

    /// The name of the group's election for `election`.
    ///
    /// # Errors
    /// When it is too long, or `election` is not legal.
    pub fn group_election(&self, election: &str) -> Result<ElectionName, Error> {
        ElectionName::new(election)?;
        Ok(ElectionName::new(&format!("{election}.{}", self.group))?)
    }

    /// Who leads the group now.
    ///
    /// # Errors
    /// As [`Elector::leader`].
    pub async fn group_leader(&self, election: &str) -> Result<Option<Candidate>, Error> {
        self.groups.leader(self.group_election(election)?.as_str()).await
    }

    fn shares(&self) -> bool {
        Arc::ptr_eq(&self.top, &self.groups)
    }
}

#[async_trait]
impl Elector for Hierarchy {
    /// Leads the group first, and then campaigns at the top for as long as the group is led.
    async fn campaign(&self, election: &str) -> Result<Leadership, Error> {
        let group = self.group_election(election)?;
        let mut retry = Retry::new(self.work_backoff());
        loop {
            let base = self.groups.campaign(group.as_str()).await?;
            let reason = tokio::select! {
                biased;
                reason = base.lost() => reason,
                top = self.top.campaign(election) => return Ok(top?.with_parent(base)),
            };
            info!(election, group = %self.group, %reason, "no longer leads its group; campaigning there again");
            // Given back for certain before it is stood for again.
            let _ = base.resign().await;
            retry.pause().await;
        }
    }

    async fn campaign_until(
        &self,
        election: &str,
        given_up: BoxFuture<'_, ()>,
    ) -> Result<Option<Leadership>, Error> {
        let group = self.group_election(election)?;
        let mut retry = Retry::new(self.work_backoff());
        // Since when it is given up: both tiers share the time that is left then.
        let since = Arc::new(OnceLock::new());
        let begins = Arc::clone(&since);
        let given_up = given_up
            .map(move |()| {
                begins.get_or_init(Instant::now);
            })
            .boxed()
            .shared();
        loop {
            let base = self.groups.campaign_until(group.as_str(), given_up.clone().boxed()).await?;
            let Some(base) = base else { return Ok(None) };
            let ended = futures::future::select(given_up.clone(), base.lost().boxed());
            let top = self.top.campaign_until(election, ended.map(drop).boxed()).await?;
            if let Some(top) = top {
                return Ok(Some(top.with_parent(base)));
            }
            if let Some(since) = since.get() {
                let left = self.groups.shutdown_timeout().saturating_sub(since.elapsed());
                if !matches!(
                    tokio::time::timeout(left, base.resign()).await,
                    Ok(Ok(()) | Err(Error::Lost(_)))
                ) {
                    warn!(election = %group, "the store has not confirmed that the entry is gone; it goes once the store answers, or with its session");
                }
                return Ok(None);
            }
            // Given back for certain before it is stood for again.
            let _ = base.resign().await;
            info!(election, group = %self.group, "no longer leads its group; campaigning there again");
            tokio::select! {
                biased;
                () = given_up.clone() => return Ok(None),
                () = retry.pause() => {}
            }
        }
    }

    async fn try_campaign(&self, election: &str) -> Result<Option<Leadership>, Error> {
        let group = self.group_election(election)?;
        let Some(base) = self.groups.try_campaign(group.as_str()).await? else { return Ok(None) };
        match self.top.try_campaign(election).await {
            Ok(Some(top)) => Ok(Some(top.with_parent(base))),
            other => {
                // Whoever was turned away may try again at once, and find the group's place free.
                let _ = base.resign().await;
                other
            }
        }
    }

    async fn leader(&self, election: &str) -> Result<Option<Candidate>, Error> {
        self.top.leader(election).await
    }

    /// The groups' leaders.
    async fn candidates(&self, election: &str) -> Result<Vec<Candidate>, Error> {
        self.top.candidates(election).await
    }

    fn observe(&self, election: &str) -> Leaders {
        self.top.observe(election)
    }

    async fn request_resign(&self, election: &str) -> Result<Option<Candidate>, Error> {
        self.top.request_resign(election).await
    }

    fn candidate(&self) -> CandidateId {
        self.top.candidate()
    }

    fn leadership(&self, election: &str) -> Option<LeadershipHandle> {
        // Not before it rests on the group's.
        self.top.leadership(election).filter(LeadershipHandle::rests)
    }

    /// That of the top; of the group's store while that does not answer.
    fn status(&self) -> Status {
        let (top, group) = (self.top.status(), self.groups.status());
        match (top.connection, group.connection) {
            (Connection::Idle | Connection::Connected, Connection::Retrying | Connection::Refused) => group,
            _ => top,
        }
    }

    async fn diagnose(&self) -> Vec<Diagnosis> {
        let mut diagnoses = self.top.diagnose().await;
        if !self.shares() {
            diagnoses.extend(self.groups.diagnose().await);
        }
        diagnoses
    }

    fn work_backoff(&self) -> Backoff {
        self.top.work_backoff()
    }

    fn shutdown_timeout(&self) -> Duration {
        self.top.shutdown_timeout()
    }

    /// The top first, so that no work goes on when the group is given back.
    async fn close(&self) {
        self.top.close().await;
        if !self.shares() {
            self.groups.close().await;
        }
    }
}
