//! A server goes on answering its clients without a quorum: etcd's leader whose disk stalls, and a ZooKeeper follower that is
//! isolated from its peers.

use anyhow::{Result, bail};
use futures::future::try_join_all;
use tenure_containers::{Direction, FaultKind, Version};
use tokio::time::{Duration, sleep};

use super::{Outcome, context::TrialContext, two_candidates::TwoCandidates};
use crate::{
    cluster::{Cluster, MEMBERS},
    options::{StoreKind, TrialOptions},
};

/// In how many elections the leader is connected to the disrupted server.
const ELECTIONS: usize = 5;

pub(super) async fn run(options: &TrialOptions) -> Result<Outcome> {
    // Where two leaders were observed with the rule disabled: etcd 3.4 (3.5.16 did not show it), and ZooKeeper's default
    // tick.
    let (cluster, ttl, kind) = match options.store {
        StoreKind::Etcd => {
            (Cluster::etcd(Version::Etcd34).await?, Duration::from_secs(5), FaultKind::StallDisk)
        }
        StoreKind::Zookeeper => {
            let cluster = Cluster::zookeeper(&[("tickTime", "2000")]).await?;
            (cluster, Duration::from_secs(6), FaultKind::PartitionFromPeers(Direction::Both))
        }
        _ => bail!("clients see no quorum"),
    };
    let mut outcome = Outcome::default();
    let context = TrialContext::new(&outcome.history, ttl);
    while outcome.trials < options.trials {
        let leader = cluster.leader().await?;
        let disrupted = match options.store {
            StoreKind::Zookeeper => (leader + 1) % MEMBERS,
            _ => leader,
        };
        let (mut others, endpoint) = (cluster.endpoints(), cluster.endpoints().remove(disrupted));
        others.remove(disrupted);
        let (leader_url, waiter_url) = (cluster.url(&[endpoint]).await?, cluster.url(&others).await?);
        let names = (0..ELECTIONS).map(|n| format!("e{}", outcome.trials + n));
        let started = names.map(|election| {
            let (context, leader_url, waiter_url) = (&context, &leader_url, &waiter_url);
            async move { TwoCandidates::start(context, &election, leader_url, waiter_url).await }
        });
        let elections = try_join_all(started).await?;
        // At a random moment between two heartbeats.
        sleep((ttl / 3).mul_f64(fastrand::f64())).await;
        let fault = cluster.inject(disrupted, kind).await?;
        let writes = keep_writing(&context, &waiter_url);
        let takeovers = elections.into_iter().map(|candidates| candidates.wait_for_takeover(|| ()));
        let gaps = tokio::select! {
            gaps = try_join_all(takeovers) => gaps?,
            failed = writes => failed?,
        };
        fault.heal().await?;
        outcome.trials += gaps.len();
        outcome.gaps.extend(gaps.into_iter().flatten());
    }
    Ok(outcome)
}

/// Writes to the store without end: a stalled disk has an effect only when something is written.
async fn keep_writing<T>(context: &TrialContext, url: &str) -> Result<T> {
    let elector = context.connect(url).await?;
    loop {
        elector.campaign("elsewhere").await?.resign().await.ok();
        sleep(Duration::from_millis(50)).await;
    }
}
