//! The programs on the simulated hosts: a member's server, and a process with an elector.

use std::{
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use etcd_client::proto::{PbKvServer, PbLeaseServer, PbWatchServer};
use fastrand::Rng;
use tenure_core::{CandidateId, Config, Elector as _, OnDisconnect, SimClock, StoreElector};
use tenure_etcd::{EtcdBackend, EtcdConfig};
use tokio::sync::watch;
use tonic::transport::Server;

use super::{cluster::MEMBERS, network, request::MemberService};
use crate::{
    candidate::{Candidate, TermLength},
    history::History,
};

pub(super) const TTL: Duration = Duration::from_secs(5);
pub(super) const ELECTIONS: usize = 4;

/// How a member detects that a client is gone. etcd relies on TCP keepalives of two hours; the simulated TCP never gives up.
const PING_EVERY: Duration = Duration::from_secs(8);
const PING_TIMEOUT: Duration = Duration::from_secs(4);

pub(super) fn member_name(member: usize) -> String {
    format!("etcd-{member}")
}

pub(super) fn host_name(host: usize) -> String {
    format!("host-{host}")
}

/// A member of the fake etcd, until it crashes.
pub(super) async fn member(service: MemberService) -> turmoil::Result {
    Server::builder()
        .http2_keepalive_interval(Some(PING_EVERY))
        .http2_keepalive_timeout(Some(PING_TIMEOUT))
        .add_service(PbKvServer::new(service.clone()))
        .add_service(PbLeaseServer::new(service.clone()))
        .add_service(PbWatchServer::new(service))
        .serve_with_incoming(network::incoming().await?)
        .await?;
    Ok(())
}

/// A host, which starts a process again after each crash.
#[derive(Debug)]
pub(super) struct Host {
    pub(super) n: usize,
    pub(super) rate: f64,
    pub(super) terms: TermLength,
    pub(super) history: History,
    /// The random numbers of the processes on this host.
    pub(super) random: Mutex<Rng>,
    /// The clock of the process that runs now.
    pub(super) clock: Mutex<Option<SimClock>>,
    /// Set when the processes have to end.
    pub(super) closing: watch::Sender<bool>,
}

impl Host {
    /// Campaigns in every election until the end of the run.
    pub(super) async fn run(self: Arc<Self>) -> turmoil::Result {
        let mut random = self.random.lock().unwrap_or_else(PoisonError::into_inner).fork();
        let clock = SimClock::with_rate(self.rate);
        *self.clock.lock().unwrap_or_else(PoisonError::into_inner) = Some(clock.clone());
        let endpoints = (0..MEMBERS).map(|member| format!("{}:{}", member_name(member), network::PORT));
        let store = EtcdConfig::new(endpoints).network(network::network());
        let backend = EtcdBackend::new(store)?;
        let id: CandidateId = host_name(self.n).parse()?;
        // Shutdowns may take as long as they need, so that anything that continues afterwards is a violation.
        let mut config = Config::new().with_ttl(TTL).with_id(id).with_shutdown_timeout(Config::MAX_WAIT);
        if random.u8(..8) == 0 {
            config = config.with_on_disconnect(OnDisconnect::StepDown);
        }
        let elector = StoreElector::with_clock(Arc::new(backend), config, Arc::new(clock.clone()))?;
        let elector = Arc::new(elector);
        let mut candidates = Vec::new();
        for n in 0..ELECTIONS {
            let candidate = Candidate {
                elector: Arc::clone(&elector),
                clock: clock.clone(),
                election: format!("e{n}"),
                random: random.fork(),
                history: self.history.clone(),
                terms: self.terms,
            };
            candidates.push(tokio::spawn(candidate.campaign_until_closed()));
        }
        self.closing.subscribe().wait_for(|closing| *closing).await?;
        elector.close().await;
        for candidate in candidates {
            candidate.await?;
        }
        Ok(())
    }
}
