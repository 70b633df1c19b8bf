//! Cron jobs that fire on one node only, and at most once each time, also across a fail-over.
//!
//! The leader alone has a schedule. What makes a time fire *once* is the ledger: a time is claimed there, under the leader's
//! fencing token, before its job runs, so that neither a stale leader nor a new one fires it again. Times that passed while
//! nobody led are fired by the next leader; a time that was claimed as its leader crashed is not fired again. Where that is worse than
//! firing twice, write down beside the claim that the job is done, and repeat what is not, under an idempotency key.
//!
//! ```console
//! $ cargo run -p examples --bin scheduler -- --cron '*/5 * * * * *' --ledger sqlite:/tmp/ledger.db --store local:/tmp/cron --election cron
//! ```

mod ledger;

use std::{str::FromStr as _, sync::Arc};

use anyhow::Context as _;
use chrono::{DateTime, Utc};
use clap::Parser;
use croner::Cron;
use tenure::{BoxError, ElectorExt, LeadershipHandle};
use tokio::{
    signal::unix::{SignalKind, signal},
    sync::Mutex,
};
use tokio_cron_scheduler::{Job, JobScheduler};

use ledger::Ledger;

/// How many times that passed are fired at most, the latest of them.
const CATCH_UP: usize = 100;

/// Cron jobs that fire on one node only.
#[derive(Parser)]
struct Arguments {
    /// When the job fires: seconds, minutes, hours, day of the month, month, day of the week; in UTC
    #[arg(long, default_value = "*/5 * * * * *")]
    cron: String,
    /// Where it is written down what has fired
    #[arg(long, value_name = "URL", env = "LEDGER")]
    ledger: String,
    #[command(flatten)]
    election: tenure::Settings,
}

/// A job and its times.
struct Scheduled {
    name: &'static str,
    pattern: String,
    cron: Cron,
    ledger: Ledger,
    /// One at a time: the times fire in order.
    firing: Mutex<()>,
}

impl Scheduled {
    /// Fires what is due, and has not fired.
    async fn fire(&self, leadership: &LeadershipHandle) -> Result<(), BoxError> {
        let _firing = self.firing.lock().await;
        let now = Utc::now();
        for due in self.due(now).await? {
            leadership.ensure()?;
            // The token goes with the claim: a leader that was paused here finds that another has gone on.
            if self
                .ledger
                .claim(self.name, due, leadership.fencing_token(), leadership.candidate().as_str())
                .await?
            {
                println!(
                    "{} fired for {} under token {}",
                    self.name,
                    due.to_rfc3339(),
                    leadership.fencing_token()
                );
                // The job itself. What it writes elsewhere sends the token, too.
            }
        }
        Ok(())
    }

    /// The times up to `now` that have not fired; the first time ever, the latest only.
    async fn due(&self, now: DateTime<Utc>) -> Result<Vec<DateTime<Utc>>, BoxError> {
        let Some(last) = self.ledger.last(self.name).await? else {
            return Ok(self.cron.find_previous_occurrence(&now, true).into_iter().collect());
        };
        let mut due: Vec<_> = self.cron.iter_after(last).take_while(|time| *time <= now).collect();
        due.drain(..due.len().saturating_sub(CATCH_UP));
        Ok(due)
    }
}

/// A schedule that ends with the term, also when this is dropped before it has been told to stop.
struct Running(Option<JobScheduler>);

impl Drop for Running {
    fn drop(&mut self) {
        if let Some(mut scheduler) = self.0.take() {
            tokio::spawn(async move { drop(scheduler.shutdown().await) });
        }
    }
}

/// The leader's schedule, for one term.
async fn lead(scheduled: Arc<Scheduled>, leadership: LeadershipHandle) -> Result<(), BoxError> {
    // What passed while nobody led.
    scheduled.fire(&leadership).await?;
    let scheduler = Running(Some(JobScheduler::new().await?));
    let pattern = scheduled.pattern.clone();
    let own = leadership.clone();
    let job = Job::new_async(pattern.as_str(), move |_, _| {
        let (scheduled, leadership) = (Arc::clone(&scheduled), own.clone());
        Box::pin(async move {
            // Under the leadership: it is told to stop and awaited, though the scheduler has spawned it.
            match leadership.run(scheduled.fire(&leadership)).await {
                Ok(Ok(())) => {}
                Ok(Err(error)) => eprintln!("{}: {error}", scheduled.name),
                Err(lost) => eprintln!("{}: {lost}", scheduled.name),
            }
        })
    })?;
    if let Some(schedule) = &scheduler.0 {
        schedule.add(job).await?;
        schedule.start().await?;
    }
    leadership.lost().await;
    Ok(())
}

#[tokio::main]
async fn main() -> anyhow::Result<()> {
    tracing_subscriber::fmt().with_writer(std::io::stderr).init();
    let arguments = Arguments::parse();
    let pattern = arguments.cron;
    let cron = Cron::from_str(&pattern).with_context(|| format!("--cron {pattern:?} is no pattern"))?;
    let ledger = Ledger::open(&arguments.ledger).await.context("the ledger cannot be opened")?;
    let scheduled = Arc::new(Scheduled { name: "report", pattern, cron, ledger, firing: Mutex::new(()) });
    let mut terminate = signal(SignalKind::terminate())?;
    let shutdown = async {
        tokio::select! {
            _ = terminate.recv() => {}
            _ = tokio::signal::ctrl_c() => {}
        }
    };
    let elector = arguments.election.connect().await?;
    elector
        .run_while_leader(&arguments.election.election, shutdown, |leadership| {
            lead(Arc::clone(&scheduled), leadership)
        })
        .await?;
    elector.close().await;
    Ok(())
}
