//! One election at a time: campaigns and handovers.

use std::{
    collections::VecDeque,
    sync::Arc,
    time::{Duration, Instant},
};

use anyhow::{Context, Result};
use futures::future::join_all;
use tenure::{Config, Elector, Leadership};
use tokio::task::JoinHandle;

use crate::{
    Options, polled,
    raw::RawStore,
    row::{Row, Samples},
};

/// Of all candidates.
const TTL: Duration = Duration::from_secs(30);
/// A pause after which all background activity has ended.
pub(crate) const SETTLE_TIME: Duration = Duration::from_millis(150);
/// A pause that is shorter than the background activity after a campaign.
pub(crate) const SHORT_PAUSE: Duration = Duration::from_millis(15);
/// How many handovers come first: on PostgreSQL, an elector polls until it has seen that notifications are delivered.
const WARM_UP: usize = 2;
/// A handover to a candidate that polls, at a random time between two polls.
pub(crate) const POLLING: &str = "handover, 2 candidates, by polling";

/// A pause that ends at any time between two polls. A candidate polls first when it enters: after a fixed pause, most handovers would begin
/// about equally long before its next poll.
pub(crate) fn random_quiet() -> Duration {
    Duration::from_millis(500) + Duration::from_secs(2).mul_f64(fastrand::f64())
}

/// Whether a store is one that compares and swaps, and that is measured through its adapter.
pub(crate) fn is_cas(scheme: &str) -> bool {
    matches!(scheme, "consul" | "nats" | "s3" | "mysql" | "redis")
}

/// The store under test, with a prefix for this run.
pub(crate) struct TestStore {
    pub(crate) scheme: String,
    url: String,
}

impl TestStore {
    pub(crate) fn new(scheme: &str, store: &str) -> Self {
        let url = match scheme {
            "etcd" | "zookeeper" => format!("{}/bench-{:x}", store.trim_end_matches('/'), fastrand::u64(..)),
            "postgres" => format!("{store}?schema=bench_{:x}", fastrand::u64(..)),
            "consul" | "nats" => format!("{}/bench-{:x}", store.trim_end_matches('/'), fastrand::u64(..)),
            _ => store.to_owned(),
        };
        Self { scheme: scheme.to_owned(), url }
    }

    pub(crate) fn url(&self) -> &str {
        &self.url
    }

    pub(crate) fn has_several_servers(&self) -> bool {
        self.url.contains(',')
    }

    /// How often candidates poll by default, on a store that tells nobody of a change.
    fn poll_interval(&self) -> Option<Duration> {
        match self.scheme.as_str() {
            "mysql" => Some(Duration::from_secs(1)),
            "s3" => Some(Duration::from_secs(2)),
            _ => None,
        }
    }

    /// The store in the table.
    pub(crate) fn label(&self) -> String {
        match self.has_several_servers() {
            true => format!("{}, three servers", self.scheme),
            false => self.scheme.clone(),
        }
    }

    pub(crate) async fn elector(&self) -> Result<Arc<dyn Elector>> {
        self.elector_with(Config::new().with_ttl(TTL)).await
    }

    pub(crate) async fn elector_with(&self, config: Config) -> Result<Arc<dyn Elector>> {
        Ok(tenure::connect_with(&self.url, config).await?)
    }
}

