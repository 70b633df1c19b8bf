//! Whoever leads cannot reach the store any more: nothing is refused, nothing is answered.

use anyhow::Result;
use futures::future::try_join_all;
use tenure_testkit::proxy::{Direction, Proxy};
use tokio::time::{Duration, sleep};

use super::{
    Outcome,
    duel::{Duel, Stand},
};
use crate::{options::TrialOptions, rig::cluster::Cluster};

const TTL: Duration = Duration::from_secs(5);
/// How many at once.
const BESIDE: usize = 25;

pub(super) async fn run(options: &TrialOptions) -> Result<Outcome> {
    let cluster = Cluster::start(options.store).await?;
    let mut outcome = Outcome::default();
    let stand = Stand::new(&outcome.record, TTL);
    while outcome.trials < options.trials {
        let round = outcome.trials;
        let beside = BESIDE.min(options.trials - round);
        let trials = (0..beside).map(|n| attempt(&cluster, &stand, format!("e{}", round + n)));
        let gaps = try_join_all(trials).await?;
        outcome.trials += gaps.len();
        outcome.gaps.extend(gaps.into_iter().flatten());
    }
    Ok(outcome)
}

async fn attempt(cluster: &Cluster, stand: &Stand, election: String) -> Result<Option<u64>> {
    let mut lines = Vec::new();
    for endpoint in cluster.endpoints() {
        lines.push(Proxy::start(endpoint).await?);
    }
    let endpoints: Vec<_> = lines.iter().map(Proxy::endpoint).collect();
    let duel =
        Duel::begin(stand, &election, &cluster.url(&endpoints), &cluster.url(&cluster.endpoints())).await?;
    // At any moment between two heartbeats.
    sleep((TTL / 3).mul_f64(fastrand::f64())).await;
    for line in &lines {
        line.blackhole(Direction::Both);
    }
    duel.end(|| lines.iter().for_each(Proxy::heal)).await
}
