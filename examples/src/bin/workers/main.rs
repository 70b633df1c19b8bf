//! The leader assigns jobs to workers, and reassigns the jobs of a worker that dies.
//!
//! Every worker is a candidate in the election `workers`, so its candidates are the live workers. The leader's value
//! is the plan: which worker has which job. There is also one election per job, and a worker campaigns in those of
//! its jobs. So a job never runs on two workers at the same time, even if one of them has an outdated plan.
//!
//! ```console
//! $ for id in a b c; do cargo run -p examples --bin workers -- --candidate $id --store local:/tmp/workers --election workers & done
//! ```

mod plan;

use std::{collections::HashMap, sync::Arc, time::Duration};

use clap::Parser;
use futures::StreamExt;
use tenure::{BoxError, Elector, ElectorExt, LeadershipHandle};
use tokio::{
    signal::unix::{SignalKind, signal},
    task::JoinSet,
};
use tokio_util::sync::CancellationToken;

use plan::Plan;

/// How often the leader updates the plan.
const PLAN_INTERVAL: Duration = Duration::from_millis(250);

/// A worker, which may also be the leader that assigns the jobs
#[derive(Parser)]
struct Arguments {
    /// How many jobs there are
    #[arg(long, default_value_t = 6)]
    jobs: usize,
    #[command(flatten)]
    election: tenure::Settings,
}

fn job_election(election: &str, job: usize) -> String {
    format!("{election}.job.{job}")
}

/// The leader's work: keeps the plan up to date.
async fn assign_jobs(
    elector: Arc<dyn Elector>,
    jobs: usize,
    leadership: LeadershipHandle,
) -> Result<(), BoxError> {
    let stop = leadership.cancellation_token();
    let mut published = None;
    loop {
        let workers: Vec<_> = elector
            .candidates(leadership.election().as_str())
            .await?
            .into_iter()
            .map(|worker| worker.id)
            .collect();
        let mut holders = Vec::with_capacity(jobs);
        for job in 0..jobs {
            let job = job_election(leadership.election().as_str(), job);
            holders.push(elector.leader(&job).await?.map(|holder| holder.id));
        }
        let plan = Plan::new(&workers, &holders);
        if published.as_ref() != Some(&plan) {
            leadership.set_value(serde_json::to_vec(&plan)?).await?;
            println!("plan {plan} under token {}", leadership.fencing_token());
            published = Some(plan);
        }
        if stop.run_until_cancelled(tokio::time::sleep(PLAN_INTERVAL)).await.is_none() {
            return Ok(());
        }
    }
}

/// Does a job while this worker leads the job's election.
async fn do_job(job: usize, leadership: LeadershipHandle) -> Result<(), BoxError> {
    let (candidate, token) = (leadership.candidate_id(), leadership.fencing_token());
    println!("job {job} begins on {candidate}, token {token}");
    let stop = leadership.cancellation_token();
    while stop.run_until_cancelled(tokio::time::sleep(Duration::from_millis(100))).await.is_some() {
        leadership.ensure()?;
        // Do the work here. Send the token with every write.
    }
    println!("job {job} ends on {candidate}");
    Ok(())
}

/// The worker's work: does the jobs that the plan assigns to it.
async fn follow_plan(
    elector: Arc<dyn Elector>,
    election: String,
    stop: CancellationToken,
) -> Result<(), BoxError> {
    // If this function returns or panics, the process stops, and the leader reassigns its jobs.
    let _stop = stop.clone().drop_guard();
    let own_id = elector.candidate_id().to_string();
    let mut leaders = elector.observe(&election);
    let mut running: HashMap<usize, CancellationToken> = HashMap::new();
    let mut tasks = JoinSet::new();
    // While there is no leader, the last plan is followed.
    loop {
        let leader = tokio::select! {
            () = stop.cancelled() => break,
            // A job's task has ended. If it failed or panicked, this worker stops.
            Some(ended) = tasks.join_next() => {
                ended??;
                continue;
            }
            leader = leaders.next() => match leader {
                Some(leader) => leader,
                None => break,
            },
        };
        let Some(plan) = leader?.and_then(|leader| Plan::from_value(&leader.value)) else { continue };
        running.retain(|job, stop_job| {
            let is_assigned = plan.worker(*job) == Some(&own_id);
            if !is_assigned {
                stop_job.cancel();
            }
            is_assigned
        });
        for job in plan.jobs_of(&own_id) {
            running.entry(job).or_insert_with(|| {
                let (elector, stop_job) = (Arc::clone(&elector), stop.child_token());
                let election = job_election(&election, job);
                let stopped = stop_job.clone().cancelled_owned();
                tasks.spawn(async move {
                    elector.run_while_leader(&election, stopped, |leadership| do_job(job, leadership)).await
                });
                stop_job
            });
        }
    }
    stop.cancel();
    while let Some(ended) = tasks.join_next().await {
        ended??;
    }
    Ok(())
}

#[tokio::main]
async fn main() -> anyhow::Result<()> {
    tracing_subscriber::fmt().with_writer(std::io::stderr).init();
    let arguments = Arguments::parse();
    let elector = arguments.election.connect().await?;
    let election = arguments.election.election;
    let stop = CancellationToken::new();
    let mut terminate = signal(SignalKind::terminate())?;
    let stop_on_signal = stop.clone();
    tokio::spawn(async move {
        tokio::select! {
            _ = terminate.recv() => {}
            _ = tokio::signal::ctrl_c() => {}
        }
        stop_on_signal.cancel();
    });
    let following = follow_plan(Arc::clone(&elector), election.clone(), stop.clone());
    let leading = elector.run_while_leader(&election, stop.clone().cancelled_owned(), |leadership| {
        assign_jobs(Arc::clone(&elector), arguments.jobs, leadership)
    });
    let (follow_result, election_result) = tokio::join!(following, leading);
    elector.close().await;
    follow_result.map_err(anyhow::Error::from_boxed)?;
    Ok(election_result?)
}
