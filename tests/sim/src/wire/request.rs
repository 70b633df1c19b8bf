//! How a member carries out what a quorum has to decide, and what it says when it cannot.

use std::time::Duration;

use tonic::{Request, Status};

use super::{
    cluster::{Cluster, ELECTION_TIMEOUT, State},
    refusal,
};

/// How long a member waits for a decision: 5 s and two election timeouts.
pub(super) const REQUEST_TIMEOUT: Duration = Duration::from_secs(7);

/// What becomes of a request that finds no quorum.
#[derive(Clone, Copy)]
enum Fate {
    /// It waits, and is carried out and answered when there is one again.
    Waits,
    /// It went to a leader that is none any more, and nobody sends it again.
    Lost,
    /// It is carried out when there is a quorum again, and its answer is lost.
    Unanswered,
    /// It is refused as soon as somebody leads again.
    Refused,
}

/// What every handler has.
#[derive(Clone, Debug)]
pub(super) struct Served {
    pub(super) cluster: Cluster,
    pub(super) member: usize,
}

impl Served {
    /// Carries a request out by the word of a quorum, whether or not its client goes on waiting.
    pub(super) async fn decide<Q, T>(
        &self,
        what: &'static str,
        request: Request<Q>,
        with: impl FnOnce(&mut State, Q) -> Result<T, Status> + Send + 'static,
    ) -> Result<T, Status>
    where
        Q: Send + 'static,
        T: Send + 'static,
    {
        let needs_leader = needs_leader(&request);
        let (served, question) = (self.clone(), request.into_inner());
        let deciding = tokio::spawn(async move {
            served.cluster.read().note(served.member, what);
            served.thawed().await;
            if needs_leader && served.knows_no_leader(ELECTION_TIMEOUT) {
                return Err(refusal::no_leader());
            }
            served.carry_out(|state| with(state, question)).await
        });
        deciding.await.unwrap_or_else(|_| Err(Status::cancelled("the member has stopped")))
    }

    /// Waits until the member is not frozen.
    pub(super) async fn thawed(&self) {
        self.cluster.until(|state| !state.members[self.member].frozen).await;
    }

    pub(super) fn knows_no_leader(&self, since: Duration) -> bool {
        self.cluster.read().knows_no_leader(self.member, since)
    }

    async fn carry_out<T>(&self, with: impl FnOnce(&mut State) -> Result<T, Status>) -> Result<T, Status> {
        let member = self.member;
        let travels = |state: &mut State| Duration::from_micros(state.random.u64(500..6_000));
        let there = travels(&mut self.cluster.read());
        let heard = self.cluster.read().quorum_at(member);
        tokio::time::sleep(there).await;
        if !heard || !self.cluster.read().quorum_at(member) {
            let fate = match self.cluster.read().random.u8(..4) {
                0 => Fate::Lost,
                1 => Fate::Unanswered,
                2 => Fate::Refused,
                _ => Fate::Waits,
            };
            let quorum = self.cluster.until(|state| state.quorum_at(member));
            match fate {
                Fate::Lost => {
                    tokio::time::sleep(REQUEST_TIMEOUT).await;
                    return Err(refusal::timed_out());
                }
                Fate::Unanswered => quorum.await,
                Fate::Refused | Fate::Waits => {
                    if tokio::time::timeout(REQUEST_TIMEOUT, quorum).await.is_err() {
                        return Err(refusal::timed_out());
                    }
                }
            }
            match fate {
                Fate::Refused => return Err(refusal::leader_changed()),
                Fate::Unanswered => {
                    drop(self.apply(with));
                    return Err(refusal::timed_out());
                }
                Fate::Waits | Fate::Lost => {}
            }
        }
        let outcome = self.apply(with);
        let back = travels(&mut self.cluster.read());
        tokio::time::sleep(back).await;
        self.thawed().await;
        outcome
    }

    fn apply<T>(&self, with: impl FnOnce(&mut State) -> Result<T, Status>) -> Result<T, Status> {
        self.cluster.change(|state| {
            state.caught_up(self.member);
            with(state)
        })
    }
}

/// Whether the client wants no answer of a member that knows no leader.
pub(super) fn needs_leader<Q>(request: &Request<Q>) -> bool {
    request.metadata().get("hasleader").is_some_and(|value| value == "true")
}
