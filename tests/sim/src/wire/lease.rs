//! The lease service. A keepalive is no quorum decision: a member that leads, or believes that it does, renews the lease in its own
//! memory.

use std::time::Duration;

use async_stream::try_stream;
use etcd_client::proto::{
    PbLeaseGrantRequest, PbLeaseGrantResponse, PbLeaseKeepAliveRequest, PbLeaseKeepAliveResponse,
    PbLeaseLeasesRequest, PbLeaseLeasesResponse, PbLeaseRevokeRequest, PbLeaseRevokeResponse, PbLeaseService,
    PbLeaseStatus, PbLeaseTimeToLiveRequest, PbLeaseTimeToLiveResponse,
};
use futures::stream::BoxStream;
use tonic::{Request, Response, Status, Streaming, async_trait};

use super::{
    cluster::State,
    etcd_error,
    kv::decide,
    request::{MemberService, REQUEST_TIMEOUT},
};

/// The outcome of a keepalive.
enum Renewal {
    Granted(i64),
    NotFound,
    /// The lease has expired and is not revoked yet.
    Expiring,
    /// There is no leader.
    Nobody,
}

impl MemberService {
    async fn keep_alive(&self, lease: i64) -> Result<PbLeaseKeepAliveResponse, Status> {
        self.cluster.read().note(self.member, "keepalive");
        self.thawed().await;
        // The header is taken before the renewal, as etcd does. `confirm` relies on that.
        let header = {
            let state = self.cluster.read();
            state.header(self.member, state.revision_at(self.member))
        };
        let renewing = async {
            loop {
                // A member that does not lead forwards the request.
                let on_the_way = {
                    let mut state = self.cluster.read();
                    let most = if state.believes_to_lead(self.member) { 300 } else { 6_000 };
                    Duration::from_micros(state.random.u64(100..most))
                };
                tokio::time::sleep(on_the_way).await;
                let renewal = self.cluster.read().renew(self.member, lease);
                match renewal {
                    Renewal::Granted(ttl) => return ttl,
                    Renewal::NotFound => return 0,
                    Renewal::Expiring | Renewal::Nobody => {
                        tokio::time::sleep(Duration::from_millis(50)).await;
                    }
                }
            }
        };
        let ttl =
            tokio::time::timeout(REQUEST_TIMEOUT, renewing).await.map_err(|_| etcd_error::timed_out())?;
        self.thawed().await;
        Ok(PbLeaseKeepAliveResponse { header, id: lease, ttl })
    }
}

impl State {
    fn renew(&mut self, member: usize, lease: i64) -> Renewal {
        let Some(leader) = self.lessor_for(member) else { return Renewal::Nobody };
        let (now, seen) = (self.now, self.seen_by(leader));
        // A deposed leader does not know decisions made since.
        let granted = if self.leader == Some(leader) {
            self.store.leases.get(&lease).filter(|granted| granted.at <= seen).map(|granted| granted.ttl)
        } else {
            self.members[leader].lessor.ttl(lease)
        };
        let Some(ttl) = granted else { return Renewal::NotFound };
        let lessor = &mut self.members[leader].lessor;
        if lessor.has_expired(now, lease) {
            return Renewal::Expiring;
        }
        lessor.renew(now, lease, ttl);
        Renewal::Granted(ttl)
    }

    /// The member that decides about leases for `member`: itself, if it believes that it leads, else its leader.
    fn lessor_for(&self, member: usize) -> Option<usize> {
        if self.believes_to_lead(member) {
            return Some(member);
        }
        let leader = self.members[member].follows?;
        let (at, of) = (&self.members[member], &self.members[leader]);
        // Forwarding needs no disk.
        let reached = !at.cut_off && !of.cut_off && !of.frozen && of.up;
        (reached && self.believes_to_lead(leader)).then_some(leader)
    }
}

#[async_trait]
impl PbLeaseService for MemberService {
    type LeaseKeepAliveStream = BoxStream<'static, Result<PbLeaseKeepAliveResponse, Status>>;

    async fn lease_grant(
        &self,
        request: Request<PbLeaseGrantRequest>,
    ) -> Result<Response<PbLeaseGrantResponse>, Status> {
        decide!(self, "grant", request, |state: &mut State, grant: PbLeaseGrantRequest| {
            let id = if grant.id == 0 { state.random.i64(1..) } else { grant.id };
            let ttl = state.store.grant(state.now, id, grant.ttl)?;
            if let Some(leader) = state.leader {
                state.members[leader].lessor.renew(state.now, id, ttl);
            }
            Ok::<_, Status>(PbLeaseGrantResponse { header: None, id, ttl, error: String::new() })
        })
    }

    async fn lease_revoke(
        &self,
        request: Request<PbLeaseRevokeRequest>,
    ) -> Result<Response<PbLeaseRevokeResponse>, Status> {
        decide!(self, "revoke", request, |state: &mut State, revoke: PbLeaseRevokeRequest| {
            state.store.revoke(state.now, revoke.id)?;
            Ok::<_, Status>(PbLeaseRevokeResponse::default())
        })
    }

    async fn lease_keep_alive(
        &self,
        request: Request<Streaming<PbLeaseKeepAliveRequest>>,
    ) -> Result<Response<Self::LeaseKeepAliveStream>, Status> {
        let (service, mut questions) = (self.clone(), request.into_inner());
        Ok(Response::new(Box::pin(try_stream! {
            while let Some(question) = questions.message().await? {
                yield service.keep_alive(question.id).await?;
            }
        })))
    }

    async fn lease_time_to_live(
        &self,
        request: Request<PbLeaseTimeToLiveRequest>,
    ) -> Result<Response<PbLeaseTimeToLiveResponse>, Status> {
        decide!(self, "ttl", request, |state: &mut State, question: PbLeaseTimeToLiveRequest| {
            let id = question.id;
            let (granted, left) = match (state.store.leases.get(&id), state.leader) {
                (Some(granted), Some(leader)) => {
                    (granted.ttl, state.members[leader].lessor.left(state.now, id).as_secs() as i64)
                }
                // As etcd answers for an unknown lease.
                _ => (0, -1),
            };
            let keys = if question.keys { state.store.keys_of(id) } else { Vec::new() };
            Ok::<_, Status>(PbLeaseTimeToLiveResponse {
                header: None,
                id,
                ttl: left,
                granted_ttl: granted,
                keys,
            })
        })
    }

    async fn lease_leases(
        &self,
        request: Request<PbLeaseLeasesRequest>,
    ) -> Result<Response<PbLeaseLeasesResponse>, Status> {
        decide!(self, "leases", request, |state: &mut State, _| {
            let leases = state.store.leases.keys().map(|id| PbLeaseStatus { id: *id }).collect();
            Ok::<_, Status>(PbLeaseLeasesResponse { header: None, leases })
        })
    }
}
