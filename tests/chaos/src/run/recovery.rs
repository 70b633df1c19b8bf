//! The checks after all faults are healed: every election has a leader soon, every candidate leads in turn, and nothing is
//! left in the store that should not be.

use std::{collections::BTreeSet, time::Duration};

use anyhow::{Context as _, Result, ensure};
use rustix::process::Signal;
use tenure::{BootClock, Clock as _};
use tenure_containers::FaultKind;
use tokio::time::{Instant, sleep, timeout};

use super::{
    candidates::{CANDIDATES, Candidates},
    divergence::resync_divergent_members,
    report::Report,
};
use crate::{
    cluster::Cluster,
    history::History,
    options::{RunOptions, SHORT_ELECTIONS, elections},
};

/// How late a store may expire a session and notify of it.
const EXPIRY_DELAY: Duration = Duration::from_secs(1);
/// The delay that two busy cores may add.
const LOAD_MARGIN: Duration = Duration::from_secs(5);
/// How long a server may take to be ready before it is restarted, as its operator would do. A restart is no error of the
/// library.
const RESTART_AFTER: Duration = Duration::from_secs(20);
/// How long all servers may take to be ready, restarts included.
const SERVERS_TIMEOUT: Duration = Duration::from_secs(90);
const POLL_INTERVAL: Duration = Duration::from_millis(20);

/// Waits until a condition holds. Returns how long that took, or `None` after `limit`.
async fn wait_until(limit: Duration, condition: impl Fn() -> bool) -> Option<Duration> {
    let start = Instant::now();
    while !condition() {
        if start.elapsed() > limit {
            return None;
        }
        sleep(POLL_INTERVAL).await;
    }
    Some(start.elapsed())
}

/// Checks L1 and L2 while no fault is in force.
pub(crate) async fn check(
    cluster: &Cluster,
    candidates: &Candidates,
    history: &History,
    options: &RunOptions,
    report: &mut Report,
) -> Result<()> {
    wait_for_servers(cluster, report).await?;
    if let Cluster::Zookeeper(ensemble) = cluster {
        resync_divergent_members(ensemble, report).await?;
        wait_for_servers(cluster, report).await?;
    }
    let since = BootClock.now().as_nanos();
    // After a failover, nobody leads until a TTL has passed.
    let settles = match cluster {
        Cluster::Postgres(_) => options.ttl,
        // After it has lost its leader, a bucket of NATS has none for up to ten seconds.
        Cluster::Nats(_) => Duration::from_secs(10),
        _ => Duration::ZERO,
    };
    let limit = options.ttl + settles + EXPIRY_DELAY + LOAD_MARGIN;
    for election in elections() {
        match wait_until(limit, || history.last_led_by_any(election) > since).await {
            Some(took) => report.add_leader_delay(took),
            None => {
                let servers = cluster.health().await;
                report.add_stuck(format!(
                    "{election} has no leader {limit:?} after all faults were healed; servers: {servers:?}"
                ));
            }
        }
    }
    for (slot, election) in (0..CANDIDATES).flat_map(|slot| SHORT_ELECTIONS.map(|election| (slot, election)))
    {
        // The candidates before it may lead first, and the session of a killed one may have to expire. On Kubernetes there is no
        // queue, and who is first leads.
        let chances = if let Cluster::Kubernetes(_) = cluster { LOAD_MARGIN * 4 } else { Duration::ZERO };
        let led = || history.last_led(slot, election) > since;
        if wait_until(limit + options.ttl + chances, led).await.is_none() {
            let entries = cluster.entries(election).await.map_err(|error| error.to_string());
            report.add_stuck(format!(
                "the candidate in slot {slot} does not lead {election} any more; entries: {entries:?}"
            ));
            candidates.signal(slot, Signal::USR1)?;
        }
    }
    check_surplus_entries(cluster, options, report).await
}

/// Waits until all servers are ready. Restarts those that take too long.
async fn wait_for_servers(cluster: &Cluster, report: &mut Report) -> Result<()> {
    let began = Instant::now();
    let mut restarted = BTreeSet::new();
    loop {
        let health = cluster.health().await;
        if health.iter().all(Result::is_ok) {
            return Ok(());
        }
        ensure!(
            began.elapsed() < SERVERS_TIMEOUT,
            "{SERVERS_TIMEOUT:?} after all faults were healed, not all servers are ready: {health:?}"
        );
        if began.elapsed() > RESTART_AFTER {
            for (member, health) in health.iter().enumerate() {
                let Err(error) = health else { continue };
                if restarted.insert(member) {
                    let log = cluster.last_log_lines(member).await;
                    report.add_restarted_server(&format!("server {member} is restarted: {error:#}\n{log}"));
                    cluster.inject(member, FaultKind::Kill).await?.heal().await?;
                }
            }
        }
        sleep(POLL_INTERVAL).await;
    }
}

/// Checks that each candidate has at most one entry per election once the sessions of killed ones have expired.
async fn check_surplus_entries(cluster: &Cluster, options: &RunOptions, report: &mut Report) -> Result<()> {
    let end = Instant::now() + options.ttl * 2 + EXPIRY_DELAY + LOAD_MARGIN;
    loop {
        let mut largest = Vec::new();
        for election in elections() {
            let entries = loop {
                match cluster.entries(election).await {
                    Ok(entries) => break entries,
                    // A busy server may answer late.
                    Err(_) if Instant::now() < end => sleep(POLL_INTERVAL).await,
                    Err(error) => return Err(error).context("cannot list entries"),
                }
            };
            if entries.len() > largest.len() {
                largest = entries;
            }
        }
        let count = largest.len();
        if count <= CANDIDATES {
            return Ok(());
        }
        if Instant::now() > end {
            let what = format!("{CANDIDATES} candidates have {count} entries: {largest:?}");
            report.add_leak(what, count - CANDIDATES);
            return Ok(());
        }
        sleep(POLL_INTERVAL).await;
    }
}

/// Terminates all candidates, and checks that they leave nothing behind.
pub(crate) async fn shut_down(
    cluster: &Cluster,
    candidates: Candidates,
    options: &RunOptions,
    report: &mut Report,
) -> Result<()> {
    for slot in 0..CANDIDATES {
        candidates.signal(slot, Signal::TERM)?;
    }
    for slot in 0..CANDIDATES {
        if timeout(options.ttl + EXPIRY_DELAY + LOAD_MARGIN, candidates.wait(slot)).await.is_err() {
            report.add_stuck(format!("the candidate in slot {slot} does not exit"));
        }
    }
    let end = Instant::now() + options.ttl * 2 + EXPIRY_DELAY + LOAD_MARGIN + cluster.admin_session_timeout();
    loop {
        let left = cluster.remaining_state().await?;
        if left.is_empty() {
            return Ok(());
        }
        if Instant::now() > end {
            report.add_leak(format!("left behind: {left:?}"), left.len());
            return Ok(());
        }
        sleep(POLL_INTERVAL).await;
    }
}
