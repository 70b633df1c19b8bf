//! `cargo xtask handover`: how long nobody leads after a program, or its `tenure run`, was killed.

use std::{
    io::{BufRead as _, BufReader},
    process::{Child, ChildStdout, Command, Stdio},
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, ensure};
use clap::Args;

use crate::{
    catalog::{ETCD_3_5, ZOOKEEPER_3_9},
    docker, images,
    servers::{Servers, remove_leftovers},
    shell::{cargo, command, output, run, say, target},
    tools,
};

/// The TTL for those cases that have to wait for it.
const TTL: &str = "5";
/// Nothing takes longer, unless it hangs.
const TIMEOUT: Duration = Duration::from_secs(60);

/// How often to measure.
#[derive(Args)]
pub(crate) struct Options {
    /// How often the program is killed, and how often what runs it, for each store
    #[arg(long, default_value_t = 100)]
    rounds: usize,
    /// How often `etcdctl` is killed, after which the next one waits for the TTL
    #[arg(long, default_value_t = 10)]
    slow_rounds: usize,
}

#[derive(Clone, Copy, PartialEq)]
enum Victim {
    Program,
    Runner,
}

/// What runs a program on one node only.
struct Runner {
    name: String,
    /// Everything before the program.
    run: Vec<String>,
    /// Prints a line for each that stands in the queue, and empty ones perhaps.
    queue: Vec<String>,
    /// Whether the next one waits for the TTL when this is killed.
    is_slow_to_end: bool,
}

/// Measures, and prints a table.
///
/// # Errors
/// When something cannot be started, or does not lead in time.
pub(crate) fn measure(options: &Options) -> Result<()> {
    tools::ensure_for_build()?;
    tools::ensure_for_tests()?;
    docker::ensure()?;
    images::ensure(&[&ETCD_3_5, &ZOOKEEPER_3_9])?;
    remove_leftovers();
    let servers = Servers::start(&[&ETCD_3_5, &ZOOKEEPER_3_9])?;
    run(&mut cargo(["build", "--release", "--package", "tenure-cli", "--all-features"]))?;
    let directory = tempfile::tempdir()?;
    let (etcd, zookeeper) = (servers.address_of(&ETCD_3_5)?, servers.address_of(&ZOOKEEPER_3_9)?);
    let runners = [
        tenure("local", &format!("local:{}", directory.path().display())),
        tenure("etcd", &format!("etcd://{etcd}/handover?ttl={TTL}s")),
        tenure("ZooKeeper", &format!("zookeeper://{zookeeper}/handover?ttl={TTL}s")),
        etcdctl(etcd),
    ];
    println!("{:<28} {:<16} {:>6} {:>10} {:>10} {:>10}", "", "killed", "rounds", "median", "p99", "most");
    for runner in &runners {
        let runner_rounds = if runner.is_slow_to_end { options.slow_rounds } else { options.rounds };
        for (victim, what, rounds) in [
            (Victim::Program, "the program", options.rounds),
            (Victim::Runner, "what runs it", runner_rounds),
        ] {
            if rounds == 0 {
                continue;
            }
            let mut times = rounds_of(runner, victim, rounds).with_context(|| runner.name.clone())?;
            times.sort_unstable();
            let at = |share: f64| times[((times.len() - 1) as f64 * share).round() as usize];
            let shown = |time: Duration| format!("{:.1} ms", time.as_secs_f64() * 1e3);
            println!(
                "{:<28} {what:<16} {rounds:>6} {:>10} {:>10} {:>10}",
                runner.name,
                shown(at(0.5)),
                shown(at(0.99)),
                shown(at(1.0))
            );
        }
    }
    Ok(())
}

fn tenure(name: &str, store: &str) -> Runner {
    let target = target();
    let words = |subcommand: &str| {
        let program = target.join("release").join("tenure").display().to_string();
        [program, subcommand.to_owned(), "--store".to_owned(), store.to_owned()]
            .into_iter()
            .chain(["--election".to_owned(), "e".to_owned()])
    };
    Runner {
        name: format!("tenure run, {name}"),
        run: words("run").chain(["--quiet".to_owned(), "--".to_owned()]).collect(),
        queue: words("candidates").collect(),
        is_slow_to_end: false,
    }
}

fn etcdctl(endpoint: &str) -> Runner {
    let words = |rest: &[&str]| {
        ["etcdctl".to_owned(), format!("--endpoints={endpoint}")]
            .into_iter()
            .chain(rest.iter().map(|word| (*word).to_owned()))
            .collect()
    };
    Runner {
        name: "etcdctl lock".to_owned(),
        run: words(&["lock", &format!("--ttl={TTL}"), "etcdctl-handover", "--"]),
        queue: words(&["get", "--prefix", "--keys-only", "etcdctl-handover"]),
        is_slow_to_end: true,
    }
}

/// One that runs, or waits to run, a program which prints its process's id.
struct Node {
    child: Child,
    printed: BufReader<ChildStdout>,
}

impl Node {
    fn start(runner: &Runner) -> Result<Self> {
        let mut start = Command::new(&runner.run[0]);
        start.args(&runner.run[1..]).args(["sh", "-c", "echo $$; exec sleep 1000"]);
        let mut child = start.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::null()).spawn()?;
        let printed = BufReader::new(child.stdout.take().context("its output was piped")?);
        Ok(Self { child, printed })
    }

    /// Waits until the program runs; its process's id.
    fn leads(&mut self) -> Result<String> {
        let mut line = String::new();
        self.printed.read_line(&mut line)?;
        ensure!(!line.is_empty(), "it ended without having led");
        Ok(line.trim().to_owned())
    }
}

impl Drop for Node {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// The times from the kill to the next program's first line, by this process's clock.
fn rounds_of(runner: &Runner, victim: Victim, rounds: usize) -> Result<Vec<Duration>> {
    let mut first = Node::start(runner)?;
    let mut pid = first.leads()?;
    let mut times = Vec::with_capacity(rounds);
    for _ in 0..rounds {
        let mut next = Node::start(runner)?;
        let until = Instant::now() + TIMEOUT;
        while output(&mut command(&runner.queue[0], &runner.queue[1..]))?
            .lines()
            .filter(|l| !l.is_empty())
            .count()
            < 2
        {
            ensure!(Instant::now() < until, "there are not two in the queue");
            thread::sleep(Duration::from_millis(20));
        }
        let killed = match victim {
            Victim::Program => pid.clone(),
            Victim::Runner => first.child.id().to_string(),
        };
        let begun = Instant::now();
        output(&mut command("kill", ["-9", &killed]))?;
        let orphan = std::mem::replace(&mut pid, next.leads()?);
        times.push(begun.elapsed());
        first = next;
        // What etcdctl leaves running.
        let _ = output(&mut command("kill", ["-9", &orphan]));
    }
    let _ = output(&mut command("kill", ["-9", &pid]));
    say(format!("{}: measured", runner.name));
    Ok(times)
}
