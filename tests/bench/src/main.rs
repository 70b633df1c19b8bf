//! Measures elections next to the raw store operations that they consist of, alternating, in one run.

mod churn;
mod crash;
mod idle;
mod locks;
mod many;
mod polled;
mod raw;
mod row;
mod single;

use anyhow::{Result, bail};
use clap::Parser;
use peak_alloc::PeakAlloc;

use raw::{Cas, Etcd, Postgres, RawStore, Zookeeper};
use row::Row;

/// Counts the memory of elections.
#[global_allocator]
static MEMORY: PeakAlloc = PeakAlloc;

/// Measures elections.
#[derive(Debug, Parser)]
struct Options {
    /// The store: etcd://HOST:PORT, zookeeper://HOST:PORT, postgres://USER@HOST:PORT/DATABASE, local:/DIRECTORY or memory:. With
    /// several servers only single elections and idle ones are measured; on consul:, nats:, s3:, mysql: and redis: only single ones
    #[arg(long)]
    store: String,
    /// Fewer rounds
    #[arg(long)]
    quick: bool,
    /// Only measures that have this in their names
    #[arg(long)]
    only: Option<String>,
    /// Measures nothing: leads this election until it is killed
    #[arg(long, hide = true)]
    crash: Option<String>,
}

impl Options {
    fn is_selected(&self, measure: &str) -> bool {
        self.only.as_ref().is_none_or(|only| measure.contains(only.as_str()))
    }

    fn rounds(&self, all: usize) -> usize {
        if self.quick { (all / 10).max(5) } else { all }
    }
}

#[tokio::main]
async fn main() -> Result<()> {
    // In a spawned task, as in real programs. The main future would be woken across threads each time.
    tokio::spawn(measure(Options::parse())).await?
}

async fn measure(options: Options) -> Result<()> {
    if let Some(election) = &options.crash {
        return crash::lead_until_killed(&options.store, election).await;
    }
    let Some((scheme, rest)) = options.store.split_once(':') else {
        bail!("not a store URL: {}", options.store)
    };
    let endpoint = rest.trim_start_matches('/');
    let mut raw: Option<Box<dyn RawStore>> = match scheme {
        "etcd" => Some(Box::new(Etcd::connect(endpoint).await?)),
        "zookeeper" => Some(Box::new(Zookeeper::connect(endpoint).await?)),
        "postgres" => Some(Box::new(Postgres::connect(&options.store).await?)),
        "local" | "memory" => None,
        scheme if single::is_cas(scheme) => None,
        other => bail!("unknown store {other:?}"),
    };
    let store = single::TestStore::new(scheme, &options.store);
    if single::is_cas(scheme) {
        raw = Some(Box::new(Cas::connect(store.url()).await?));
    }
    let mut report = |row: Row| -> Result<()> {
        println!("{}", serde_json::to_string(&row)?);
        Ok(())
    };
    single::measure(&options, &store, &mut raw, &mut report).await?;
    if single::is_cas(scheme) {
        return Ok(());
    }
    if !store.has_several_servers() {
        many::measure(&options, &store, &mut raw, &mut report).await?;
    }
    if let Some(raw) = raw.as_deref_mut() {
        if !store.has_several_servers() {
            crash::measure(&options, &store, raw, &mut report).await?;
        }
        // On PostgreSQL, the hundred thousands of writes with which the queues are filled take too long.
        if !store.has_several_servers() && scheme != "postgres" {
            churn::measure(&options, &store, raw, &mut report).await?;
        }
        idle::measure(&options, &store, raw, &mut report).await?;
    }
    if scheme == "postgres" {
        locks::measure(&options, &options.store, &mut report).await?;
    }
    Ok(())
}
