//! A run: a cluster, five candidates with a proxy to each server, random faults, and the checks.

mod candidates;
mod divergence;
mod inject;
mod plan;
mod recovery;
mod report;
mod schedule;

use std::{process::ExitCode, time::Instant};

use anyhow::Result;

use crate::{
    cluster::Cluster,
    history::History,
    options::{RunOptions, StoreKind},
};
use candidates::Candidates;
use report::Report;

/// How many faults are injected between two checks that everything recovers.
const FAULTS_PER_ROUND: u64 = 40;

/// Injects all faults, checks the history, and prints a report.
pub(crate) fn run(options: &RunOptions) -> Result<ExitCode> {
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build()?;
    let report = runtime.block_on(run_and_check(options))?;
    report.print(options);
    Ok(if report.is_clean() { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

async fn run_and_check(options: &RunOptions) -> Result<Report> {
    let began = Instant::now();
    let cluster = match options.store {
        StoreKind::Postgres => Cluster::postgres(options.replication.into()).await?,
        store => Cluster::start(store).await?,
    };
    let history = History::default();
    let lease_expiries = cluster.monitor_lease_expiries();
    let mut report = Report::new(options);
    let completed = run_rounds(&cluster, &history, options, &mut report).await;
    // An aborted run is checked too.
    if let Err(error) = completed {
        report.add_abort(&error);
    }
    if let Cluster::Postgres(supervised) = &cluster {
        report.check_failovers(supervised, options.replication).await;
    }
    if let Cluster::Kubernetes(servers) = &cluster {
        report.check_labels(servers.labels_patched());
    }
    report.check_history(&history, lease_expiries.as_ref(), began.elapsed());
    report.save_history(&history, options)?;
    Ok(report)
}

async fn run_rounds(
    cluster: &Cluster,
    history: &History,
    options: &RunOptions,
    report: &mut Report,
) -> Result<()> {
    let candidates = Candidates::start(cluster, options.ttl, history).await?;
    let mut rng = fastrand::Rng::with_seed(options.seed);
    let mut remaining = options.faults;
    recovery::check(cluster, &candidates, history, options, report).await?;
    while remaining > 0 {
        let round = remaining.min(FAULTS_PER_ROUND);
        remaining -= round;
        schedule::inject_faults(cluster, &candidates, &mut rng, round, options, report).await?;
        recovery::check(cluster, &candidates, history, options, report).await?;
        if remaining > 0 {
            println!("{remaining} faults remaining");
        }
    }
    recovery::shut_down(cluster, candidates, options, report).await
}
