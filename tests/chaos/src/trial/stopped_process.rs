//! The leader's process is stopped for longer than its TTL, and continued while its successor leads.

use anyhow::{Context as _, Result};
use futures::future::try_join_all;
use rustix::process::Signal;
use tokio::time::{Duration, sleep, timeout};

use super::{
    Outcome,
    context::{POLL_INTERVAL, STEP_TIMEOUT, TrialContext},
};
use crate::{cluster::Cluster, options::TrialOptions, process::CandidateProcess, sampler::now};

const TTL: Duration = Duration::from_secs(5);
/// How much longer than its TTL the process is stopped.
const STOPPED_BEYOND_TTL: Duration = Duration::from_secs(3);
/// How many trials run at the same time.
const MAX_CONCURRENT: usize = 10;
/// How long the continued process is observed.
const OBSERVE_CONTINUED: Duration = Duration::from_secs(1);

pub(super) async fn run(options: &TrialOptions) -> Result<Outcome> {
    let cluster = Cluster::start(options.store).await?;
    let mut outcome = Outcome::default();
    let context = TrialContext::new(&outcome.history, TTL);
    while outcome.trials < options.trials {
        let first = outcome.trials;
        let trials =
            (0..MAX_CONCURRENT).map(|n| attempt(&cluster, &context, format!("e{}", first + n), options));
        let gaps = try_join_all(trials).await?;
        outcome.trials += gaps.len();
        outcome.gaps.extend(gaps);
    }
    Ok(outcome)
}

async fn attempt(
    cluster: &Cluster,
    context: &TrialContext,
    election: String,
    options: &TrialOptions,
) -> Result<u64> {
    let url = cluster.url(&cluster.endpoints()).await?;
    let mut flags = vec!["--hold", &election];
    flags.extend(options.mutant.then_some("--mutant"));
    let history = context.history.clone();
    let record = move |message| history.record(0, message);
    let stopped = CandidateProcess::start(&url, &format!("{election}.stopped"), TTL, &flags, record)?;
    let leads = async {
        while context.history.last_led_by_any(&election) == 0 {
            sleep(POLL_INTERVAL).await;
        }
    };
    timeout(STEP_TIMEOUT, leads).await.context("nobody is elected")?;
    let elector = context.connect(&url).await?;
    let takeover = context.campaign_in_background(&elector, &election);
    // At a random moment of its first heartbeats.
    sleep(TTL.mul_f64(fastrand::f64())).await;
    let stopped_at = now();
    stopped.signal(Signal::STOP)?;
    sleep(TTL + STOPPED_BEYOND_TTL).await;
    stopped.signal(Signal::CONT)?;
    let elected_at =
        timeout(STEP_TIMEOUT, takeover).await.context("the stopped leader has no successor")???;
    sleep(OBSERVE_CONTINUED).await;
    stopped.signal(Signal::KILL)?;
    stopped.wait().await?;
    elector.close().await;
    Ok(elected_at.saturating_sub(stopped_at))
}
