//! An operator promotes a PostgreSQL replica and leaves the primary running, so that there are two: each has a leader, and the
//! resource that both write to refuses the one of the former primary.

use anyhow::Result;
use tenure::Leadership;
use tenure_containers::{PostgresCluster, Replication, Version};
use tokio::time::{Duration, sleep, timeout};

use super::{
    Outcome,
    context::{STEP_TIMEOUT, TrialContext},
};
use crate::{message::Message, options::TrialOptions, postgres};

const TTL: Duration = Duration::from_secs(5);
/// How often each leader writes to the resource.
const WRITES: u32 = 20;
const WRITE_INTERVAL: Duration = Duration::from_millis(50);

pub(super) async fn run(options: &TrialOptions) -> Result<Outcome> {
    let cluster = PostgresCluster::start(Version::Postgres17, Replication::Asynchronous).await?;
    let mut outcome = Outcome::default();
    let context = TrialContext::new(&outcome.history, TTL);
    while outcome.trials < options.trials {
        let former = cluster.primary().await?;
        let promoted = 1 - former;
        let election = format!("e{}", outcome.trials);
        let [old_side, new_side] =
            [former, promoted].map(|member| postgres::url(&cluster.endpoints()[member]));
        let elector = context.connect(&old_side).await?;
        let (leadership, term) = context.lead(&*elector, &election).await?;
        cluster.wait_for_replica(former).await?;
        cluster.promote(promoted).await?;

        // It has to wait for the former leader's session, which stands still here, and leads beside it.
        let next = context.connect(&new_side).await?;
        let (newer, newer_term) = context.lead(&*next, &election).await?;
        for _ in 0..WRITES {
            write(&context, &newer);
            write(&context, &leadership);
            sleep(WRITE_INTERVAL).await;
        }
        context.record_end(&leadership, &term);
        leadership.resign().await.ok();
        // The former primary goes on: another term there has a token of its own, which the resource refuses as well.
        let (later, later_term) = context.lead(&*elector, &election).await?;
        write(&context, &newer);
        write(&context, &later);
        context.record_end(&later, &later_term);
        context.record_end(&newer, &newer_term);

        cluster.rejoin(former).await?;
        drop((later, newer));
        for elector in [elector, next] {
            let _ = timeout(STEP_TIMEOUT, elector.close()).await;
        }
        outcome.trials += 1;
    }
    Ok(outcome)
}

/// Writes to the resource if the leader may.
fn write(context: &TrialContext, leadership: &Leadership) {
    if leadership.ensure().is_ok() {
        let (election, token) = (leadership.election().to_string(), leadership.fencing_token().get());
        context.history.record(0, Message::Write { election, token });
    }
}
