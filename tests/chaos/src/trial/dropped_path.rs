//! The leader cannot reach the store: nothing is refused, and nothing is answered.

use anyhow::Result;
use futures::future::try_join_all;
use tenure_testkit::proxy::{Direction, Proxy};
use tokio::time::{Duration, sleep};

use super::{Outcome, context::TrialContext, two_candidates::TwoCandidates};
use crate::{cluster::Cluster, options::TrialOptions};

const TTL: Duration = Duration::from_secs(5);
/// How many trials run at the same time.
const MAX_CONCURRENT: usize = 25;

pub(super) async fn run(options: &TrialOptions) -> Result<Outcome> {
    let cluster = Cluster::start(options.store).await?;
    let mut outcome = Outcome::default();
    let context = TrialContext::new(&outcome.history, TTL);
    while outcome.trials < options.trials {
        let first = outcome.trials;
        let count = MAX_CONCURRENT.min(options.trials - first);
        let trials = (0..count).map(|n| attempt(&cluster, &context, format!("e{}", first + n)));
        let gaps = try_join_all(trials).await?;
        outcome.trials += gaps.len();
        outcome.gaps.extend(gaps.into_iter().flatten());
    }
    Ok(outcome)
}

async fn attempt(cluster: &Cluster, context: &TrialContext, election: String) -> Result<Option<u64>> {
    let mut proxies = Vec::new();
    for endpoint in cluster.endpoints() {
        proxies.push(Proxy::start(endpoint).await?);
    }
    let endpoints: Vec<_> = proxies.iter().map(Proxy::endpoint).collect();
    let (leader_url, waiter_url) = (cluster.url(&endpoints).await?, cluster.url(&cluster.endpoints()).await?);
    let candidates = TwoCandidates::start(context, &election, &leader_url, &waiter_url).await?;
    // At a random moment between two heartbeats.
    sleep((TTL / 3).mul_f64(fastrand::f64())).await;
    for proxy in &proxies {
        proxy.blackhole(Direction::Both);
    }
    candidates.wait_for_takeover(|| proxies.iter().for_each(Proxy::heal)).await
}
