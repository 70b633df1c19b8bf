//! How a member processes a request that needs a quorum, and how the request fails without one.

use std::time::Duration;

use tonic::{Request, Status};

use super::{
    cluster::{Cluster, ELECTION_TIMEOUT, State},
    etcd_error,
};

/// The time limit for a decision: 5 s and two election timeouts, as in etcd.
pub(super) const REQUEST_TIMEOUT: Duration = Duration::from_secs(7);

/// What happens to a request without a quorum.
#[derive(Clone, Copy)]
enum Delivery {
    /// It waits for the quorum, is applied and answered.
    Waits,
    /// It was sent to a deposed leader and is lost.
    Lost,
    /// It is applied when there is a quorum again, but its answer is lost.
    Unanswered,
    /// It fails as soon as there is a leader again.
    Refused,
}

/// The services of one member.
#[derive(Clone, Debug)]
pub(super) struct MemberService {
    pub(super) cluster: Cluster,
    pub(super) member: usize,
}

impl MemberService {
    /// Applies a request by a quorum decision, even when its client has given up.
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
        let (service, question) = (self.clone(), request.into_inner());
        let deciding = tokio::spawn(async move {
            service.cluster.read().note(service.member, what);
            service.thawed().await;
            if needs_leader && service.knows_no_leader(ELECTION_TIMEOUT) {
                return Err(etcd_error::no_leader());
            }
            service.carry_out(|state| with(state, question)).await
        });
        deciding.await.unwrap_or_else(|_| Err(Status::cancelled("the member has stopped")))
    }

    /// Waits until the member is not frozen.
    pub(super) async fn thawed(&self) {
        self.cluster.wait_until(|state| !state.members[self.member].frozen).await;
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
            let delivery = match self.cluster.read().random.u8(..4) {
                0 => Delivery::Lost,
                1 => Delivery::Unanswered,
                2 => Delivery::Refused,
                _ => Delivery::Waits,
            };
            let quorum = self.cluster.wait_until(|state| state.quorum_at(member));
            match delivery {
                Delivery::Lost => {
                    tokio::time::sleep(REQUEST_TIMEOUT).await;
                    return Err(etcd_error::timed_out());
                }
                Delivery::Unanswered => quorum.await,
                Delivery::Refused | Delivery::Waits => {
                    if tokio::time::timeout(REQUEST_TIMEOUT, quorum).await.is_err() {
                        return Err(etcd_error::timed_out());
                    }
                }
            }
            match delivery {
                Delivery::Refused => return Err(etcd_error::leader_changed()),
                Delivery::Unanswered => {
                    drop(self.apply(with));
                    return Err(etcd_error::timed_out());
                }
                Delivery::Waits | Delivery::Lost => {}
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
            state.catch_up(self.member);
            with(state)
        })
    }
}

/// Whether the request has to fail at a member without a leader (`hasleader`).
pub(super) fn needs_leader<Q>(request: &Request<Q>) -> bool {
    request.metadata().get("hasleader").is_some_and(|value| value == "true")
}
