//! `cargo xtask demo`: the billing demo over several seeds, and a verdict on all of them.

use std::{fs, path::Path, process::Command};

use anyhow::{Context, Result, bail, ensure};
use clap::{Args, ValueEnum};
use serde_json::{Value, json};

use crate::{
    catalog::{
        CONSUL_1_8, ETCD_3_5, Image, KUBERNETES_1_20, MARIADB_10_11, NATS_2_15, POSTGRES_17, REDIS_7_0,
        SEAWEEDFS_4, ZOOKEEPER_3_9,
    },
    docker, images,
    servers::{Servers, remove_leftovers},
    shell::{cargo, run, run_all_for_json, target},
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
    /// Where the servers elect their leader; all stores, five at a time, unless one is named
    #[arg(long, value_enum)]
    store: Option<Store>,
    /// How many runs on each store, each with another seed
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
    /// An etcd in a container, started for the purpose, as are all others
    Etcd,
    /// A ZooKeeper
    Zookeeper,
    /// A PostgreSQL; it has the billing database, too
    Postgres,
    /// A Kubernetes API server
    Kubernetes,
    /// A Consul server
    Consul,
    /// A NATS server
    Nats,
    /// SeaweedFS
    S3,
    /// A MariaDB
    Mysql,
    /// A Redis
    Redis,
}

impl Store {
    fn name(self) -> String {
        self.to_possible_value().map(|value| value.get_name().to_owned()).unwrap_or_default()
    }

    fn image(self) -> Option<&'static Image> {
        match self {
            Self::Local => None,
            Self::Etcd => Some(&ETCD_3_5),
            Self::Zookeeper => Some(&ZOOKEEPER_3_9),
            Self::Postgres => Some(&POSTGRES_17),
            Self::Kubernetes => Some(&KUBERNETES_1_20),
            Self::Consul => Some(&CONSUL_1_8),
            Self::Nats => Some(&NATS_2_15),
            Self::S3 => Some(&SEAWEEDFS_4),
            Self::Mysql => Some(&MARIADB_10_11),
            Self::Redis => Some(&REDIS_7_0),
        }
    }
}

/// How many runs there are at a time on different stores. A run mostly waits.
const AT_A_TIME: usize = 5;

/// Runs the demo for each store and seed.
///
/// # Errors
/// When a run cannot be made, or one of them shows a violation.
pub(crate) fn run_seeds(options: &Options) -> Result<()> {
    tools::ensure_for_build()?;
    let all = Store::value_variants().iter().copied();
    let stores: Vec<_> = all.filter(|store| options.store.is_none_or(|only| only == *store)).collect();
    let images: Vec<_> = stores.iter().filter_map(|store| store.image()).collect();
    if !images.is_empty() {
        docker::ensure()?;
        images::ensure(&images)?;
        remove_leftovers();
    }
    let servers = Servers::start(&images)?;
    // Built as the tests build it, so that what they compiled is used again.
    run(&mut cargo(["build", "--workspace", "--all-features", "--bin", "billing"]))?;

    let (mut names, mut demos) = (Vec::new(), Vec::new());
    for seed in options.first_seed..options.first_seed + options.seeds {
        for store in &stores {
            let data = std::path::absolute(target())?.join("demo").join(format!("{}-{seed}", store.name()));
            fresh(&data)?;
            let url = url_of(*store, &servers, seed, &data)?;
            demos.push(demo(options, &url, seed, &data));
            names.push(format!("{} {seed}", store.name()));
        }
    }
    let outcomes = run_all_for_json(demos, if stores.len() > 1 { AT_A_TIME } else { 1 })?;
    let reports: Vec<_> = names.into_iter().zip(outcomes.into_iter().map(with_success)).collect();
    print_table(&reports);
    verdict(&reports)
}

/// The URL of a run's part of the store: a prefix, a database, or a namespace, for example.
fn url_of(store: Store, servers: &Servers, seed: u64, data: &Path) -> Result<String> {
    let Some(image) = store.image() else { return Ok(format!("local:{}", data.join("locks").display())) };
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
        Store::Consul => format!("consul://{address}/demo-{seed}"),
        Store::Nats => format!("nats://{address}/demo-{seed}"),
        Store::S3 => format!("s3://admin:admin-secret@suite/demo-{seed}?endpoint=http://{address}"),
        Store::Mysql => {
            let database = format!("demo_{seed}");
            let create = format!("CREATE DATABASE {database}");
            let client = ["mariadb", "--no-defaults", "--protocol=tcp", "--host=127.0.0.1", "--user=root"];
            servers.run_in(image, &[&client[..], &["--execute", &create]].concat())?;
            format!("mysql://root@{address}/{database}")
        }
        Store::Redis => format!("redis://{address}/0?prefix=demo-{seed}"),
        Store::Local => bail!("a lock file has no server"),
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

fn demo(options: &Options, store: &str, seed: u64, data: &Path) -> Command {
    let number = |flag: &str, value: u64| format!("--{flag}={value}");
    let mut demo = Command::new(target().join("debug").join("billing"));
    demo.args(["demo", "--json", &format!("--store={store}"), &number("seed", seed)])
        .args([number("kills", options.kills), number("pauses", options.pauses)])
        .arg(number("subscriptions", options.subscriptions))
        .arg("--data")
        .arg(data);
    demo
}

/// The report of a run, with whether the demo succeeded.
fn with_success((report, success): (Option<Value>, bool)) -> Value {
    let mut report = report.unwrap_or_else(|| json!({}));
    report["success"] = success.into();
    report
}

/// A line about a run in which something is wrong.
fn violations(name: &str, report: &Value) -> Option<String> {
    let count = |name: &str| report[name].as_u64();
    let wrong = count("double_charged") != Some(0)
        || count("missed") != Some(0)
        || count("charged").is_none()
        || count("charged") != count("due")
        || report["success"] != true;
    wrong.then(|| format!("{name}: {report}"))
}

fn verdict(reports: &[(String, Value)]) -> Result<()> {
    let wrong: Vec<_> = reports.iter().filter_map(|(name, report)| violations(name, report)).collect();
    ensure!(
        wrong.is_empty(),
        "the demo failed; its databases are under {}:\n{}",
        target().join("demo").display(),
        wrong.join("\n")
    );
    Ok(())
}

fn print_table(reports: &[(String, Value)]) {
    // A `Value` pays no heed to a width; text does.
    println!("{:<14} {}", "store, seed", COLUMNS.map(|name| format!("{name:>18}")).concat());
    for (name, report) in reports {
        println!("{name:<14} {}", COLUMNS.map(|name| format!("{:>18}", report[name].to_string())).concat());
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
        assert_eq!(violations("etcd 1", &report), None);
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
            assert!(violations("etcd 7", &wrong).is_some_and(|text| text.starts_with("etcd 7")), "{wrong}");
        }
    }
}
