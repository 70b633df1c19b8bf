//! What elections cost, beside the raw operations of the store that they are made of: alternating, in one run.

mod churn;
mod crash;
mod few;
mod idle;
mod many;
mod raw;
mod row;

use anyhow::{Result, bail};
use clap::Parser;
use peak_alloc::PeakAlloc;

use raw::{Etcd, Raw, Zookeeper};
use row::Row;

/// So that it is known how much memory elections take.
#[global_allocator]
static MEMORY: PeakAlloc = PeakAlloc;

/// Measures what elections cost.
#[derive(Debug, Parser)]
struct Options {
    /// The store: etcd://HOST:PORT, zookeeper://HOST:PORT, local:/DIRECTORY or memory:
    #[arg(long)]
    store: String,
    /// Fewer rounds
    #[arg(long)]
    quick: bool,
    /// Only measures that have this in their names
    #[arg(long)]
    only: Option<String>,
}

impl Options {
    fn wants(&self, measure: &str) -> bool {
        self.only.as_ref().is_none_or(|only| measure.contains(only.as_str()))
    }

    fn rounds(&self, all: usize) -> usize {
        if self.quick { (all / 10).max(5) } else { all }
    }
}

#[tokio::main]
async fn main() -> Result<()> {
    // In a task, where programs do their work: the main future is woken from one thread to another each time.
    tokio::spawn(measure(Options::parse())).await?
}

async fn measure(options: Options) -> Result<()> {
    let Some((scheme, rest)) = options.store.split_once(':') else { bail!("{} is no store", options.store) };
    let endpoint = rest.trim_start_matches('/');
    let mut raw: Option<Box<dyn Raw>> = match scheme {
        "etcd" => Some(Box::new(Etcd::connect(endpoint).await?)),
        "zookeeper" => Some(Box::new(Zookeeper::connect(endpoint).await?)),
        "local" | "memory" => None,
        other => bail!("there is no store {other:?}"),
    };
    let place = few::Place::new(scheme, &options.store);
    let mut tell = |row: Row| -> Result<()> {
        println!("{}", serde_json::to_string(&row)?);
        Ok(())
    };
    few::measure(&options, &place, &mut raw, &mut tell).await?;
    many::measure(&options, &place, &mut raw, &mut tell).await?;
    if let Some(raw) = raw.as_deref_mut() {
        crash::measure(&options, &place, raw, &mut tell).await?;
        churn::measure(&options, &place, raw, &mut tell).await?;
        idle::measure(&options, &place, raw, &mut tell).await?;
    }
    Ok(())
}
