//! `cargo xtask bench`: what elections cost, beside the raw operations that they are made of.

mod page;

use std::{
    fs,
    io::{BufRead as _, BufReader},
    path::Path,
    process::{Command, Stdio},
};

use anyhow::{Context, Result, ensure};
use clap::{Args, ValueEnum};
use serde_json::Value;

use crate::{
    catalog::{ETCD_3_5, ZOOKEEPER_3_9},
    docker, images,
    servers::{Servers, remove_leftovers},
    shell::{cargo, run, say, target},
    tools,
};

/// What to measure.
#[derive(Args)]
pub(crate) struct Options {
    /// Only this store; all by default
    #[arg(long, value_enum)]
    store: Option<Store>,
    /// Fewer rounds, and fewer elections
    #[arg(long)]
    quick: bool,
    /// Only measures that have this in their names
    #[arg(long)]
    only: Option<String>,
    /// Also measures other libraries, after tenure on the same servers: installs what they need
    #[arg(long)]
    peers: bool,
    /// Prints the rows as one list of JSON in the end, instead of a table
    #[arg(long)]
    json: bool,
}

#[derive(Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Store {
    Etcd,
    Zookeeper,
    Local,
    Memory,
}

impl Store {
    /// The directories of the programs that measure others on this store.
    fn peers(self) -> &'static [&'static str] {
        match self {
            Self::Etcd => &["go"],
            Self::Zookeeper => &["curator", "kazoo"],
            Self::Local | Self::Memory => &[],
        }
    }
}

/// What a peer's program says, a row a line.
fn peer_rows(peer: &str, endpoint: &str, target: &Path, options: &Options) -> Result<Vec<Value>> {
    say(format!("measuring {peer} on {endpoint}"));
    let mut program = Command::new(Path::new("tests/bench/peers").join(peer).join("run"));
    program.args(["--endpoint", endpoint]).args(options.quick.then_some("--quick"));
    program.args(options.only.iter().flat_map(|only| ["--only", only]));
    let target = std::path::absolute(target)?;
    program.env("CARGO_TARGET_DIR", target).stdout(Stdio::piped());
    let mut child = program.spawn().with_context(|| format!("cannot run the peer {peer}"))?;
    let mut rows = Vec::new();
    for line in BufReader::new(child.stdout.take().context("its output was piped")?).lines() {
        let row: Value = serde_json::from_str(&line?)?;
        if !options.json {
            print(&row);
        }
        rows.push(row);
    }
    ensure!(child.wait()?.success(), "the peer {peer} failed on {endpoint}");
    Ok(rows)
}

/// Measures, writes `target/bench/summary.json` and prints a table. A full run writes `docs/reference/benchmarks.md`, too.
///
/// # Errors
/// When something cannot be measured. A target that is missed is told, and is no error.
pub(crate) fn measure(options: &Options) -> Result<()> {
    tools::ensure_for_build()?;
    let all = [Store::Etcd, Store::Zookeeper, Store::Local, Store::Memory];
    let stores: Vec<_> =
        all.into_iter().filter(|store| options.store.is_none_or(|only| only == *store)).collect();
    let needed: Vec<_> = stores
        .iter()
        .filter_map(|store| match store {
            Store::Etcd => Some(&ETCD_3_5),
            Store::Zookeeper => Some(&ZOOKEEPER_3_9),
            Store::Local | Store::Memory => None,
        })
        .collect();
    let servers = match needed.is_empty() {
        true => None,
        false => {
            docker::ensure()?;
            images::ensure(&needed)?;
            remove_leftovers();
            Some(Servers::start(&needed)?)
        }
    };
    run(&mut cargo(["build", "--release", "--package", "tenure-bench"]))?;
    let target = target();
    let directory = tempfile::tempdir()?;
    let mut rows = Vec::new();
    for store in stores {
        let address = |image| servers.as_ref().context("no server")?.address_of(image);
        let url = match store {
            Store::Etcd => format!("etcd://{}", address(&ETCD_3_5)?),
            Store::Zookeeper => format!("zookeeper://{}", address(&ZOOKEEPER_3_9)?),
            Store::Local => format!("local:{}", directory.path().display()),
            Store::Memory => "memory:bench".to_owned(),
        };
        say(format!("measuring on {url}"));
        let mut bench = Command::new(target.join("release").join("tenure-bench"));
        bench.arg(format!("--store={url}")).args(options.quick.then_some("--quick"));
        bench.args(options.only.iter().map(|only| format!("--only={only}"))).stdout(Stdio::piped());
        let mut child = bench.spawn().context("cannot run tenure-bench")?;
        for line in BufReader::new(child.stdout.take().context("its output was piped")?).lines() {
            let row: Value = serde_json::from_str(&line?)?;
            if !options.json {
                print(&row);
            }
            rows.push(row);
        }
        ensure!(child.wait()?.success(), "tenure-bench failed on {url}");
        if options.peers {
            for peer in store.peers() {
                let (_, endpoint) = url.split_once("://").context("a peer's store has an address")?;
                rows.extend(peer_rows(peer, endpoint, &target, options)?);
            }
        }
    }
    for row in against_peers(&mut rows) {
        if !options.json {
            print(row);
        }
    }
    let summary = target.join("bench");
    fs::create_dir_all(&summary)?;
    let summary = summary.join("summary.json");
    fs::write(&summary, serde_json::to_string_pretty(&rows)?)?;
    if !options.quick && options.only.is_none() && options.store.is_none() {
        page::write(&rows)?;
    }
    if options.json {
        println!("{}", Value::Array(rows));
    }
    say(format!("written to {}", summary.display()));
    Ok(())
}

