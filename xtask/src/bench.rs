//! `cargo xtask bench`: what elections cost, beside the raw operations that they are made of.

mod page;

use std::{
    fs,
    io::{BufRead as _, BufReader},
    path::Path,
    process::{Child, Command, Stdio},
};

use anyhow::{Context, Result, ensure};
use clap::{Args, ValueEnum};
use serde_json::Value;

use crate::{
    catalog::{
        CONSUL_1_8, ETCD_3_5, Image, MARIADB_10_11, NATS_2_15, POSTGRES_15, REDIS_7_0, SEAWEEDFS_4,
        ZOOKEEPER_3_9,
    },
    docker, images,
    servers::{Servers, Storage, remove_leftovers},
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
    /// Measures nothing, and draws the plot again from the table in the page
    #[arg(long)]
    replot: bool,
}

#[derive(Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Store {
    Etcd,
    /// A cluster of three servers.
    EtcdThree,
    Zookeeper,
    /// An ensemble of three servers.
    ZookeeperThree,
    /// With locks that its users write themselves.
    Postgres,
    Consul,
    Nats,
    S3,
    Mysql,
    Redis,
    Local,
    Memory,
}

impl Store {
    /// The directories of the programs that measure others on this store.
    fn peers(self) -> &'static [&'static str] {
        match self {
            Self::Etcd | Self::EtcdThree => &["go"],
            Self::Zookeeper | Self::ZookeeperThree => &["curator", "kazoo"],
            _ => &[],
        }
    }

    fn image(self) -> Option<&'static Image> {
        match self {
            Self::Etcd | Self::EtcdThree => Some(&ETCD_3_5),
            Self::Zookeeper | Self::ZookeeperThree => Some(&ZOOKEEPER_3_9),
            Self::Postgres => Some(&POSTGRES_15),
            Self::Consul => Some(&CONSUL_1_8),
            Self::Nats => Some(&NATS_2_15),
            Self::S3 => Some(&SEAWEEDFS_4),
            Self::Mysql => Some(&MARIADB_10_11),
            Self::Redis => Some(&REDIS_7_0),
            Self::Local | Self::Memory => None,
        }
    }

    /// Where its single server keeps its data.
    fn storage(self) -> Storage {
        match self {
            // As it is configured by default, and counting statements.
            Self::Postgres => {
                Storage::Disk("POSTGRES_OPTIONS=-c fsync=on -c shared_preload_libraries=pg_stat_statements")
            }
            _ => Storage::Memory,
        }
    }

    /// What is appended to the store's name in a peer's rows.
    fn suffix(self) -> &'static str {
        match self {
            Self::EtcdThree | Self::ZookeeperThree => ", three servers",
            _ => "",
        }
    }
}

/// The measures that peers take of three servers: as tenure's.
const MEASURES_OF_THREE: [&str; 3] = ["campaign", "handover", "idle"];

/// Three servers of a store, which are removed when this is dropped.
struct ThreeServers {
    program: Child,
    addresses: String,
}

impl ThreeServers {
    fn start(store: &str) -> Result<Self> {
        let package = ["--release", "--package", "tenure-containers", "--example", "three_servers"];
        run(cargo(["build"]).args(package))?;
        let mut program = cargo(["run", "--quiet"])
            .args(package)
            .args(["--", store])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .context("cannot start three servers")?;
        let mut addresses = String::new();
        let output = program.stdout.take().context("its output was piped")?;
        BufReader::new(output).read_line(&mut addresses)?;
        let addresses = addresses.trim().to_owned();
        ensure!(!addresses.is_empty(), "the three servers did not start");
        Ok(Self { program, addresses })
    }
}

impl Drop for ThreeServers {
    fn drop(&mut self) {
        // It removes them at the end of its input.
        drop(self.program.stdin.take());
        let _ = self.program.wait();
    }
}

