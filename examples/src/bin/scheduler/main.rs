//! Cron jobs that fire on one node only, and at most once for each time, also after a takeover.
//!
//! Only the leader has a schedule. The ledger makes a time fire *once*: the leader claims a time there, with its
//! fencing token, before the job runs. So neither a stale leader nor a new one fires it again. The next leader fires
//! the times that were missed while there was no leader. A time whose leader crashed after claiming it is not fired
//! again. If that is worse than firing twice, also record that the job is done, and repeat jobs that are not, with an
//! idempotency key.
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

/// How many missed times are fired at most. Older ones are skipped.
const MAX_MISSED_TIMES: usize = 100;

/// Cron jobs that fire on one node only
#[derive(Parser)]
struct Arguments {
    /// When the job fires: seconds, minutes, hours, day of the month, month, day of the week; in UTC
    #[arg(long, default_value = "*/5 * * * * *")]
    cron: String,
    /// The SQLite database that records which times have fired
    #[arg(long, value_name = "URL", env = "LEDGER")]
    ledger: String,
    #[command(flatten)]
    election: tenure::Settings,
}

/// A job, its schedule and its ledger.
struct CronJob {
    name: &'static str,
    pattern: String,
    cron: Cron,
    ledger: Ledger,
    /// Held while firing, so that the times fire in order.
    fire_lock: Mutex<()>,
}

impl CronJob {
    /// Fires the job for every time that is due.
    async fn fire_due(&self, leadership: &LeadershipHandle) -> Result<(), BoxError> {
        let _guard = self.fire_lock.lock().await;
        let now = Utc::now();
        for time in self.due_times(now).await? {
            leadership.ensure()?;
            // The claim carries the token: if this process was paused here and there is a newer leader, the claim
            // fails.
            if self
                .ledger
                .claim(self.name, time, leadership.fencing_token(), leadership.candidate_id().as_str())
                .await?
            {
                println!(
                    "{} fired for {} under token {}",
                    self.name,
                    time.to_rfc3339(),
                    leadership.fencing_token()
                );
                // Do the job here. Send the token with every write.
            }
        }
        Ok(())
    }

    /// The times up to `now` that have not fired. If the job has never fired, only the latest one.
    async fn due_times(&self, now: DateTime<Utc>) -> Result<Vec<DateTime<Utc>>, BoxError> {
        let Some(last) = self.ledger.last_fired(self.name).await? else {
            return Ok(self.cron.find_previous_occurrence(&now, true).into_iter().collect());
        };
        let mut due: Vec<_> = self.cron.iter_after(last).take_while(|time| *time <= now).collect();
        due.drain(..due.len().saturating_sub(MAX_MISSED_TIMES));
        Ok(due)
    }
}

/// Shuts the scheduler down when it is dropped, that is at the end of the term.
struct SchedulerGuard(Option<JobScheduler>);

impl Drop for SchedulerGuard {
    fn drop(&mut self) {
        if let Some(mut scheduler) = self.0.take() {
            tokio::spawn(async move { drop(scheduler.shutdown().await) });
        }
    }
}

/// Runs the schedule for one term.
async fn run_schedule(cron_job: Arc<CronJob>, leadership: LeadershipHandle) -> Result<(), BoxError> {
    // The times that were missed while there was no leader.
    cron_job.fire_due(&leadership).await?;
    let scheduler = SchedulerGuard(Some(JobScheduler::new().await?));
    let pattern = cron_job.pattern.clone();
    let handle = leadership.clone();
    let job = Job::new_async(pattern.as_str(), move |_, _| {
        let (cron_job, leadership) = (Arc::clone(&cron_job), handle.clone());
        Box::pin(async move {
            // The scheduler spawns this task. `run` makes the leadership cancel it and wait for it all the same.
            match leadership.run(cron_job.fire_due(&leadership)).await {
                Ok(Ok(())) => {}
                Ok(Err(error)) => eprintln!("{}: {error}", cron_job.name),
                Err(lost) => eprintln!("{}: {lost}", cron_job.name),
            }
        })
    })?;
    if let Some(scheduler) = &scheduler.0 {
        scheduler.add(job).await?;
        scheduler.start().await?;
    }
    leadership.lost().await;
    Ok(())
}

#[tokio::main]
async fn main() -> anyhow::Result<()> {
    tracing_subscriber::fmt().with_writer(std::io::stderr).init();
    let arguments = Arguments::parse();
    let pattern = arguments.cron;
    let cron =
        Cron::from_str(&pattern).with_context(|| format!("--cron {pattern:?} is not a cron pattern"))?;
    let ledger = Ledger::open(&arguments.ledger).await.context("cannot open the ledger")?;
    let cron_job = Arc::new(CronJob { name: "report", pattern, cron, ledger, fire_lock: Mutex::new(()) });
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
            run_schedule(Arc::clone(&cron_job), leadership)
        })
        .await?;
    elector.close().await;
    Ok(())
}
