//! `billing demo`: real servers, a real provider, real kills, and then the books.

mod books;
mod check;
mod children;
mod directory;
mod page;
mod scenario;
mod stage;
mod summary;
mod watch;

use std::{path::PathBuf, process::ExitCode, time::Duration};

use anyhow::{Context, bail};
use clap::ValueEnum;
use tenure::StoreUrl;

use crate::{clock::now_ms, db::Database, election, serve::signals};
use directory::Directory;
use scenario::{Scenario, Wishes};
use stage::Stage;
use summary::Summary;

/// The TTL where the store's URL names none.
const TTL: Duration = Duration::from_secs(3);
/// On the local store a stopped leader leads on: a longer pause would show nothing more.
const LOCAL_TTL: Duration = Duration::from_secs(2);

#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// Where the servers elect: local:/directory (a directory of the demo's own by default), or
    /// etcd://host:2379/prefix?ttl=3s, or zookeeper://host:2181/root?ttl=4s
    #[arg(long)]
    store: Option<String>,
    /// The billing database (SQLite in the data directory by default): postgres://user@host/database, with no
    /// subscriptions in it
    #[arg(long)]
    database: Option<String>,
    /// How many servers
    #[arg(long, default_value_t = 4, value_parser = clap::value_parser!(u32).range(1..=50))]
    servers: u32,
    /// How many subscriptions fall due; a tenth more are added that do not
    #[arg(long, default_value_t = 2000, value_parser = clap::value_parser!(u32).range(1..=1_000_000))]
    subscriptions: u32,
    /// How many leaders are killed (kill -9)
    #[arg(long, default_value_t = 5, value_parser = clap::value_parser!(u32).range(0..=1000))]
    kills: u32,
    /// How many leaders are stopped (SIGSTOP) for longer than the TTL, and continued
    #[arg(long, default_value_t = 2, value_parser = clap::value_parser!(u32).range(0..=1000))]
    pauses: u32,
    /// Makes prices, latencies, and the moments and kinds of the faults repeatable
    #[arg(long)]
    seed: Option<u64>,
    /// Where billing.db, provider.db, report.html and the logs are kept; a directory under /tmp by default
    #[arg(long)]
    data: Option<PathBuf>,
    /// Print one JSON object as the last line
    #[arg(long)]
    json: bool,
    /// Leave out a layer of protection, to see what the others are worth
    #[arg(long, value_enum)]
    without: Vec<Layer>,
}

/// A layer of protection at the provider.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum Layer {
    /// The provider takes no notice of fencing tokens
    Tokens,
    /// The provider takes no notice of idempotency keys
    Idempotency,
}

pub(crate) async fn run(args: Args) -> anyhow::Result<ExitCode> {
    let seed = args.seed.unwrap_or_else(|| u64::from(fastrand::u32(..)));
    let wishes = Wishes { subscriptions: args.subscriptions, kills: args.kills, pauses: args.pauses };
    let scenario = Scenario::new(seed, wishes, now_ms())?;
    // Before anything is made or started.
    if let Some(store) = &args.store {
        check_store(store).await?;
    }
    if let Some(database) = &args.database {
        Database::open(database).await?;
    }
    let interrupted = signals::stop_on_signal()?;
    let directory = Directory::prepare(args.data.as_deref())?;
    let (store, ttl) = with_ttl(args.store.clone().unwrap_or_else(|| directory.store_url()))?;
    let database_url = args.database.clone().unwrap_or_else(|| directory.database_url());

    let played = tokio::select! {
        played = play(&args, seed, &scenario, &directory, &store, ttl, &database_url) => played?,
        () = interrupted.cancelled() => bail!("interrupted; the servers and the provider have been ended"),
    };
    let page = directory.page();
    std::fs::write(&page, page::render(&played))
        .with_context(|| format!("cannot write {}", page.display()))?;

    println!("{}", played.table());
    println!("  data      {}", directory.root().display());
    println!("  timeline  {}", page.display());
    if args.json {
        println!("{}", played.json());
    }
    Ok(if played.violations.is_empty() { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

async fn play(
    args: &Args,
    seed: u64,
    scenario: &Scenario,
    directory: &Directory,
    store: &str,
    ttl: Duration,
    database_url: &str,
) -> anyhow::Result<Summary> {
    let database = Database::open(database_url).await?;
    if database.count_subscriptions().await? > 0 {
        bail!("the database has subscriptions in it; the demo needs an empty one, to check the books");
    }
    // A name of its own: a store that others use as well, or an earlier run did, is no trouble.
    let election = format!("billing-{:08x}", fastrand::u32(..));
    let mut stage = Stage::set(stage::Setting {
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
    let trouble = stage.play(scenario).await.err();
    let ran = stage.strike(trouble).await;
    Summary::draw_up(args, seed, store, scenario, ran, &directory.ledger(), &database).await
}

async fn check_store(store: &str) -> anyhow::Result<()> {
    election::watch(store).await?;
    if store.parse::<StoreUrl>()?.scheme() == "memory" {
        bail!(
            "the demo's servers are processes of their own, and memory: is within one; use local:, etcd: or zookeeper:"
        );
    }
    Ok(())
}

/// The store's URL with a TTL in it, and that TTL.
fn with_ttl(store: String) -> anyhow::Result<(String, Duration)> {
    let url: StoreUrl = store.parse()?;
    if let Some(ttl) = url.duration("ttl")? {
        return Ok((store, ttl));
    }
    let ttl = if url.scheme() == "local" { LOCAL_TTL } else { TTL };
    let separator = if store.contains('?') { '&' } else { '?' };
    Ok((format!("{store}{separator}ttl={}", humantime::format_duration(ttl)), ttl))
}
