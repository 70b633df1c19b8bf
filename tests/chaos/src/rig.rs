//! The rig: a cluster, five candidates with a line of their own to each server, faults, and the checks.

mod alike;
mod breakage;
mod candidates;
pub(crate) mod cluster;
mod lane;
mod plan;
pub(crate) mod record;
mod report;
mod settle;

use std::{process::ExitCode, time::Instant};

use anyhow::Result;

use crate::options::Options;
use candidates::Candidates;
use cluster::Cluster;
use record::Record;
use report::Report;

/// How many faults there are between two looks at whether everybody is well.
const ROUND: u64 = 40;

/// Runs all faults, and judges.
pub(crate) fn run(options: &Options) -> Result<ExitCode> {
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build()?;
    let report = runtime.block_on(disturb(options))?;
    report.print(options);
    Ok(if report.is_clean() { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

async fn disturb(options: &Options) -> Result<Report> {
    let began = Instant::now();
    let cluster = Cluster::start(options.store).await?;
    let record = Record::default();
    let expiries = cluster.watch_expiries();
    let mut report = Report::new(options);
    let over = go_through_rounds(&cluster, &record, options, &mut report).await;
    // Whatever stopped the run: what was seen before counts.
    if let Err(error) = over {
        report.broke_off(&error);
    }
    report.judge(&record, expiries.as_ref(), began.elapsed());
    report.keep_history(&record, options)?;
    Ok(report)
}

async fn go_through_rounds(
    cluster: &Cluster,
    record: &Record,
    options: &Options,
    report: &mut Report,
) -> Result<()> {
    let candidates = Candidates::start(cluster, options.ttl, record).await?;
    let mut lots = fastrand::Rng::with_seed(options.seed);
    let mut left = options.faults;
    settle::settle(cluster, &candidates, record, options, report).await?;
    while left > 0 {
        let round = left.min(ROUND);
        left -= round;
        lane::break_things(cluster, &candidates, &mut lots, round, options, report).await?;
        settle::settle(cluster, &candidates, record, options, report).await?;
        if left > 0 {
            println!("{left} faults to come");
        }
    }
    settle::end(cluster, candidates, options, report).await
}
