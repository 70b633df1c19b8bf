//! A PostgreSQL replica is promoted that has not seen the leader's session and entry. The leader's process, which knows only the
//! former primary, assumes to lead until its deadline.

use anyhow::Result;
use futures::future::try_join_all;
use tenure_containers::{Direction, FaultKind, PostgresCluster, PostgresSettings, Replication, Version};
use tokio::time::{Duration, sleep, timeout};

use super::{
    Outcome,
    context::{STEP_TIMEOUT, TrialContext},
};
use crate::{options::TrialOptions, postgres};

const TTL: Duration = Duration::from_secs(6);
/// How many elections lose their leader in one failover.
const ELECTIONS: usize = 5;

pub(super) async fn run(options: &TrialOptions) -> Result<Outcome> {
    let settings = PostgresSettings::default();
    let cluster = PostgresCluster::start_with_fault_injection(
        Version::Postgres17,
        Replication::Asynchronous,
        &settings,
    )
    .await?;
    let mut outcome = Outcome::default();
    let context = TrialContext::new(&outcome.history, TTL);
    while outcome.trials < options.trials {
        let former = cluster.primary().await?;
        let promoted = 1 - former;
        let all = postgres::url(&cluster.endpoints().join(","));
        // It has used the store before, and has nothing in it.
        let successor = context.connect(&all).await?;
        successor.campaign("before").await?.resign().await.ok();
        cluster.wait_for_replica(former).await?;

        let stopped = FaultKind::PartitionFromPeers(Direction::Both);
        let not_replicated = cluster.inject(former, stopped).await?;
        let leader = context.connect(&postgres::url(&cluster.endpoints()[former])).await?;
        let names: Vec<_> = (0..ELECTIONS).map(|n| format!("e{}", outcome.trials + n)).collect();
        let leading = try_join_all(names.iter().map(|election| context.lead(&*leader, election))).await?;
        for (leadership, _) in &leading {
            context.wait_for_heartbeat(leadership).await?;
        }
        // At a random moment between two heartbeats.
        sleep((TTL / 3).mul_f64(fastrand::f64())).await;
        cluster.fence(former).await?;
        cluster.promote(promoted).await?;

        let takeovers = names.iter().map(|election| context.campaign_in_background(&successor, election));
        let elected = timeout(STEP_TIMEOUT, try_join_all(takeovers)).await??;
        for ((leadership, term), elected_at) in leading.iter().zip(elected) {
            context.record_end(leadership, term);
            outcome.gaps.push(elected_at?.saturating_sub(term.last_valid()));
        }
        outcome.trials += ELECTIONS;
        // It cannot reach the store any more.
        drop((leading, leader));
        let _ = timeout(STEP_TIMEOUT, successor.close()).await;
        not_replicated.heal().await?;
        cluster.wait_for_replica(promoted).await?;
    }
    Ok(outcome)
}