/// What a peer's program says, a row a line.
fn peer_rows(
    peer: &str,
    (store, endpoint): (Store, &str),
    only: Option<&str>,
    target: &Path,
    options: &Options,
) -> Result<Vec<Value>> {
    say(format!("measuring {peer} on {endpoint}"));
    let mut program = Command::new(Path::new("tests/bench/peers").join(peer).join("run"));
    program.args(["--endpoint", endpoint]).args(options.quick.then_some("--quick"));
    program.args(only.iter().flat_map(|only| ["--only", only]));
    let target = std::path::absolute(target)?;
    program.env("CARGO_TARGET_DIR", target).stdout(Stdio::piped());
    let mut child = program.spawn().with_context(|| format!("cannot run the peer {peer}"))?;
    let mut rows = Vec::new();
    for line in BufReader::new(child.stdout.take().context("its output was piped")?).lines() {
        let mut row: Value = serde_json::from_str(&line?)?;
        let name = format!("{}{}", row["store"].as_str().unwrap_or_default(), store.suffix());
        row["store"] = name.into();
        if !options.json {
            print(&row);
        }
        rows.push(row);
    }
    ensure!(child.wait()?.success(), "the peer {peer} failed on {endpoint}");
    Ok(rows)
}

/// Measures, writes `target/bench/summary.json` and prints a table. A run of all measures replaces the rows of its stores in
/// `docs/reference/benchmarks.md`, too.
///
/// # Errors
/// When something cannot be measured. A target that is missed is told, and is no error.
pub(crate) fn measure(options: &Options) -> Result<()> {
    if options.replot {
        return page::plot_again();
    }
    tools::ensure_for_build()?;
    let all = Store::value_variants().iter().copied();
    let stores: Vec<_> = all.filter(|store| options.store.is_none_or(|only| only == *store)).collect();
    let mut needed: Vec<_> = stores.iter().filter_map(|store| store.image()).collect();
    needed.dedup_by_key(|image| image.name);
    let single = stores.iter().filter(|store| store.suffix().is_empty());
    let single: Vec<_> = single.filter_map(|store| Some((store.image()?, store.storage()))).collect();
    if !needed.is_empty() {
        docker::ensure()?;
        images::ensure(&needed)?;
        remove_leftovers();
    }
    let servers = if single.is_empty() { None } else { Some(Servers::start_with(&single)?) };
    run(&mut cargo(["build", "--release", "--package", "tenure-bench"]))?;
    let target = target();
    let directory = tempfile::tempdir()?;
    let mut rows = Vec::new();
    for store in stores {
        let mut three = None;
        let mut start_three =
            |name| -> Result<String> { Ok(three.insert(ThreeServers::start(name)?).addresses.clone()) };
        let address = |image| servers.as_ref().context("no server")?.address_of(image);
        let url = match store {
            Store::Etcd => format!("etcd://{}", address(&ETCD_3_5)?),
            Store::EtcdThree => format!("etcd://{}", start_three("etcd")?),
            Store::Zookeeper => format!("zookeeper://{}", address(&ZOOKEEPER_3_9)?),
            Store::ZookeeperThree => format!("zookeeper://{}", start_three("zookeeper")?),
            Store::Postgres => format!("postgres://postgres@{}/postgres", address(&POSTGRES_15)?),
            Store::Consul => format!("consul://{}", address(&CONSUL_1_8)?),
            Store::Nats => format!("nats://{}", address(&NATS_2_15)?),
            Store::S3 => {
                let address = address(&SEAWEEDFS_4)?;
                format!("s3://admin:admin-secret@suite/bench?endpoint=http://{address}")
            }
            Store::Mysql => format!("mysql://root@{}/tenure", address(&MARIADB_10_11)?),
            Store::Redis => format!("redis://{}/0?prefix=bench", address(&REDIS_7_0)?),
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
                let only = options.only.as_deref();
                let measures = match store.suffix() {
                    "" => vec![only],
                    _ if only.is_some() => vec![only],
                    _ => MEASURES_OF_THREE.map(Some).to_vec(),
                };
                for only in measures {
                    rows.extend(peer_rows(peer, (store, endpoint), only, &target, options)?);
                }
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
    if !options.quick && options.only.is_none() {
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
