//! The requests of a resignation and a new campaign, in short and in long queues: shows that there is no herd effect.

use std::{
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering::Relaxed},
    },
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result};
use tenure::{Config, Elector};
use tokio::{sync::Semaphore, task::JoinSet};

use crate::{Options, raw::RawStore, row::Row, single::TestStore};

const ELECTIONS: usize = 200;
const SMALL_QUEUE: usize = 5;
const LARGE_QUEUE: usize = 50;
/// Long, so that there are few heartbeats.
const TTL: Duration = Duration::from_secs(30);
const POLL_INTERVAL: Duration = Duration::from_millis(20);
/// The pause before and after, in which all requests of a resignation end.
const SETTLE_TIME: Duration = Duration::from_secs(5);

pub(crate) async fn measure(
    options: &Options,
    store: &TestStore,
    raw: &mut dyn RawStore,
    report: &mut (impl FnMut(Row) -> Result<()> + Send),
) -> Result<()> {
    let name = format!(
        "churn: requests for a departure and a return, {ELECTIONS} elections of {LARGE_QUEUE} processes"
    );
    if !options.is_selected(&name) {
        return Ok(());
    }
    let departures = options.rounds(1_000);
    let few = requests(store, raw, SMALL_QUEUE, departures).await?;
    let many = requests(store, raw, LARGE_QUEUE, departures).await?;
    let target = ("at most 1.2 times those with few (requests, not us)".to_owned(), many <= few * 1.2);
    report(Row::value((&store.scheme, &name), many, ("the same with five processes", Some(few)), target))
}

/// The requests per resignation and new campaign, of all `processes` in an election. The requests of an equal time without resignations
/// (heartbeats and periodic reads) are subtracted.
async fn requests(
    store: &TestStore,
    raw: &mut dyn RawStore,
    processes: usize,
    departures: usize,
) -> Result<f64> {
    let (all, took) = population(store, raw, processes, departures, Duration::ZERO).await?;
    let (others, _) = population(store, raw, processes, 0, took).await?;
    Ok((all as f64 - others as f64) / departures as f64)
}

/// The number of requests while `departures` leaders resign and campaign again, and the time that it took, which is at least `min_time`.
async fn population(
    store: &TestStore,
    raw: &mut dyn RawStore,
    processes: usize,
    departures: usize,
    min_time: Duration,
) -> Result<(u64, Duration)> {
    let name = format!("churn-{:x}", fastrand::u32(..));
    let mut electors = Vec::new();
    for _ in 0..processes {
        let elector = store.elector_with(Config::new().with_ttl(TTL)).await?;
        electors.push(elector);
    }
    let (resign_permits, resigned_count) = (Arc::new(Semaphore::new(0)), Arc::new(AtomicUsize::new(0)));
    let mut candidates = JoinSet::new();
    for election in 0..ELECTIONS {
        for elector in &electors {
            candidates.spawn(campaign_loop(
                Arc::clone(elector),
                format!("{name}-{election}"),
                Arc::clone(&resign_permits),
                Arc::clone(&resigned_count),
            ));
        }
    }
    for election in 0..ELECTIONS {
        let election = format!("{name}-{election}");
        while electors[0].candidates(&election).await?.len() < processes {
            tokio::time::sleep(POLL_INTERVAL).await;
        }
    }
    tokio::time::sleep(SETTLE_TIME).await;
    let (before, began) = (raw.requests().await?, Instant::now());
    for some in 0..departures {
        resign_permits.add_permits(1);
        // Twenty at a time.
        if some % 20 == 19 {
            has_reached(&resigned_count, some + 1).await;
        }
    }
    has_reached(&resigned_count, departures).await;
    tokio::time::sleep(SETTLE_TIME).await;
    tokio::time::sleep(min_time.saturating_sub(began.elapsed())).await;
    let (all, took) = (raw.requests().await?.saturating_sub(before), began.elapsed());
    candidates.shutdown().await;
    for elector in electors {
        elector.close().await;
    }
    Ok((all, took))
}

/// Campaigns, resigns when there is a permit, and campaigns again.
async fn campaign_loop(
    elector: Arc<dyn Elector>,
    election: String,
    resign_permits: Arc<Semaphore>,
    resigned_count: Arc<AtomicUsize>,
) -> Result<()> {
    loop {
        let leadership = elector.campaign(&election).await?;
        resign_permits.acquire().await.context("the semaphore is never closed")?.forget();
        leadership.resign().await?;
        resigned_count.fetch_add(1, Relaxed);
    }
}

async fn has_reached(resigned_count: &AtomicUsize, count: usize) {
    while resigned_count.load(Relaxed) < count {
        tokio::time::sleep(POLL_INTERVAL).await;
    }
}
