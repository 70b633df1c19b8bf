//! Hierarchical elections: groups elect leaders, and these elect one leader.

use std::{
    sync::{Arc, OnceLock},
    time::Duration,
};

use async_trait::async_trait;
use futures::{FutureExt as _, future::BoxFuture};
use tracing::{info, warn};

use crate::{
    Backoff, CampaignOptions, Candidate, CandidateId, Connection, Diagnosis, ElectionName, Elector, Engine,
    Error, InvalidConfig, Leaders, Leadership, LeadershipHandle, Patience, Shutdown, Status,
    retry_delays::RetryDelays, timers::Timers,
};

/// An elector with two tiers: every group elects its leader, and only the leaders of groups campaign in the election itself.
///
/// With hundreds of candidates, only one of each group (a rack, a region) waits in the top election, and the group's own
/// election can be held in a store nearby. The leadership in the group is the parent of the leadership at the top: the loss of
/// either ends both ([`Leadership::with_parent`]).
///
/// The election of a group is named `ELECTION.GROUP`, so that both tiers can share a store, and even an elector. Therefore the
/// name of a group contains no dot, and no other election may have such a name. The elector of the groups can be of any
/// kind, also a hierarchy.
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
/// let group_leader = hierarchy.group_leader("billing").await?;
/// assert_eq!(group_leader.map(|leader| leader.id), Some(hierarchy.candidate_id().to_string()));
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
    /// An elector whose candidates belong to `group`. `elector` holds the elections of both tiers.
    ///
    /// # Errors
    /// When the name of the group is illegal as the name of an election, or contains a dot.
    pub fn new(elector: Arc<dyn Elector>, group: &str) -> Result<Self, Error> {
        let name = ElectionName::new(group)?;
        if group.contains('.') {
            return Err(InvalidConfig::Group { given: group.to_owned() }.into());
        }
        let group = name;
        Ok(Self { groups: Arc::clone(&elector), top: elector, group })
    }

    /// Sets the elector that holds the elections of the group, for example in a store of the group's own.
    pub fn with_group_elector(mut self, elector: Arc<dyn Elector>) -> Self {
        self.groups = elector;
        self
    }

    /// The name of the group's election for `election`.
    ///
    /// # Errors
    /// When that name is too long, or `election` is illegal.
    pub fn group_election(&self, election: &str) -> Result<ElectionName, Error> {
        ElectionName::new(election)?;
        Ok(ElectionName::new(&format!("{election}.{}", self.group))?)
    }

    /// The current leader of the group.
    ///
    /// # Errors
    /// As [`Elector::leader`].
    pub async fn group_leader(&self, election: &str) -> Result<Option<Candidate>, Error> {
        self.groups.leader(self.group_election(election)?.as_str()).await
    }

    fn tiers_share_elector(&self) -> bool {
        Arc::ptr_eq(&self.top, &self.groups)
    }
}

#[async_trait]
impl Elector for Hierarchy {
    /// Campaigns in the group first, and then at the top for as long as the leadership in the group lasts. The value of the
    /// options is that of the candidates in both tiers. The grace period is kept at the top, before both deadlines.
    async fn campaign_with(
        &self,
        election: &str,
        options: CampaignOptions,
    ) -> Result<Option<Leadership>, Error> {
        let group = self.group_election(election)?;
        options.validate()?;
        let timers = Timers::of(self);
        let begun = timers.now();
        let mut retry = RetryDelays::new(self.work_backoff());
        loop {
            let group_options = options.clone().without_grace_period().after_waiting(timers.since(begun));
            let parent = self.groups.campaign_with(group.as_str(), group_options).await?;
            let Some(parent) = parent else { return Ok(None) };
            let top_options = options.clone().after_waiting(timers.since(begun));
            let reason = tokio::select! {
                biased;
                reason = parent.lost() => reason,
                top = self.top.campaign_with(election, top_options) => {
                    if let Ok(Some(top)) = top {
                        return Ok(Some(top.with_parent(parent)));
                    }
                    // Confirmed before this returns, so that another attempt finds the group's election free.
                    let _ = parent.resign().await;
                    return top;
                }
            };
            info!(election, group = %self.group, %reason, "no longer leads its group; campaigning there again");
            // The resignation is confirmed before the next campaign.
            let _ = parent.resign().await;
            if options.patience() == Patience::NoWait {
                return Ok(None);
            }
            timers.sleep(retry.next_delay()).await;
        }
    }

