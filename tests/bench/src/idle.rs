//! The requests of idle electors.

use std::time::Duration;

use anyhow::Result;
use tenure::Config;

use crate::{Options, raw::RawStore, row::Row, single::TestStore};

const TTL: Duration = Duration::from_secs(5);

pub(crate) async fn measure(
    options: &Options,
    store: &TestStore,
    raw: &mut dyn RawStore,
    report: &mut (impl FnMut(Row) -> Result<()> + Send),
) -> Result<()> {
    let name = "idle: requests a second of a leader and ten followers, TTL 5 s";
    if !options.is_selected(name) {
        return Ok(());
    }
    let mut electors = Vec::new();
    for _ in 0..11 {
        electors.push(store.elector_with(Config::new().with_ttl(TTL)).await?);
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
    tokio::time::sleep(TTL).await;
    let span = Duration::from_secs(if options.quick { 10 } else { 60 });
    let before = raw.requests().await?;
    tokio::time::sleep(span).await;
    let asked = raw.requests().await?.saturating_sub(before) as f64 / span.as_secs_f64();
    // A keepalive and a confirming read in each third of the TTL for each session, and a read every few seconds.
    let allowed = 11.0 * 2.0 / (TTL.as_secs_f64() / 3.0);
    let target = (format!("at most {allowed:.1} (requests a second, not us)"), asked <= allowed * 1.05);
    report(Row::value((&store.scheme, name), asked, ("Go's, without confirming reads", Some(5.5)), target))?;
    for campaign in waiting {
        campaign.abort();
    }
    first.resign().await?;
    for elector in electors {
        elector.close().await;
    }
    Ok(())
}
