//! The time without a leader after a crash, beyond the TTL: the store's part and tenure's.

use std::{
    process::Stdio,
    sync::Arc,
    time::{Duration, SystemTime},
};

use anyhow::{Context as _, Result};
use futures::future::try_join_all;
use tenure::{Config, Elector};
use tokio::{
    io::{AsyncBufReadExt as _, BufReader},
    process::Command,
};

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
    let mut row = match floor.len() {
        0 => Row::alone((&store.scheme, name), &ours),
        _ => Row::against_floor((&store.scheme, name), &ours, ("the same of a raw session", &floor), 1.0),
    };
    let (own, what) = match store.scheme.as_str() {
        "etcd" => (Duration::from_millis(500), "0.5 s, after which etcd looks for expired leases,"),
        // Which both are of the recipe.
        "postgres" => (TTL.mul_f64(0.25 + 0.1), "the look every quarter of the TTL, the drift bound"),
        _ => (Duration::from_secs(2), "a tick of 2 s"),
    };
    row.target = format!("p99 at most {what} and 20 ms");
    row.met = row.p99_us <= (own + ADDED).as_secs_f64() * 1e6;
    report(row)
}

/// Kills a leader's process. Returns the time from the request for its session until another candidate leads.
async fn crash(store: &TestStore, successor: &Arc<dyn Elector>, n: usize) -> Result<Duration> {
    let election = format!("crash-{n}-{:x}", fastrand::u32(..));
    tokio::time::sleep(SPREAD.mul_f64(fastrand::f64())).await;
    let mut victim = Command::new(std::env::current_exe()?)
        .args(["--store", store.url(), "--crash", &election])
        .stdout(Stdio::piped())
        .kill_on_drop(true)
        .spawn()?;
    let mut lines = BufReader::new(victim.stdout.take().context("its output is piped")?).lines();
    let begun = lines.next_line().await?.context("the victim has ended")?;
    let begun = SystemTime::UNIX_EPOCH + Duration::from_nanos(begun.parse()?);
    let next = {
        let (successor, election) = (Arc::clone(successor), election.clone());
        tokio::spawn(async move { successor.campaign(&election).await.map(|led| (led, SystemTime::now())) })
    };
    while successor.candidates(&election).await?.len() < 2 {
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    victim.kill().await?;
    let (led, at) = next.await.context("a campaign panicked")??;
    led.resign().await?;
    Ok(at.duration_since(begun)?)
}

/// Leads until this process is killed. Prints when it asked for its session, in nanoseconds of the time of day, once it leads.
pub(crate) async fn lead_until_killed(url: &str, election: &str) -> Result<()> {
    let elector = tenure::connect_with(url, Config::new().with_ttl(TTL)).await?;
    let begun = SystemTime::now();
    let leadership = elector.campaign(election).await?;
    println!("{}", begun.duration_since(SystemTime::UNIX_EPOCH)?.as_nanos());
    leadership.lost().await;
    Ok(())
}