    /// Sets the value of the candidates in both tiers.
    async fn set_value(&self, election: &str, value: Vec<u8>) -> Result<(), Error> {
        let group = self.group_election(election)?;
        self.groups.set_value(group.as_str(), value.clone()).await?;
        self.top.set_value(election, value).await
    }

    async fn campaign_until(
        &self,
        election: &str,
        cancel: BoxFuture<'_, ()>,
    ) -> Result<Option<Leadership>, Error> {
        let group = self.group_election(election)?;
        let timers = Timers::of(self);
        let mut retry = RetryDelays::new(self.work_backoff());
        // The instant at which `cancel` completed: both tiers share the shutdown timeout from then on.
        let cancelled_at = Arc::new(OnceLock::new());
        let record = Arc::clone(&cancelled_at);
        let clock = timers.clone();
        let cancel = cancel
            .map(move |()| {
                record.get_or_init(|| clock.now());
            })
            .boxed()
            .shared();
        loop {
            let parent = self.groups.campaign_until(group.as_str(), cancel.clone().boxed()).await?;
            let Some(parent) = parent else { return Ok(None) };
            let cancelled_or_lost = futures::future::select(cancel.clone(), parent.lost().boxed());
            let top = self.top.campaign_until(election, cancelled_or_lost.map(drop).boxed()).await?;
            if let Some(top) = top {
                return Ok(Some(top.with_parent(parent)));
            }
            if let Some(since) = cancelled_at.get() {
                let remaining = self.groups.shutdown_timeout().saturating_sub(timers.since(*since));
                if !parent.resign_within(remaining).await.confirmed {
                    warn!(election = %group, "the store has not confirmed that the entry is gone; it is removed once the store answers, or expires with its session");
                }
                return Ok(None);
            }
            // The resignation is confirmed before the next campaign.
            let _ = parent.resign().await;
            info!(election, group = %self.group, "no longer leads its group; campaigning there again");
            tokio::select! {
                biased;
                () = cancel.clone() => return Ok(None),
                () = timers.sleep(retry.next_delay()) => {}
            }
        }
    }

    async fn leader(&self, election: &str) -> Result<Option<Candidate>, Error> {
        self.top.leader(election).await
    }

    /// The leaders of the groups.
    async fn candidates(&self, election: &str) -> Result<Vec<Candidate>, Error> {
        self.top.candidates(election).await
    }

    /// The elections of the top tier's store. Where both tiers share a store, those of the groups too.
    async fn elections(&self) -> Result<Vec<ElectionName>, Error> {
        self.top.elections().await
    }

    fn observe(&self, election: &str) -> Leaders {
        self.top.observe(election)
    }

    async fn request_resign(&self, election: &str) -> Result<Option<Candidate>, Error> {
        self.top.request_resign(election).await
    }

    fn engine(&self) -> Option<Engine> {
        self.top.engine()
    }

    fn candidate_id(&self) -> CandidateId {
        self.top.candidate_id()
    }

    fn leadership(&self, election: &str) -> Option<LeadershipHandle> {
        // Not before it has the leadership of the group as its parent.
        self.top.leadership(election).filter(LeadershipHandle::has_parent)
    }

    /// The status of the top tier, or of the group's tier while the store of the group does not answer.
    fn status(&self) -> Status {
        let (top, group) = (self.top.status(), self.groups.status());
        match (top.connection, group.connection) {
            (Connection::Idle | Connection::Connected, Connection::Retrying | Connection::Refused) => group,
            _ => top,
        }
    }

    async fn check(&self) -> Result<(), Error> {
        self.top.check().await?;
        if self.tiers_share_elector() { Ok(()) } else { self.groups.check().await }
    }

    async fn diagnose(&self) -> Vec<Diagnosis> {
        let mut diagnoses = self.top.diagnose().await;
        if !self.tiers_share_elector() {
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

    /// Closes the top tier first, so that no work runs when the leadership in the group is resigned.
    async fn close(&self) {
        self.top.close().await;
        if !self.tiers_share_elector() {
            self.groups.close().await;
        }
    }

    async fn close_within(&self, limit: Duration) -> Shutdown {
        let timers = Timers::of(&*self.top);
        let since = timers.now();
        let top = self.top.close_within(limit).await;
        if self.tiers_share_elector() {
            return top;
        }
        top.and(self.groups.close_within(limit.saturating_sub(timers.since(since))).await)
    }
}