pub(crate) async fn measure(
    options: &Options,
    store: &TestStore,
    raw: &mut Option<Box<dyn RawStore>>,
    report: &mut (impl FnMut(Row) -> Result<()> + Send),
) -> Result<()> {
    let rounds = options.rounds(300);
    for (quiet, rounds, name) in [
        (None, rounds, "campaign, session held"),
        (Some(SETTLE_TIME), options.rounds(100), "campaign, session held, after quiet"),
    ] {
        if options.is_selected(name) {
            report(with_session(store, raw, quiet, rounds, name).await?)?;
        }
    }
    if options.is_selected("campaign from nothing") {
        report(from_nothing(store, raw, rounds).await?)?;
    }
    let interval = store.poll_interval();
    for (candidates, quiet, name) in [
        (2, SETTLE_TIME, "handover, 2 candidates"),
        (2, SHORT_PAUSE, "handover, 2 candidates, soon"),
        (50, SETTLE_TIME, "handover, 50 candidates"),
    ] {
        if interval.is_none() && options.is_selected(name) {
            report(handover(store, raw, candidates, quiet, options.rounds(100), name).await?)?;
        }
    }
    // PostgreSQL is also measured as it is where its notifications are not delivered.
    let polling: &[(usize, &str)] = match interval {
        Some(_) => &[(2, POLLING), (50, "handover, 50 candidates, by polling")],
        None if store.scheme == "postgres" => &[(2, POLLING)],
        None => &[],
    };
    for (candidates, name) in polling {
        if options.is_selected(name) {
            report(polled_handover(store, *candidates, options.rounds(30), name).await?)?;
        }
    }
    Ok(())
}

