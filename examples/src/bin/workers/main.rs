//! The leader assigns jobs to workers, and assigns them again when one dies.
//!
//! Every worker stands in the election `workers`: its candidates are the workers that live, and its leader's value is the plan,
//! which says who has which job. Each job has an election too, and whoever the plan names campaigns in it: so a job
//! never runs twice at a time, however old the plan is that somebody goes by.
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

/// How often the leader looks at the workers.
const LOOK: Duration = Duration::from_millis(250);

/// A worker among others.
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

/// The leader's part: keeps the plan up to date.
async fn assign(
    elector: Arc<dyn Elector>,
    jobs: usize,
    leadership: LeadershipHandle,
) -> Result<(), BoxError> {
    let stop = leadership.cancellation_token();
    let mut told = None;
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
        if told.as_ref() != Some(&plan) {
            leadership.set_value(serde_json::to_vec(&plan)?).await?;
            println!("plan {plan} under token {}", leadership.fencing_token());
            told = Some(plan);
        }
        if stop.run_until_cancelled(tokio::time::sleep(LOOK)).await.is_none() {
            return Ok(());
        }
    }
}

/// A job, for as long as it is ours.
async fn work(job: usize, leadership: LeadershipHandle) -> Result<(), BoxError> {
    let (candidate, token) = (leadership.candidate(), leadership.fencing_token());
    println!("job {job} begins on {candidate}, token {token}");
    let stop = leadership.cancellation_token();
    while stop.run_until_cancelled(tokio::time::sleep(Duration::from_millis(100))).await.is_some() {
        leadership.ensure()?;
        // The work; every write of it sends the token.
    }
    println!("job {job} ends on {candidate}");
    Ok(())
}

/// The worker's part: does what the plan says.
async fn follow(
    elector: Arc<dyn Elector>,
    election: String,
    stop: CancellationToken,
) -> Result<(), BoxError> {
    // Whatever ends this, the process ends, and its jobs are assigned anew.
    let _stop = stop.clone().drop_guard();
    let own = elector.candidate().to_string();
    let mut leaders = elector.observe(&election);
    let mut running: HashMap<usize, CancellationToken> = HashMap::new();
    let mut tasks = JoinSet::new();
    // While nobody leads, the last plan stands.
    loop {
        let leader = tokio::select! {
            () = stop.cancelled() => break,
            // Also when a job has panicked.
            Some(ended) = tasks.join_next() => {
                ended??;
                continue;
            }
            leader = leaders.next() => match leader {
                Some(leader) => leader,
                None => break,
            },
        };
        let Some(plan) = leader?.and_then(|leader| Plan::read(&leader.value)) else { continue };
        running.retain(|job, mine| {
            let stays = plan.worker(*job) == Some(&own);
            if !stays {
                mine.cancel();
            }
            stays
        });
        for job in plan.jobs_of(&own) {
            running.entry(job).or_insert_with(|| {
                let (elector, mine) = (Arc::clone(&elector), stop.child_token());
                let election = job_election(&election, job);
                let over = mine.clone().cancelled_owned();
                tasks.spawn(async move {
                    elector.run_while_leader(&election, over, |leadership| work(job, leadership)).await
                });
                mine
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
    let signalled = stop.clone();
    tokio::spawn(async move {
        tokio::select! {
            _ = terminate.recv() => {}
            _ = tokio::signal::ctrl_c() => {}
        }
        signalled.cancel();
    });
    let following = follow(Arc::clone(&elector), election.clone(), stop.clone());
    let leading = elector.run_while_leader(&election, stop.clone().cancelled_owned(), |leadership| {
        assign(Arc::clone(&elector), arguments.jobs, leadership)
    });
    let (followed, led) = tokio::join!(following, leading);
    elector.close().await;
    followed.map_err(anyhow::Error::from_boxed)?;
    Ok(led?)
}