/// What is to be so many times as fast as Go's client.
const AGAINST_GO: [(&str, f64, &str); 2] =
    [("many: lead ", 5.0, "at most a fifth of Go's"), ("many: take over ", 2.0, "at most half of Go's")];

/// Holds those measures against a peer that was measured in the same run: those that were.
fn against_peers(rows: &mut [Value]) -> Vec<&Value> {
    let gos: Vec<(Value, f64)> = rows
        .iter()
        .filter(|row| row["peer"].as_str().is_some_and(|peer| peer.starts_with("Go ")))
        .filter_map(|row| Some((row["measure"].clone(), row["p50_us"].as_f64()?)))
        .collect();
    let mut held = Vec::new();
    for row in rows.iter_mut().filter(|row| row["store"] == "etcd" && row["peer"].is_null()) {
        let measure = row["measure"].as_str().unwrap_or_default();
        let against = AGAINST_GO.iter().find(|(begins, ..)| measure.starts_with(begins));
        let go = gos.iter().find(|(measure, _)| *measure == row["measure"]);
        let (Some((_, times, words)), Some((_, go)), Some(ours)) = (against, go, row["p50_us"].as_f64())
        else {
            continue;
        };
        row["target"] = format!("{words} {go:.0} us, in the same run").into();
        row["met"] = (ours <= go / times).into();
        held.push(&*row);
    }
    held
}

/// A row of the table: ours, the floor, and their ratio.
fn print(row: &Value) {
    let text = |name: &str| row[name].as_str().unwrap_or_default().to_owned();
    let number =
        |name: &str| row[name].as_f64().map_or_else(|| "-".to_owned(), |value| format!("{value:.1}"));
    if let Some(peer) = row["peer"].as_str() {
        let (p50, p99) = (number("p50_us"), number("p99_us"));
        println!("{:<10} {:<62} {p50:>10} ({p99:>10})  {peer}", text("store"), text("measure"));
        return;
    }
    println!(
        "{:<10} {:<62} {:>10} ({:>10})  floor {:>9} ({:>9})  ratio {:>6} ({:>6})  {}",
        text("store"),
        text("measure"),
        number("p50_us"),
        number("p99_us"),
        number("floor_p50_us"),
        number("floor_p99_us"),
        number("ratio_p50"),
        number("ratio_p99"),
        if row["met"] == true { "met" } else { "MISSED" },
    );
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn what_a_peer_was_measured_for_is_held_against_it() {
        let mut rows = [
            json!({"store": "etcd", "measure": "many: lead 10, each", "p50_us": 30.0, "met": false}),
            json!({"store": "etcd", "measure": "many: take over 10, each", "p50_us": 60.0, "met": true}),
            json!({"store": "etcd", "measure": "campaign, session held", "p50_us": 60.0, "met": true}),
            json!({"peer": "Go concurrency.Election", "store": "etcd", "measure": "many: lead 10, each", "p50_us": 150.0}),
            json!({"peer": "Go concurrency.Election", "store": "etcd", "measure": "many: take over 10, each", "p50_us": 110.0}),
        ];
        assert_eq!(against_peers(&mut rows).len(), 2);
        assert_eq!((&rows[0]["met"], &rows[1]["met"]), (&json!(true), &json!(false)));
        assert_eq!(rows[0]["target"], "at most a fifth of Go's 150 us, in the same run");
    }
}
