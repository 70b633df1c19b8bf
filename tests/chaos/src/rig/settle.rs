//! Everything is mended: somebody leads soon, everybody leads in turn, and nothing is left that should not be.

use std::{collections::BTreeSet, time::Duration};

use anyhow::{Context as _, Result, ensure};
use rustix::process::Signal;
use tenure::{BootClock, Clock as _};
use tenure_containers::Harm;
use tokio::time::{Instant, sleep, timeout};

use super::{
    alike::make_alike,
    candidates::{Candidates, PLACES},
    cluster::Cluster,
    record::Record,
    report::Report,
};
use crate::{
    candidate::{SHORT, elections},
    options::Options,
};

/// A store's own granularity of expiry, and a notification.
const EXPIRY: Duration = Duration::from_secs(1);
/// What two busy cores may add.
const SLACK: Duration = Duration::from_secs(5);
/// How long a server may take to serve again before it is started again, as its operator would; that is no
/// affair of ours.
const RECOVERY: Duration = Duration::from_secs(20);
/// How long that may take.
const SERVERS: Duration = Duration::from_secs(90);
const PACE: Duration = Duration::from_millis(20);

/// Waits until a condition holds; how long that took, or `None` when it took longer than `limit`.
async fn until(limit: Duration, condition: impl Fn() -> bool) -> Option<Duration> {
    let start = Instant::now();
    while !condition() {
        if start.elapsed() > limit {
            return None;
        }
        sleep(PACE).await;
    }
    Some(start.elapsed())
}

/// Checks L1 and L2 while nothing is broken.
pub(crate) async fn settle(
    cluster: &Cluster,
    candidates: &Candidates,
    record: &Record,
    options: &Options,
    report: &mut Report,
) -> Result<()> {
    await_servers(cluster, report).await?;
    if let Cluster::Zookeeper(ensemble) = cluster {
        make_alike(ensemble, report).await?;
        await_servers(cluster, report).await?;
    }
    let since = BootClock.now().as_nanos();
    let limit = options.ttl + EXPIRY + SLACK;
    for election in elections() {
        match until(limit, || record.last_leader(election) > since).await {
            Some(took) => report.led_after(took),
            None => {
                let servers = cluster.health().await;
                report.stuck(format!("nobody leads {election}, {limit:?} after all was mended; {servers:?}"));
            }
        }
    }
    for (place, election) in (0..PLACES).flat_map(|place| SHORT.map(|election| (place, election))) {
        // Those before it may lead first, and the session of one that was killed may have to end.
        let turn = || record.last_led(place, election) > since;
        if until(limit + options.ttl, turn).await.is_none() {
            let entries = cluster.entries(election).await.map_err(|error| error.to_string());
            report.stuck(format!("the candidate at place {place} leads {election} no more: {entries:?}"));
            candidates.signal(place, Signal::USR1)?;
        }
    }
    look_for_strays(cluster, options, report).await
}

/// Waits until all servers serve; those that do not for long are started again.
async fn await_servers(cluster: &Cluster, report: &mut Report) -> Result<()> {
    let began = Instant::now();
    let mut started_again = BTreeSet::new();
    loop {
        let health = cluster.health().await;
        if health.iter().all(Result::is_ok) {
            return Ok(());
        }
        ensure!(
            began.elapsed() < SERVERS,
            "{SERVERS:?} after all was mended, not all servers serve: {health:?}"
        );
        if began.elapsed() > RECOVERY {
            for (member, health) in health.iter().enumerate() {
                let Err(error) = health else { continue };
                if started_again.insert(member) {
                    report.restarted(&format!("server {member} is started again: {error:#}"));
                    cluster.harm(member, Harm::Kill).await?.heal().await?;
                }
            }
        }
        sleep(PACE).await;
    }
}

/// Each candidate has one entry at most, once the sessions of those that were killed have ended.
async fn look_for_strays(cluster: &Cluster, options: &Options, report: &mut Report) -> Result<()> {
    let end = Instant::now() + options.ttl * 2 + EXPIRY + SLACK;
    loop {
        let mut most = (0, Vec::new());
        for election in elections() {
            let entries = cluster.entries(election).await.context("looking for entries")?;
            if entries.len() > most.0 {
                most = (entries.len(), entries);
            }
        }
        if most.0 <= PLACES {
            return Ok(());
        }
        if Instant::now() > end {
            report.leaked(
                format!("{PLACES} candidates have {} entries: {:?}", most.0, most.1),
                most.0 - PLACES,
            );
            return Ok(());
        }
        sleep(PACE).await;
    }
}

/// Tells all candidates to end, and looks what they leave behind.
pub(crate) async fn end(
    cluster: &Cluster,
    candidates: Candidates,
    options: &Options,
    report: &mut Report,
) -> Result<()> {
    for place in 0..PLACES {
        candidates.signal(place, Signal::TERM)?;
    }
    for place in 0..PLACES {
        if timeout(options.ttl + EXPIRY + SLACK, candidates.ended(place)).await.is_err() {
            report.stuck(format!("the candidate at place {place} does not end"));
        }
    }
    let end = Instant::now() + options.ttl * 2 + EXPIRY + SLACK + cluster.own_sessions();
    loop {
        let left = cluster.leftovers().await?;
        if left.is_empty() {
            return Ok(());
        }
        if Instant::now() > end {
            report.leaked(format!("left behind: {left:?}"), left.len());
            return Ok(());
        }
        sleep(PACE).await;
    }
}
