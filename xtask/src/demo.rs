//! `cargo xtask demo`: the billing demo over several seeds, and a verdict on all of them.

use std::{
    fs,
    path::Path,
    process::{Command, Stdio},
    time::Instant,
};

use anyhow::{Context, Result, bail, ensure};
use clap::{Args, ValueEnum};
use serde_json::{Value, json};

use crate::{
    catalog::{ETCD_3_5, Image, KUBERNETES_1_20, POSTGRES_17, ZOOKEEPER_3_9},
    docker, images,
    servers::{Servers, remove_leftovers},
    shell::{cargo, run, say, target},
    tools,
};

const COLUMNS: [&str; 10] = [
    "due",
    "charged",
    "double_charged",
    "missed",
    "refused_stale",
    "refused_duplicate",
    "leaders",
    "kills",
    "pauses",
    "max_gap_ms",
];

/// What to run.
#[derive(Args)]
pub(crate) struct Options {
    /// Where the servers elect their leader
    #[arg(long, value_enum, default_value_t = Store::Local)]
    store: Store,
    /// How many runs, each with another seed
    #[arg(long, default_value_t = 2)]
    seeds: u64,
    /// The first seed
    #[arg(long, default_value_t = 1)]
    first_seed: u64,
    /// How often the leader is killed in a run
    #[arg(long, default_value_t = 5)]
    kills: u64,
    /// How often the leader is stopped beyond its session's life in a run
    #[arg(long, default_value_t = 2)]
    pauses: u64,
    /// How many subscriptions fall due in a run
    #[arg(long, default_value_t = 2000)]
    subscriptions: u64,
}

#[derive(Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Store {
    /// A lock file
    Local,
    /// An etcd in a container, started for the purpose
    Etcd,
    /// A ZooKeeper in a container, started for the purpose
    Zookeeper,
    /// A PostgreSQL in a container, started for the purpose; it has the billing database, too
    Postgres,
    /// A Kubernetes API server in a container, started for the purpose
    Kubernetes,
}

/// Runs the demo for each seed.
///
/// # Errors
/// When a run cannot be made, or one of them shows a violation.
pub(crate) fn run_seeds(options: &Options) -> Result<()> {
    tools::ensure_for_build()?;
    let (name, image) = match options.store {
        Store::Local => ("local", None),
        Store::Etcd => ("etcd", Some(&ETCD_3_5)),
        Store::Zookeeper => ("zookeeper", Some(&ZOOKEEPER_3_9)),
        Store::Postgres => ("postgres", Some(&POSTGRES_17)),
        Store::Kubernetes => ("kubernetes", Some(&KUBERNETES_1_20)),
    };
    let servers = match image {
        None => None,
        Some(image) => {
            docker::ensure()?;
            images::ensure(&[image])?;
            remove_leftovers();
            Some(Servers::start(&[image])?)
        }
    };
    // Built as the tests build it, so that what they compiled is used again.
    run(&mut cargo(["build", "--workspace", "--all-features", "--bin", "billing"]))?;

    let mut reports = Vec::new();
    for seed in options.first_seed..options.first_seed + options.seeds {
        let data = std::path::absolute(target())?.join("demo").join(format!("{name}-{seed}"));
        fresh(&data)?;
        let store = match (image, &servers) {
            (Some(image), Some(servers)) => store_on(options.store, servers, image, seed, &data)?,
            _ => format!("local:{}", data.join("locks").display()),
        };
        say(format!("the demo on {name}, seed {seed}"));
        let start = Instant::now();
        let report = one_run(options, &store, seed, &data)?;
        reports.push((seed, start.elapsed().as_secs(), report));
    }
    print_table(&reports);
    verdict(&reports)
}

/// The URL of a run's part of the store on this server: a root, a database, or a namespace.
fn store_on(store: Store, servers: &Servers, image: &Image, seed: u64, data: &Path) -> Result<String> {
    let address = servers.address_of(image)?;
    Ok(match store {
        Store::Postgres => {
            let database = format!("demo_{seed}");
            servers.run_in(image, &["createdb", "--host=127.0.0.1", "--username=postgres", &database])?;
            format!("postgres://postgres@{address}/{database}")
        }
        Store::Kubernetes => {
            let namespace = format!("demo-{seed}");
            let kubectl =
                ["kubectl", "--server=https://127.0.0.1:6443", "--certificate-authority=/data/ca.pem"];
            let create = ["--token=admin-token", "create", "namespace", &namespace];
            servers.run_in(image, &[&kubectl[..], &create].concat())?;
            let kubeconfig = data.join("kubeconfig");
            let authority = data.join("ca.pem");
            fs::write(&authority, servers.run_in(image, &["cat", "/data/ca.pem"])?)?;
            fs::write(&kubeconfig, kubeconfig_of(address, &authority))?;
            format!("kubernetes:///{namespace}?kubeconfig={}", kubeconfig.display())
        }
        Store::Etcd => format!("etcd://{address}/demo-{seed}"),
        Store::Zookeeper => format!("zookeeper://{address}/demo-{seed}"),
        Store::Local => bail!("lock files have no server"),
    })
}

