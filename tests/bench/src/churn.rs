//! What a departure costs the store, in short queues and in long ones: no herd.

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

use crate::{Options, few::Place, raw::Raw, row::Row};

const ELECTIONS: usize = 200;
const FEW: usize = 5;
const MANY: usize = 50;
/// Long, so that heartbeats are few.
const TTL: Duration = Duration::from_secs(30);
const MOMENT: Duration = Duration::from_millis(20);
/// How long the store is left alone, so that what follows a departure is over.
const QUIET: Duration = Duration::from_secs(5);

pub(crate) async fn measure(
    options: &Options,
    place: &Place,
    raw: &mut dyn Raw,
    tell: &mut (impl FnMut(Row) -> Result<()> + Send),
) -> Result<()> {
    let name =
        format!("churn: requests for a departure and a return, {ELECTIONS} elections of {MANY} processes");
    if !options.wants(&name) {
        return Ok(());
    }
    let departures = options.rounds(1_000);
    let few = requests(place, raw, FEW, departures).await?;
    let many = requests(place, raw, MANY, departures).await?;
    let target = ("at most 1.2 times those with few (requests, not us)".to_owned(), many <= few * 1.2);
    tell(Row::value((&place.scheme, &name), many, ("the same with five processes", Some(few)), target))
}

/// How many requests a departure makes, the one's who leaves and comes back among them, when `processes` stand in each
/// election: those that as many make who stand for as long and do not leave are taken off, heartbeats and looks now and then.
async fn requests(place: &Place, raw: &mut dyn Raw, processes: usize, departures: usize) -> Result<f64> {
    let (all, took) = population(place, raw, processes, departures, Duration::ZERO).await?;
    let (others, _) = population(place, raw, processes, 0, took).await?;
    Ok((all as f64 - others as f64) / departures as f64)
}

/// How many requests `processes` make that stand in each election while so many leave and come back, for so long at least; and how long
/// that was.
async fn population(
    place: &Place,
    raw: &mut dyn Raw,
    processes: usize,
    departures: usize,
    least: Duration,
) -> Result<(u64, Duration)> {
    let name = format!("churn-{:x}", fastrand::u32(..));
    let mut electors = Vec::new();
    for _ in 0..processes {
        let elector = place.elector_with(Config::new().with_ttl(TTL)).await?;
        electors.push(elector);
    }
    let (leave, left) = (Arc::new(Semaphore::new(0)), Arc::new(AtomicUsize::new(0)));
    let mut candidates = JoinSet::new();
    for election in 0..ELECTIONS {
        for elector in &electors {
            candidates.spawn(stand(
                Arc::clone(elector),
                format!("{name}-{election}"),
                Arc::clone(&leave),
                Arc::clone(&left),
            ));
        }
    }
    for election in 0..ELECTIONS {
        let election = format!("{name}-{election}");
        while electors[0].candidates(&election).await?.len() < processes {
            tokio::time::sleep(MOMENT).await;
        }
    }
    tokio::time::sleep(QUIET).await;
    let (before, began) = (raw.requests().await?, Instant::now());
    for some in 0..departures {
        leave.add_permits(1);
        // A few at a time, as processes come and go.
        if some % 20 == 19 {
            has_reached(&left, some + 1).await;
        }
    }
    has_reached(&left, departures).await;
    tokio::time::sleep(QUIET).await;
    tokio::time::sleep(least.saturating_sub(began.elapsed())).await;
    let (all, took) = (raw.requests().await?.saturating_sub(before), began.elapsed());
    candidates.shutdown().await;
    for elector in electors {
        elector.close().await;
    }
    Ok((all, took))
}

/// Leads, leaves when it is this one's turn to, and comes back.
async fn stand(
    elector: Arc<dyn Elector>,
    election: String,
    leave: Arc<Semaphore>,
    left: Arc<AtomicUsize>,
) -> Result<()> {
    loop {
        let leadership = elector.campaign(&election).await?;
        leave.acquire().await.context("the semaphore is never closed")?.forget();
        leadership.resign().await?;
        left.fetch_add(1, Relaxed);
    }
}

async fn has_reached(left: &AtomicUsize, count: usize) {
    while left.load(Relaxed) < count {
        tokio::time::sleep(MOMENT).await;
    }
}
