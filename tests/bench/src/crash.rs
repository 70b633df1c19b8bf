//! The time without a leader after a crash, beyond the TTL: the store's part and tenure's.

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
    raw::RawStore,
    row::{Row, Samples},
    single::TestStore,
};

/// The shortest TTL that both stores grant unchanged, with ZooKeeper's default tick of 2 s.
const TTL: Duration = Duration::from_secs(4);
/// Crashes are spread over this time, so that they are independent of the store's ticks.
const SPREAD: Duration = Duration::from_secs(4);
/// The allowance on top of the store's own interval, which is etcd's expiry loop or ZooKeeper's tick.
const ADDED: Duration = Duration::from_millis(20);

pub(crate) async fn measure(
    options: &Options,
    store: &TestStore,
    raw: &mut dyn RawStore,
    report: &mut (impl FnMut(Row) -> Result<()> + Send),
) -> Result<()> {
    let name = "crash: nobody leads beyond the TTL of 4 s";
    if !options.is_selected(name) {
        return Ok(());
    }
    let rounds = options.rounds(60);
    let successor = store.elector().await?;
    let crashes = try_join_all((0..rounds).map(|n| crash(store, &successor, n)));
    let (ours, floor) = tokio::try_join!(crashes, raw.expire(TTL, SPREAD, rounds))?;
    successor.close().await;
    let samples = |times: Vec<Duration>| {
        let mut samples = Samples::default();
        times.into_iter().for_each(|time| samples.add(time.saturating_sub(TTL)));
        samples
    };
    let (ours, floor) = (samples(ours), samples(floor));
    let mut row =
        Row::against_floor((&store.scheme, name), &ours, ("the same of a raw session", &floor), 1.0);
    let (own, what) = match store.scheme.as_str() {
        "etcd" => (Duration::from_millis(500), "0.5 s, after which etcd looks for expired leases,"),
        _ => (Duration::from_secs(2), "a tick of 2 s"),
    };
    row.target = format!("p99 at most {what} and 20 ms");
    row.met = row.p99_us <= (own + ADDED).as_secs_f64() * 1e6;
    report(row)
}

/// Stops a leader without closing its session. Returns the time from the request for its session until another candidate leads.
async fn crash(store: &TestStore, successor: &Arc<dyn Elector>, n: usize) -> Result<Duration> {
    let election = format!("crash-{n}-{:x}", fastrand::u32(..));
    tokio::time::sleep(SPREAD.mul_f64(fastrand::f64())).await;
    let runtime = Builder::new_multi_thread().worker_threads(1).enable_all().build()?;
    let victim: tokio::task::JoinHandle<Result<(Instant, Leadership), Error>> = runtime.spawn({
        let (election, url) = (election.clone(), store.url().to_owned());
        async move {
            let elector = tenure::connect_with(&url, Config::new().with_ttl(TTL)).await?;
            let begun = Instant::now();
            let leadership = elector.campaign(&election).await?;
            Ok((begun, leadership))
        }
    });
    let (begun, leadership) = victim.await.context("the victim panicked")??;
    let next = {
        let (successor, election) = (Arc::clone(successor), election.clone());
        tokio::spawn(async move { successor.campaign(&election).await.map(|led| (led, Instant::now())) })
    };
    while successor.candidates(&election).await?.len() < 2 {
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    runtime.shutdown_background();
    let (led, at) = next.await.context("a campaign panicked")??;
    drop(leadership);
    led.resign().await?;
    Ok(at - begun)
}
