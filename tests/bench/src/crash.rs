//! How long nobody leads after a crash, beyond the TTL: the store's part of that, and ours.

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result};
use futures::future::try_join_all;
use tenure::{Config, Elector, Error, Leadership};
use tokio::runtime::Builder;

use crate::{
    Options,
    few::Place,
    raw::Raw,
    row::{Row, Samples},
};

/// The least that both stores grant as it was asked for, with ZooKeeper's usual tick of 2 s.
const TTL: Duration = Duration::from_secs(4);
/// Within which crashes are spread, so that they meet the store's clock at any time.
const SPREAD: Duration = Duration::from_secs(4);
/// What may be added to the store's own time: that of etcd's loop, or of ZooKeeper's tick.
const ADDED: Duration = Duration::from_millis(20);

pub(crate) async fn measure(
    options: &Options,
    place: &Place,
    raw: &mut dyn Raw,
    tell: &mut (impl FnMut(Row) -> Result<()> + Send),
) -> Result<()> {
    let name = "crash: nobody leads beyond the TTL of 4 s";
    if !options.wants(name) {
        return Ok(());
    }
    let rounds = options.rounds(60);
    let waits = place.elector().await?;
    let crashes = try_join_all((0..rounds).map(|n| crash(place, &waits, n)));
    let (ours, floor) = tokio::try_join!(crashes, raw.expire(TTL, SPREAD, rounds))?;
    waits.close().await;
    let samples = |times: Vec<Duration>| {
        let mut samples = Samples::default();
        times.into_iter().for_each(|time| samples.add(time.saturating_sub(TTL)));
        samples
    };
    let (ours, floor) = (samples(ours), samples(floor));
    let mut row = Row::beside((&place.scheme, name), &ours, ("the same of a raw session", &floor), 1.0);
    let (own, what) = match place.scheme.as_str() {
        "etcd" => (Duration::from_millis(500), "0.5 s, after which etcd looks for expired leases,"),
        _ => (Duration::from_secs(2), "a tick of 2 s"),
    };
    row.target = format!("p99 at most {what} and 20 ms");
    row.met = row.p99_us <= (own + ADDED).as_secs_f64() * 1e6;
    tell(row)
}

/// A leader's process stops, seen from the store: nothing is heard of it any more. From when its session was asked for
/// to when another leads.
async fn crash(place: &Place, waits: &Arc<dyn Elector>, n: usize) -> Result<Duration> {
    let election = format!("crash-{n}-{:x}", fastrand::u32(..));
    tokio::time::sleep(SPREAD.mul_f64(fastrand::f64())).await;
    let runtime = Builder::new_multi_thread().worker_threads(1).enable_all().build()?;
    let victim: tokio::task::JoinHandle<Result<(Instant, Leadership), Error>> = runtime.spawn({
        let (election, url) = (election.clone(), place.url().to_owned());
        async move {
            let elector = tenure::connect_with(&url, Config::new().with_ttl(TTL)).await?;
            let begun = Instant::now();
            let leadership = elector.campaign(&election).await?;
            Ok((begun, leadership))
        }
    });
    let (begun, leadership) = victim.await.context("the victim panicked")??;
    let next = {
        let (waits, election) = (Arc::clone(waits), election.clone());
        tokio::spawn(async move { waits.campaign(&election).await.map(|led| (led, Instant::now())) })
    };
    while waits.candidates(&election).await?.len() < 2 {
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    runtime.shutdown_background();
    let (led, at) = next.await.context("a campaign panicked")??;
    drop(leadership);
    led.resign().await?;
    Ok(at - begun)
}
