//! One election at a time: campaigns and hand-overs.

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
    Options,
    raw::Raw,
    row::{Row, Samples},
};

/// A time within which everything has become quiet.
const QUIET: Duration = Duration::from_millis(150);
/// What a candidate has waited for when leadership comes at once.
const SOON: Duration = Duration::from_millis(15);

/// Where elections are held, below a name of this run.
pub(crate) struct Place {
    pub(crate) scheme: String,
    url: String,
}

impl Place {
    pub(crate) fn new(scheme: &str, store: &str) -> Self {
        let url = match scheme {
            "etcd" | "zookeeper" => format!("{}/bench-{:x}", store.trim_end_matches('/'), fastrand::u64(..)),
            _ => store.to_owned(),
        };
        Self { scheme: scheme.to_owned(), url }
    }

    pub(crate) fn url(&self) -> &str {
        &self.url
    }

    pub(crate) async fn elector(&self) -> Result<Arc<dyn Elector>> {
        self.elector_with(Config::new().with_ttl(Duration::from_secs(30))).await
    }

    pub(crate) async fn elector_with(&self, config: Config) -> Result<Arc<dyn Elector>> {
        Ok(tenure::connect_with(&self.url, config).await?)
    }
}

pub(crate) async fn measure(
    options: &Options,
    place: &Place,
    raw: &mut Option<Box<dyn Raw>>,
    tell: &mut (impl FnMut(Row) -> Result<()> + Send),
) -> Result<()> {
    let rounds = options.rounds(300);
    for (quiet, rounds, name) in [
        (None, rounds, "campaign, session held"),
        (Some(QUIET), options.rounds(100), "campaign, session held, after quiet"),
    ] {
        if options.wants(name) {
            tell(held(place, raw, quiet, rounds, name).await?)?;
        }
    }
    if options.wants("campaign from nothing") {
        tell(from_nothing(place, raw, rounds).await?)?;
    }
    for (candidates, quiet, name) in [
        (2, QUIET, "hand-over, 2 candidates"),
        (2, SOON, "hand-over, 2 candidates, soon"),
        (50, QUIET, "hand-over, 50 candidates"),
    ] {
        if options.wants(name) {
            tell(hand_over(place, raw, candidates, quiet, options.rounds(100), name).await?)?;
        }
    }
    Ok(())
}

fn row(place: &Place, name: &str, ours: &Samples, floor: (&'static str, &Samples), ratio: f64) -> Row {
    match floor.1.len() {
        0 => Row {
            floor_p50_us: None,
            floor_p99_us: None,
            ratio_p50: None,
            ratio_p99: None,
            target: "none".to_owned(),
            met: true,
            ..Row::beside((&place.scheme, name), ours, ("none", ours), ratio)
        },
        _ => Row::beside((&place.scheme, name), ours, floor, ratio),
    }
}

async fn held(
    place: &Place,
    raw: &mut Option<Box<dyn Raw>>,
    quiet: Option<Duration>,
    rounds: usize,
    name: &str,
) -> Result<Row> {
    let elector = place.elector().await?;
    let (mut ours, mut floor) = (Samples::default(), Samples::default());
    // A session is there, and everything is warm.
    elector.campaign("warm").await?.resign().await?;
    for round in 0..rounds {
        if let Some(raw) = raw.as_mut() {
            tokio::time::sleep(quiet.unwrap_or_default()).await;
            floor.add(raw.enter().await?);
        }
        tokio::time::sleep(quiet.unwrap_or_default()).await;
        // On ZooKeeper the znode of an election is there while it is in use.
        let election = format!("held-{}", if place.scheme == "zookeeper" { 0 } else { round });
        let begun = Instant::now();
        let leadership = elector.campaign(&election).await?;
        ours.add(begun.elapsed());
        leadership.resign().await?;
    }
    elector.close().await;
    let what = raw.as_ref().map_or("none", |raw| raw.entering().0);
    Ok(row(place, name, &ours, (what, &floor), 1.15))
}

async fn from_nothing(place: &Place, raw: &mut Option<Box<dyn Raw>>, rounds: usize) -> Result<Row> {
    let (mut ours, mut floor) = (Samples::default(), Samples::default());
    let keeps = place.elector().await?;
    let _warm = keeps.campaign("nothing-warm").await?;
    for _ in 0..rounds {
        if let Some(raw) = raw.as_mut() {
            floor.add(raw.enter_from_nothing().await?);
        }
        let begun = Instant::now();
        let elector = place.elector().await?;
        let leadership = elector.campaign("nothing").await?;
        ours.add(begun.elapsed());
        leadership.resign().await?;
        elector.close().await;
    }
    let what = raw.as_ref().map_or("none", |raw| raw.entering().1);
    Ok(row(place, "campaign from nothing", &ours, (what, &floor), 1.2))
}

/// A candidate, and when it came to lead.
type Waiting = (Arc<dyn Elector>, JoinHandle<Result<(Leadership, Instant), tenure::Error>>);

fn stand(elector: Arc<dyn Elector>, election: &str) -> Waiting {
    let (standing, election) = (Arc::clone(&elector), election.to_owned());
    (
        elector,
        tokio::spawn(async move { standing.campaign(&election).await.map(|led| (led, Instant::now())) }),
    )
}

async fn hand_over(
    place: &Place,
    raw: &mut Option<Box<dyn Raw>>,
    candidates: usize,
    quiet: Duration,
    rounds: usize,
    name: &str,
) -> Result<Row> {
    let election = format!("over-{:x}", fastrand::u32(..));
    let (mut ours, mut floor) = (Samples::default(), Samples::default());
    let looks = place.elector().await?;
    let mut queue: VecDeque<Waiting> = VecDeque::new();
    for _ in 0..candidates {
        queue.push_back(stand(place.elector().await?, &election));
        until_entered(&*looks, &election, queue.len()).await?;
    }
    let (mut elector, leading) = queue.pop_front().context("there are candidates")?;
    let mut leads = leading.await??.0;
    let mut resigned = None;
    for _ in 0..rounds {
        if let Some(raw) = raw.as_mut() {
            floor.add(raw.hand_over(quiet).await?);
        }
        // The last to resign stands again, as the last.
        queue.extend(resigned.take().map(|elector| stand(elector, &election)));
        until_entered(&*looks, &election, candidates).await?;
        tokio::time::sleep(quiet).await;
        let (next, leading) = queue.pop_front().context("there are candidates")?;
        let begun = Instant::now();
        let (given_back, led) = tokio::join!(leads.resign(), leading);
        given_back?;
        let (next_leads, at) = led??;
        ours.add(at - begun);
        resigned = Some(std::mem::replace(&mut elector, next));
        leads = next_leads;
    }
    queue.iter().for_each(|(_, waiting)| waiting.abort());
    // A guard that is held, in a task that has ended say, would be waited for.
    let electors: Vec<_> =
        queue.into_iter().map(|(elector, _)| elector).chain(resigned).chain([elector, looks]).collect();
    leads.resign().await?;
    join_all(electors.iter().map(|elector| elector.close())).await;
    Ok(row(place, name, &ours, ("delete, then the watch's event, after the same quiet", &floor), 1.2))
}

async fn until_entered(elector: &dyn Elector, election: &str, count: usize) -> Result<()> {
    while elector.candidates(election).await?.len() < count {
        tokio::time::sleep(Duration::from_millis(2)).await;
    }
    Ok(())
}
