//! One server of three is frozen or killed, its leader or a follower: every leadership is kept.

use anyhow::Result;
use futures::future::try_join_all;
use tenure_containers::Harm;
use tokio::time::{Duration, timeout};

use super::{Outcome, duel::Stand};
use crate::{
    options::{StoreKind, TrialOptions},
    rig::cluster::{Cluster, MEMBERS},
};

const TTL: Duration = Duration::from_secs(5);
/// How many lead, spread over the servers.
const BESIDE: usize = 6;
/// Long past what the sessions would have lasted without a heartbeat.
const RENEWALS: usize = 5;

pub(super) async fn run(options: &TrialOptions) -> Result<Outcome> {
    let (cluster, settings) = match options.store {
        StoreKind::Etcd => (Cluster::start(options.store).await?, ""),
        // Its followers notice after a second that their leader is frozen. No session outlasts an ensemble that
        // takes longer than the session's timeout for that.
        StoreKind::Zookeeper => (Cluster::zookeeper(&[("syncLimit", "2")]).await?, "?tick=500ms"),
    };
    let mut outcome = Outcome::default();
    let stand = Stand::new(&outcome.record, TTL);
    let harms = [Harm::Freeze, Harm::Kill];
    let roles = [0, 1];
    let all = harms.into_iter().flat_map(|harm| roles.map(|role| (harm, role))).cycle();
    for (harm, role) in all {
        if outcome.trials >= options.trials {
            return Ok(outcome);
        }
        let member = (cluster.leader().await? + role) % MEMBERS;
        let mut kept = Vec::new();
        for n in 0..BESIDE {
            let mut endpoints = cluster.endpoints();
            // Of two thirds of them, the server that they ask first is another one.
            endpoints.rotate_left((member + n) % MEMBERS);
            let elector = stand.connect(&format!("{}{settings}", cluster.url(&endpoints))).await?;
            let election = format!("e{}", outcome.trials + n);
            let (leadership, _) = stand.lead(&*elector, &election).await?;
            kept.push((elector, leadership));
        }
        for (_, leadership) in &kept {
            stand.renewed(leadership).await?;
        }
        let fault = cluster.harm(member, harm).await?;
        let renewals = kept.iter().map(|(_, leadership)| async {
            for _ in 0..RENEWALS {
                tokio::select! {
                    reason = leadership.lost() => return Ok(Some(reason)),
                    renewed = stand.renewed(leadership) => renewed?,
                }
            }
            anyhow::Ok(None)
        });
        let lost = try_join_all(renewals).await?;
        for reason in lost.iter().flatten() {
            println!("{harm:?} of the {}: lost by {reason}", if role == 0 { "leader" } else { "follower" });
        }
        outcome.lost += lost.iter().flatten().count();
        outcome.trials += BESIDE;
        fault.heal().await?;
        for (elector, leadership) in kept {
            drop(leadership);
            let _ = timeout(TTL * 2, elector.close()).await;
        }
    }
    Ok(outcome)
}
