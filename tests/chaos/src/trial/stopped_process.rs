//! The leader's process is stopped for longer than its TTL, and continued beside its successor.

use anyhow::{Context as _, Result};
use futures::future::try_join_all;
use rustix::process::Signal;
use tokio::time::{Duration, sleep, timeout};

use super::{Outcome, duel::Stand};
use crate::{options::TrialOptions, process::Process, rig::cluster::Cluster, sampler::now};

const TTL: Duration = Duration::from_secs(5);
const BEYOND: Duration = Duration::from_secs(3);
const BESIDE: usize = 10;
const PACE: Duration = Duration::from_millis(20);
const PATIENCE: Duration = Duration::from_secs(30);
/// How long the one that was stopped is watched afterwards.
const AFTERWARDS: Duration = Duration::from_secs(1);

pub(super) async fn run(options: &TrialOptions) -> Result<Outcome> {
    let cluster = Cluster::start(options.store).await?;
    let mut outcome = Outcome::default();
    let stand = Stand::new(&outcome.record, TTL);
    while outcome.trials < options.trials {
        let round = outcome.trials;
        let trials = (0..BESIDE).map(|n| attempt(&cluster, &stand, format!("e{}", round + n), options));
        let gaps = try_join_all(trials).await?;
        outcome.trials += gaps.len();
        outcome.gaps.extend(gaps);
    }
    Ok(outcome)
}

async fn attempt(cluster: &Cluster, stand: &Stand, election: String, options: &TrialOptions) -> Result<u64> {
    let url = cluster.url(&cluster.endpoints());
    let mut flags = vec!["--hold", &election];
    flags.extend(options.mutant.then_some("--mutant"));
    let record = stand.record.clone();
    let stopped =
        Process::start(&url, &format!("{election}.stopped"), TTL, &flags, move |line| record.take(0, line))?;
    let leads = async {
        while stand.record.last_leader(&election) == 0 {
            sleep(PACE).await;
        }
    };
    timeout(PATIENCE, leads).await.context("nobody is elected")?;
    let elector = stand.connect(&url).await?;
    let next = stand.wait(&elector, &election);
    // At any moment of its first heartbeats.
    sleep(TTL.mul_f64(fastrand::f64())).await;
    let at = now();
    stopped.signal(Signal::STOP)?;
    sleep(TTL + BEYOND).await;
    stopped.signal(Signal::CONT)?;
    let won = timeout(PATIENCE, next).await.context("nobody succeeds it")???;
    sleep(AFTERWARDS).await;
    stopped.signal(Signal::KILL)?;
    stopped.ended().await?;
    elector.close().await;
    Ok(won.saturating_sub(at))
}
