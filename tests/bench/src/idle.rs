//! The requests of idle electors.

use std::time::Duration;

use anyhow::Result;
use tenure::Config;

use crate::{Options, raw::RawStore, row::Row, single::TestStore};

const TTL: Duration = Duration::from_secs(5);
const LONG_TTL: Duration = Duration::from_secs(30);

pub(crate) async fn measure(
    options: &Options,
    store: &TestStore,
    raw: &mut dyn RawStore,
    report: &mut (impl FnMut(Row) -> Result<()> + Send),
) -> Result<()> {
    for (ttl, name) in [
        (TTL, "idle: requests a second of a leader and ten followers, TTL 5 s"),
        (LONG_TTL, "idle: requests a second of a leader and ten followers, TTL 30 s"),
    ] {
        if options.is_selected(name) {
            report(requests_per_second(options, store, raw, ttl, name).await?)?;
        }
    }
    Ok(())
}

async fn requests_per_second(
    options: &Options,
    store: &TestStore,
    raw: &mut dyn RawStore,
    ttl: Duration,
    name: &str,
) -> Result<Row> {
    let mut electors = Vec::new();
    for _ in 0..11 {
        electors.push(store.elector_with(Config::new().with_ttl(ttl)).await?);
    }
    let first = electors[0].campaign("idle").await?;
    let waiting: Vec<_> = electors[1..]
        .iter()
        .map(|elector| {
            let elector = elector.clone();
            tokio::spawn(async move { elector.campaign("idle").await })
        })
        .collect();
    while electors[0].candidates("idle").await?.len() < 11 {
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    tokio::time::sleep(ttl).await;
    let span = Duration::from_secs(if options.quick { 10 } else { 60 });
    let before = raw.requests().await?;
    tokio::time::sleep(span).await;
    let asked = raw.requests().await?.saturating_sub(before) as f64 / span.as_secs_f64();
    let allowed = match (store.scheme.as_str(), ttl) {
        ("etcd", TTL) => 8.5,
        ("etcd", _) => 2.5,
        (_, TTL) => 10.5,
        _ => 3.0,
    };
    let target = (format!("at most {allowed} (requests a second, not us)"), asked <= allowed);
    // Go's keepalives, without confirming reads.
    let floor = (ttl == TTL).then_some(5.5);
    let row = Row::value((&store.label(), name), asked, ("Go's, without confirming reads", floor), target);
    for campaign in waiting {
        campaign.abort();
    }
    first.resign().await?;
    for elector in electors {
        elector.close().await;
    }
    Ok(row)
}