/// A kubeconfig for the administrator of the API server at this address.
fn kubeconfig_of(address: &str, authority: &Path) -> String {
    let cluster = json!({ "server": format!("https://{address}"), "certificate-authority": authority });
    json!({
        "apiVersion": "v1", "kind": "Config", "current-context": "demo",
        "clusters": [{ "name": "demo", "cluster": cluster }],
        "users": [{ "name": "demo", "user": { "token": "admin-token" } }],
        "contexts": [{ "name": "demo", "context": { "cluster": "demo", "user": "demo" } }],
    })
    .to_string()
}

fn one_run(options: &Options, store: &str, seed: u64, data: &Path) -> Result<Value> {
    let number = |flag: &str, value: u64| format!("--{flag}={value}");
    let mut demo = Command::new(target().join("debug").join("billing"));
    demo.args(["demo", "--json", &format!("--store={store}"), &number("seed", seed)])
        .args([number("kills", options.kills), number("pauses", options.pauses)])
        .arg(number("subscriptions", options.subscriptions))
        .arg("--data")
        .arg(data)
        .stdin(Stdio::null())
        .stderr(Stdio::inherit());
    let output = demo.output().context("cannot run billing")?;
    let printed = String::from_utf8_lossy(&output.stdout);
    let last = printed.trim_end().lines().next_back().unwrap_or_default();
    let mut report: Value = serde_json::from_str(last).with_context(|| {
        format!("seed {seed}: `billing demo` ({}) did not end with a line of JSON:\n{printed}", output.status)
    })?;
    report["success"] = output.status.success().into();
    Ok(report)
}

/// One line for every seed on which something is wrong.
fn violations(seed: u64, report: &Value) -> Option<String> {
    let count = |name: &str| report[name].as_u64();
    let wrong = count("double_charged") != Some(0)
        || count("missed") != Some(0)
        || count("charged").is_none()
        || count("charged") != count("due")
        || report["success"] != true;
    wrong.then(|| format!("seed {seed}: {report}"))
}

fn verdict(reports: &[(u64, u64, Value)]) -> Result<()> {
    let wrong: Vec<_> = reports.iter().filter_map(|(seed, _, report)| violations(*seed, report)).collect();
    ensure!(
        wrong.is_empty(),
        "the demo failed; its databases are under {}:\n{}",
        target().join("demo").display(),
        wrong.join("\n")
    );
    Ok(())
}

fn print_table(reports: &[(u64, u64, Value)]) {
    // A `Value` pays no heed to a width; text does.
    println!("{:>6} {:>8} {}", "seed", "seconds", COLUMNS.map(|name| format!("{name:>18}")).concat());
    for (seed, seconds, report) in reports {
        println!(
            "{seed:>6} {seconds:>8} {}",
            COLUMNS.map(|name| format!("{:>18}", report[name].to_string())).concat()
        );
    }
}

fn fresh(folder: &Path) -> Result<()> {
    match fs::remove_dir_all(folder) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
            bail!("cannot clear {}: {error}", folder.display())
        }
        _ => fs::create_dir_all(folder.join("locks"))
            .with_context(|| format!("cannot make {}", folder.display())),
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::violations;

    #[test]
    fn a_run_without_a_violation_passes() {
        let report = json!({ "due": 5, "charged": 5, "double_charged": 0, "missed": 0, "success": true });
        assert_eq!(violations(1, &report), None);
    }

    #[test]
    fn each_violation_fails_and_so_does_a_report_without_figures() {
        for wrong in [
            json!({ "due": 5, "charged": 5, "double_charged": 1, "missed": 0, "success": true }),
            json!({ "due": 5, "charged": 4, "double_charged": 0, "missed": 1, "success": true }),
            json!({ "due": 5, "charged": 4, "double_charged": 0, "missed": 0, "success": true }),
            json!({ "due": 5, "charged": 5, "double_charged": 0, "missed": 0, "success": false }),
            json!({ "success": true }),
        ] {
            assert!(violations(7, &wrong).is_some_and(|text| text.starts_with("seed 7")), "{wrong}");
        }
    }
}
