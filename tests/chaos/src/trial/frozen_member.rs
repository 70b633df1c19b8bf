//! One server of three, the leader or a follower, is frozen or killed: every leadership must be kept.

use anyhow::{Result, bail};
use futures::future::try_join_all;
use tenure_containers::FaultKind;
use tokio::time::{Duration, timeout};

use super::{Outcome, context::TrialContext};
use crate::{
    cluster::{Cluster, MEMBERS},
    options::{StoreKind, TrialOptions},
};

const TTL: Duration = Duration::from_secs(5);
/// How many leaders there are, spread over the servers.
const LEADERS: usize = 6;
/// How many heartbeats have to be confirmed: more than a session lasts without any.
const HEARTBEATS: usize = 5;

pub(super) async fn run(options: &TrialOptions) -> Result<Outcome> {
    let (cluster, settings) = match options.store {
        StoreKind::Etcd => (Cluster::start(options.store).await?, ""),
        // With these settings the followers notice after a second that their leader is frozen. No session outlasts an
        // ensemble that takes longer than the session's timeout.
        StoreKind::Zookeeper => (Cluster::zookeeper(&[("syncLimit", "2")]).await?, "?tick=500ms"),
        _ => {
            bail!("trial frozen-member needs three servers: --store etcd or zookeeper")
        }
    };
    let mut outcome = Outcome::default();
    let context = TrialContext::new(&outcome.history, TTL);
    let faults = [FaultKind::Freeze, FaultKind::Kill];
    // The offset from the leader: the leader itself, and a follower.
    let roles = [0, 1];
    let all = faults.into_iter().flat_map(|fault| roles.map(|role| (fault, role))).cycle();
    for (kind, role) in all {
        // One loss shows that the disabled rule is noticed.
        let is_noticed = options.mutant && outcome.lost > 0;
        if outcome.trials >= options.trials || is_noticed {
            return Ok(outcome);
        }
        let member = (cluster.leader().await? + role) % MEMBERS;
        let mut leaders = Vec::new();
        for n in 0..LEADERS {
            let mut endpoints = cluster.endpoints();
            // Two thirds of them prefer a server other than `member`.
            endpoints.rotate_left((member + n) % MEMBERS);
            let url = cluster.url(&endpoints).await?;
            let elector = context.connect(&format!("{url}{settings}")).await?;
            let election = format!("e{}", outcome.trials + n);
            let (leadership, _) = context.lead(&*elector, &election).await?;
            leaders.push((elector, leadership));
        }
        for (_, leadership) in &leaders {
            context.wait_for_heartbeat(leadership).await?;
        }
        let fault = cluster.inject(member, kind).await?;
        let heartbeats = leaders.iter().map(|(_, leadership)| async {
            for _ in 0..HEARTBEATS {
                tokio::select! {
                    reason = leadership.lost() => return Ok(Some(reason)),
                    confirmed = context.wait_for_heartbeat(leadership) => confirmed?,
                }
            }
            anyhow::Ok(None)
        });
        let lost = try_join_all(heartbeats).await?;
        for reason in lost.iter().flatten() {
            let server = if role == 0 { "leader" } else { "follower" };
            println!("leadership lost ({reason}) after {kind:?} of the {server}");
        }
        outcome.lost += lost.iter().flatten().count();
        outcome.trials += LEADERS;
        fault.heal().await?;
        for (elector, leadership) in leaders {
            drop(leadership);
            let _ = timeout(TTL * 2, elector.close()).await;
        }
    }
    Ok(outcome)
}
