//! The requests of idle electors.

use std::time::Duration;

use anyhow::Result;
use tenure::Config;

use crate::{Options, raw::RawStore, row::Row, single::TestStore};

const TTL: Duration = Duration::from_secs(5);
const LONG_TTL: Duration = Duration::from_secs(30);
pub(crate) const NAME: &str = "idle: requests a second of a leader and ten followers, TTL 5 s";
/// How many elections one session holds.
const MANY: usize = 1_000;

/// For how long requests are counted.
pub(crate) fn span(options: &Options) -> Duration {
    Duration::from_secs(if options.quick { 10 } else { 60 })
}

pub(crate) async fn measure(
    options: &Options,
    store: &TestStore,
    raw: &mut dyn RawStore,
    report: &mut (impl FnMut(Row) -> Result<()> + Send),
) -> Result<()> {
    for (ttl, name) in
        [(TTL, NAME), (LONG_TTL, "idle: requests a second of a leader and ten followers, TTL 30 s")]
    {
        if options.is_selected(name) {
            report(requests_per_second(options, store, raw, ttl, name).await?)?;
        }
    }
    let name = "idle: writes a second of a session that leads 1000 elections, TTL 5 s";
    if options.is_selected(name) && raw.writes().await?.is_some() {
        let (one, _) = of_one_session(options, store, raw, 1).await?;
        let (many, requests) = of_one_session(options, store, raw, MANY).await?;
        let target = ("as many as of one that leads one (writes, not us)".to_owned(), many <= one * 1.1);
        let label = store.label();
        report(Row::value((&label, name), many, ("of a session that leads one", Some(one)), target))?;
        let name = "idle: requests a second of a session that leads 1000 elections, TTL 5 s";
        report(Row::value((&label, name), requests, ("none", None), ("none".to_owned(), true)))?;
    }
    Ok(())
}

/// The writes and the requests a second of a session that leads so many elections.
async fn of_one_session(
    options: &Options,
    store: &TestStore,
    raw: &mut dyn RawStore,
    elections: usize,
) -> Result<(f64, f64)> {
    let elector = store.elector_with(Config::new().with_ttl(TTL)).await?;
    let led = crate::many::lead(&elector, elections).await?;
    tokio::time::sleep(TTL).await;
    let span = span(options);
    let before = (raw.writes().await?.unwrap_or_default(), raw.requests().await?);
    tokio::time::sleep(span).await;
    let after = (raw.writes().await?.unwrap_or_default(), raw.requests().await?);
    drop(led);
    elector.close().await;
    let per_second = |before: u64, after: u64| after.saturating_sub(before) as f64 / span.as_secs_f64();
    Ok((per_second(before.0, after.0), per_second(before.1, after.1)))
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
    let span = span(options);
    let before = raw.requests().await?;
    tokio::time::sleep(span).await;
    let asked = raw.requests().await?.saturating_sub(before) as f64 / span.as_secs_f64();
    let allowed = match (store.scheme.as_str(), ttl) {
        ("etcd", TTL) => Some(8.5),
        ("etcd", _) => Some(2.5),
        ("zookeeper", TTL) => Some(10.5),
        ("zookeeper", _) => Some(3.0),
        _ => None,
    };
    let target = match allowed {
        Some(allowed) => (format!("at most {allowed} (requests a second, not us)"), asked <= allowed),
        None => ("none".to_owned(), true),
    };
    let floor = match store.scheme.as_str() {
        "postgres" => ("a write of each every third of the TTL", Some(33.0 / ttl.as_secs_f64())),
        _ => ("Go's keepalives, without confirming reads", (ttl == TTL).then_some(5.5)),
    };
    let row = Row::value((&store.label(), name), asked, floor, target);
    for campaign in waiting {
        campaign.abort();
    }
    first.resign().await?;
    for elector in electors {
        elector.close().await;
    }
    Ok(row)
}
