//! `billing demo`: runs real servers and a provider, injects faults, and then checks the provider's ledger.

mod args;
mod child_process;
mod cluster;
mod data_directory;
mod election_watch;
mod html_report;
mod ledger_reader;
mod scenario;
mod summary;
mod verdict;

use std::{process::ExitCode, time::Duration};

use anyhow::{Context, bail};
use tenure::StoreUrl;

use crate::{clock::now_ms, db::Database, election, signals};
pub(crate) use args::Args;
use cluster::{Cluster, ClusterConfig};
use data_directory::DataDirectory;
use scenario::{Scenario, ScenarioOptions};
use summary::Summary;

/// The TTL if the store's URL has none.
const DEFAULT_TTL: Duration = Duration::from_secs(3);
/// The same for the local store. There a stopped leader keeps its leadership, so a longer pause would show nothing
/// more.
const DEFAULT_LOCAL_TTL: Duration = Duration::from_secs(2);
/// How long the database may stall before the run fails.
const STALL_LIMIT: Duration = Duration::from_secs(30);

pub(crate) async fn run(args: Args) -> anyhow::Result<ExitCode> {
    let seed = args.seed.unwrap_or_else(|| u64::from(fastrand::u32(..)));
    let options =
        ScenarioOptions { subscriptions: args.subscriptions, kills: args.kills, pauses: args.pauses };
    let scenario = Scenario::new(seed, options, now_ms())?;
    // Check the options before anything is created or started.
    if let Some(store) = &args.store {
        check_store(store).await?;
    }
    if let Some(database) = &args.database {
        Database::open(database).await?;
    }
    let interrupted = signals::stop_on_signal()?;
    let directory = DataDirectory::prepare(args.data.as_deref())?;
    let (store, ttl) = with_ttl(args.store.clone().unwrap_or_else(|| directory.store_url()))?;
    let database_url = args.database.clone().or_else(|| election::database_of(&store));
    let database_url = database_url.unwrap_or_else(|| directory.database_url());

    let summary = tokio::select! {
        summary = run_scenario(&args, seed, &scenario, &directory, &store, ttl, &database_url) => summary?,
        () = interrupted.cancelled() => bail!("interrupted; the servers and the provider were stopped"),
    };
    let report = directory.report();
    std::fs::write(&report, html_report::render(&summary))
        .with_context(|| format!("cannot write {}", report.display()))?;

    println!("{}", summary.table());
    println!("  data      {}", directory.root().display());
    println!("  timeline  {}", report.display());
    if args.json {
        println!("{}", summary.json());
    }
    Ok(if summary.violations.is_empty() { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

async fn run_scenario(
    args: &Args,
    seed: u64,
    scenario: &Scenario,
    directory: &DataDirectory,
    store: &str,
    ttl: Duration,
    database_url: &str,
) -> anyhow::Result<Summary> {
    // The demo itself outlasts a stall of the database.
    let database = Database::open_with(database_url, STALL_LIMIT).await?;
    if database.count_subscriptions().await? > 0 {
        bail!("the database has subscriptions; the demo needs an empty one to check the ledger against");
    }
    // A new name for each run, because other programs and earlier runs may use the same store.
    let election = format!("billing-{:08x}", fastrand::u32(..));
    let mut cluster = Cluster::start(ClusterConfig {
        servers: args.servers,
        seed,
        store: store.to_owned(),
        ttl,
        election,
        database_url: database_url.to_owned(),
        without: args.without.clone(),
        directory: directory.clone(),
        database: database.clone(),
    })
    .await?;
    let error = cluster.run_scenario(scenario).await.err();
    let record = cluster.shut_down(error).await;
    Summary::create(args, seed, store, scenario, record, &directory.ledger(), &database).await
}

async fn check_store(store: &str) -> anyhow::Result<()> {
    election::connect_observer(store).await?;
    if store.parse::<StoreUrl>()?.scheme() == "memory" {
        bail!(
            "memory: works within one process, and the demo's servers are separate processes; \
             use local:, etcd:, zookeeper:, postgres: or kubernetes:"
        );
    }
    Ok(())
}

/// The store's URL with a TTL, and that TTL.
fn with_ttl(store: String) -> anyhow::Result<(String, Duration)> {
    let url: StoreUrl = store.parse()?;
    if let Some(ttl) = url.duration("ttl")? {
        return Ok((store, ttl));
    }
    let ttl = if url.scheme() == "local" { DEFAULT_LOCAL_TTL } else { DEFAULT_TTL };
    let separator = if store.contains('?') { '&' } else { '?' };
    Ok((format!("{store}{separator}ttl={}", humantime::format_duration(ttl)), ttl))
}
