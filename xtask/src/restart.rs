//! `cargo xtask restart`: how long nobody leads after a leader was killed and is restarted at once.

use std::{
    io::{BufRead as _, BufReader},
    path::Path,
    process::{Child, Command, Stdio},
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, ensure};
use clap::Args;

use crate::{
    catalog::{ETCD_3_5, ZOOKEEPER_3_9},
    docker, images,
    servers::{Servers, remove_leftovers},
    shell::{cargo, run, target},
    tools,
};

/// How often to measure.
#[derive(Args)]
pub(crate) struct Options {
    /// How often a leader with a resume file is killed and restarted, for each store
    #[arg(long, default_value_t = 100)]
    rounds: usize,
    /// The same without a resume file, which takes a TTL each
    #[arg(long, default_value_t = 5)]
    slow_rounds: usize,
    /// The TTL, in seconds
    #[arg(long, default_value_t = 10)]
    ttl: u64,
}

/// Measures, and prints a table.
///
/// # Errors
/// When something cannot be started, or when a token is not higher than the one before.
pub(crate) fn measure(options: &Options) -> Result<()> {
    tools::ensure_for_build()?;
    tools::ensure_for_tests()?;
    docker::ensure()?;
    images::ensure(&[&ETCD_3_5, &ZOOKEEPER_3_9])?;
    remove_leftovers();
    let servers = Servers::start(&[&ETCD_3_5, &ZOOKEEPER_3_9])?;
    run(&mut cargo(["build", "--release", "--package", "tenure-processes"]))?;
    let program = target().join("release").join("tenure-processes");
    let directory = tempfile::tempdir()?;
    let resume_file = directory.path().join("resume");
    println!(
        "{:<10} {:<12} {:>6} {:>10} {:>10} {:>10}",
        "", "resume file", "rounds", "median", "p99", "most"
    );
    for (name, scheme, server) in [("etcd", "etcd", &ETCD_3_5), ("ZooKeeper", "zookeeper", &ZOOKEEPER_3_9)] {
        let url = format!("{scheme}://{}/restart?ttl={}s", servers.address_of(server)?, options.ttl);
        let resuming = format!("{url}&resume={}", resume_file.display());
        for (with, url, rounds) in [("yes", &resuming, options.rounds), ("no", &url, options.slow_rounds)] {
            let mut times = restarts(&program, url, rounds).with_context(|| name.to_owned())?;
            if times.is_empty() {
                continue;
            }
            times.sort_unstable();
            let at = |share: f64| times[((times.len() - 1) as f64 * share).round() as usize];
            let shown = |time: Duration| format!("{:.1} ms", time.as_secs_f64() * 1e3);
            println!(
                "{name:<10} {with:<12} {rounds:>6} {:>10} {:>10} {:>10}",
                shown(at(0.5)),
                shown(at(0.99)),
                shown(at(1.0))
            );
        }
    }
    Ok(())
}

/// A process that leads until it is killed.
struct Leader(Child);

impl Leader {
    /// Starts it, and waits until it leads; its token.
    fn start(program: &Path, url: &str) -> Result<(Self, u64)> {
        let mut start = Command::new(program);
        start.args(["lead", url]);
        let child = start.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::inherit()).spawn()?;
        let mut leader = Self(child);
        let mut line = String::new();
        BufReader::new(leader.0.stdout.take().context("its output was piped")?).read_line(&mut line)?;
        let token = line.trim().strip_prefix("leads ").context("it ended without having led")?;
        Ok((leader, token.parse()?))
    }

    /// Kills it, and waits until it is dead.
    fn kill(&mut self) -> Result<()> {
        self.0.kill()?;
        self.0.wait()?;
        Ok(())
    }
}

impl Drop for Leader {
    fn drop(&mut self) {
        let _ = self.kill();
    }
}

/// The times from the kill until the next process leads, by this process's clock. The start of the process is part of it.
fn restarts(program: &Path, url: &str, rounds: usize) -> Result<Vec<Duration>> {
    let mut times = Vec::with_capacity(rounds);
    if rounds == 0 {
        return Ok(times);
    }
    let (mut leader, mut token) = Leader::start(program, url)?;
    for _ in 0..rounds {
        let killed = Instant::now();
        leader.kill()?;
        let (next, next_token) = Leader::start(program, url)?;
        times.push(killed.elapsed());
        ensure!(next_token > token, "token {next_token} came after {token}");
        (leader, token) = (next, next_token);
    }
    Ok(times)
}
