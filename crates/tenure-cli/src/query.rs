//! `tenure leader`, `candidates` and `observe`.

use std::{convert::Infallible, time::Duration};

use anyhow::Result;
use futures::StreamExt as _;
use tenure::{Config, Elector};
use tokio::time::{Instant, sleep, timeout};

use crate::{
    args::Query,
    exit, messages,
    output::{leader_line, print_candidates, print_line},
    signals,
    store::Store,
    waiting,
};

/// How often `observe` asks whether the store still answers, and how long it waits for that.
const PROBE_INTERVAL: Duration = Duration::from_secs(2);
const PROBE_TIMEOUT: Duration = Duration::from_secs(2);

/// Prints the leader.
pub(crate) async fn leader(options: &Query) -> Result<u8> {
    let store = Store::new(options.store.url.as_deref())?;
    let elector = store.connect(Config::new()).await?;
    let what = format!("reading the leader of {}", options.store.election);
    let request = elector.leader(&options.store.election);
    let leader = waiting::answer(&*elector, &store, &what, options.limit(), request).await?;
    let Some(leader) = leader else {
        messages::inform(&format!("nobody leads {} in {}", options.store.election, store.name));
        return Ok(exit::NO_LEADER);
    };
    print_candidates(options, &[leader])
}

/// Prints all candidates, in queue order.
pub(crate) async fn candidates(options: &Query) -> Result<u8> {
    let store = Store::new(options.store.url.as_deref())?;
    let elector = store.connect(Config::new()).await?;
    let what = format!("reading the candidates for {}", options.store.election);
    let request = elector.candidates(&options.store.election);
    let candidates = waiting::answer(&*elector, &store, &what, options.limit(), request).await?;
    print_candidates(options, &candidates)
}

/// Prints the leader, now and at every change.
pub(crate) async fn observe(options: &Query) -> Result<u8> {
    let mut signals = signals::subscribe()?;
    let store = Store::new(options.store.url.as_deref())?;
    let elector = store.connect(Config::new()).await?;
    let what = format!("reading the leader of {}", options.store.election);
    let mut leaders = elector.observe(&options.store.election);
    let observing = async {
        let first = async { leaders.next().await.transpose() };
        let mut next = waiting::answer(&*elector, &store, &what, options.limit(), first).await?;
        let printing = async {
            while let Some(leader) = next {
                print_line(&leader_line(options, leader.as_ref())?)?;
                next = leaders.next().await.transpose()?;
            }
            anyhow::Ok(0)
        };
        tokio::select! {
            code = printing => code,
            never = report_outages(&*elector, &store, &options.store.election) => match never {},
        }
    };
    tokio::select! {
        code = observing => code,
        signal = signals::termination(&mut signals) => Ok(exit::from_signal(signal.number)),
    }
}

/// Says, once a value was printed, when the store stops answering, and when it answers again. A watch on a frozen store is only silent.
async fn report_outages(elector: &dyn Elector, store: &Store, election: &str) -> Infallible {
    let mut outage: Option<Instant> = None;
    loop {
        sleep(PROBE_INTERVAL).await;
        let began = Instant::now();
        match (timeout(PROBE_TIMEOUT, elector.leader(election)).await, outage) {
            (Ok(Ok(_)), Some(since)) => {
                let lasted = humantime::format_duration(Duration::from_secs(since.elapsed().as_secs()));
                messages::inform(&format!("{} answers again after {lasted}", store.name));
                outage = None;
            }
            (Ok(Err(_)) | Err(_), None) => {
                outage = Some(began);
                let error = waiting::last_error(elector).map(|error| format!(": {error}"));
                messages::print(&format!(
                    "{} does not answer{}; what was printed last may be outdated; {}",
                    store.name,
                    error.unwrap_or_default(),
                    waiting::ADVICE
                ));
            }
            _ => {}
        }
    }
}