fn row(store: &TestStore, name: &str, ours: &Samples, floor: (&'static str, &Samples), ratio: f64) -> Row {
    let ratio = if is_cas(&store.scheme) || store.scheme == "postgres" { 1.3 } else { ratio };
    match floor.1.len() {
        0 => Row::alone((&store.label(), name), ours),
        _ => Row::against_floor((&store.label(), name), ours, floor, ratio),
    }
}

async fn with_session(
    store: &TestStore,
    raw: &mut Option<Box<dyn RawStore>>,
    quiet: Option<Duration>,
    rounds: usize,
    name: &str,
) -> Result<Row> {
    let elector = store.elector().await?;
    let (mut ours, mut floor) = (Samples::default(), Samples::default());
    // Opens the session and warms everything up.
    elector.campaign("warm").await?.resign().await?;
    for round in 0..rounds {
        if let Some(raw) = raw.as_mut() {
            tokio::time::sleep(quiet.unwrap_or_default()).await;
            floor.add(raw.enter().await?);
        }
        tokio::time::sleep(quiet.unwrap_or_default()).await;
        // What an election leaves in these stores is reused.
        let is_reused = is_cas(&store.scheme) || matches!(store.scheme.as_str(), "zookeeper" | "postgres");
        let election = format!("held-{}", if is_reused { 0 } else { round });
        let begun = Instant::now();
        let leadership = elector.campaign(&election).await?;
        ours.add(begun.elapsed());
        leadership.resign().await?;
    }
    elector.close().await;
    let what = raw.as_ref().map_or("none", |raw| raw.entering().0);
    Ok(row(store, name, &ours, (what, &floor), 1.15))
}

async fn from_nothing(store: &TestStore, raw: &mut Option<Box<dyn RawStore>>, rounds: usize) -> Result<Row> {
    let (mut ours, mut floor) = (Samples::default(), Samples::default());
    let keeps_warm = store.elector().await?;
    let _warm = keeps_warm.campaign("nothing-warm").await?;
    for _ in 0..rounds {
        if let Some(raw) = raw.as_mut() {
            floor.add(raw.enter_from_nothing().await?);
        }
        let begun = Instant::now();
        let elector = store.elector().await?;
        let leadership = elector.campaign("nothing").await?;
        ours.add(begun.elapsed());
        leadership.resign().await?;
        elector.close().await;
    }
    let what = raw.as_ref().map_or("none", |raw| raw.entering().1);
    Ok(row(store, "campaign from nothing", &ours, (what, &floor), 1.2))
}

/// A candidate, and the time at which it leads.
type WaitingCandidate = (Arc<dyn Elector>, JoinHandle<Result<(Leadership, Instant), tenure::Error>>);

fn campaign_loop(elector: Arc<dyn Elector>, election: &str) -> WaitingCandidate {
    let (standing, election) = (Arc::clone(&elector), election.to_owned());
    (
        elector,
        tokio::spawn(async move { standing.campaign(&election).await.map(|led| (led, Instant::now())) }),
    )
}

async fn handover(
    store: &TestStore,
    raw: &mut Option<Box<dyn RawStore>>,
    candidates: usize,
    quiet: Duration,
    rounds: usize,
    name: &str,
) -> Result<Row> {
    let mut electors = Vec::new();
    for _ in 0..=candidates {
        electors.push(store.elector().await?);
    }
    let (ours, floor) = handovers(electors, raw, || quiet, rounds).await?;
    Ok(row(store, name, &ours, ("delete, then the watch's event, after the same quiet", &floor), 1.2))
}

/// Handovers at random times to candidates that poll.
async fn polled_handover(store: &TestStore, candidates: usize, rounds: usize, name: &str) -> Result<Row> {
    let interval = store.poll_interval();
    let mut electors = Vec::new();
    for _ in 0..=candidates {
        electors.push(match interval {
            Some(_) => store.elector().await?,
            None => polled::elector(&store.url, Config::new().with_ttl(TTL))?,
        });
    }
    let (ours, _) = handovers(electors, &mut None, random_quiet, rounds).await?;
    let row = Row::alone((&store.label(), name), &ours);
    // Half of it is expected. Of thirty handovers the median is seldom that much later.
    let limit = interval.unwrap_or(Duration::from_secs(1)).mul_f64(0.8);
    let met = row.p50_us <= limit.as_secs_f64() * 1e6;
    let target = format!("p50 at most {:.1} s, 0.8 of the poll interval", limit.as_secs_f64());
    Ok(Row { target, met, ..row })
}

/// The times of handovers among all electors but the last, and of the raw ones between them.
async fn handovers(
    mut electors: Vec<Arc<dyn Elector>>,
    raw: &mut Option<Box<dyn RawStore>>,
    quiet: impl Fn() -> Duration,
    rounds: usize,
) -> Result<(Samples, Samples)> {
    let election = format!("over-{:x}", fastrand::u32(..));
    let (mut ours, mut floor) = (Samples::default(), Samples::default());
    let observer = electors.pop().context("there is an observer")?;
    let candidates = electors.len();
    let mut queue: VecDeque<WaitingCandidate> = VecDeque::new();
    for elector in electors {
        queue.push_back(campaign_loop(elector, &election));
        wait_until_entered(&*observer, &election, queue.len()).await?;
    }
    let (mut elector, leading) = queue.pop_front().context("there are candidates")?;
    let mut leads = leading.await??.0;
    let mut resigned = None;
    for round in 0..WARM_UP + rounds {
        if let Some(raw) = raw.as_mut() {
            let took = raw.handover(quiet()).await?;
            floor.add_if(round >= WARM_UP, took);
        }
        // The candidate that resigned last enters again, at the end of the queue.
        queue.extend(resigned.take().map(|elector| campaign_loop(elector, &election)));
        wait_until_entered(&*observer, &election, candidates).await?;
        tokio::time::sleep(quiet()).await;
        let (next, leading) = queue.pop_front().context("there are candidates")?;
        let begun = Instant::now();
        let (given_back, led) = tokio::join!(leads.resign(), leading);
        given_back?;
        let (next_leads, at) = led??;
        ours.add_if(round >= WARM_UP, at - begun);
        resigned = Some(std::mem::replace(&mut elector, next));
        leads = next_leads;
    }
    queue.iter().for_each(|(_, waiting)| waiting.abort());
    // `close` waits for guards that still exist, even in finished tasks.
    let electors: Vec<_> =
        queue.into_iter().map(|(elector, _)| elector).chain(resigned).chain([elector, observer]).collect();
    leads.resign().await?;
    join_all(electors.iter().map(|elector| elector.close())).await;
    Ok((ours, floor))
}

async fn wait_until_entered(elector: &dyn Elector, election: &str, count: usize) -> Result<()> {
    while elector.candidates(election).await?.len() < count {
        tokio::time::sleep(Duration::from_millis(2)).await;
    }
    Ok(())
}
