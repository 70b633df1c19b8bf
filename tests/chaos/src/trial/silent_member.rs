//! A server goes on answering its clients, and speaks for nobody but itself: etcd's leader whose disk stalls, and
//! ZooKeeper's follower that is cut off from its peers.

use anyhow::Result;
use futures::future::try_join_all;
use tenure_containers::{Harm, Version, Way};
use tokio::time::{Duration, sleep};

use super::{
    Outcome,
    duel::{Duel, Stand},
};
use crate::{
    options::{StoreKind, TrialOptions},
    rig::cluster::{Cluster, MEMBERS},
};

/// How many elections have a leader that speaks to the silent server.
const BESIDE: usize = 5;

pub(super) async fn run(options: &TrialOptions) -> Result<Outcome> {
    // As the two leaders were measured: etcd 3.4 (on 3.5.16 the broken rule did not show), and ZooKeeper's usual tick.
    let (cluster, ttl, harm) = match options.store {
        StoreKind::Etcd => (Cluster::etcd(Version::Etcd34).await?, Duration::from_secs(5), Harm::StallDisk),
        StoreKind::Zookeeper => {
            let cluster = Cluster::zookeeper(&[("tickTime", "2000")]).await?;
            (cluster, Duration::from_secs(6), Harm::CutPeers(Way::Both))
        }
    };
    let mut outcome = Outcome::default();
    let stand = Stand::new(&outcome.record, ttl);
    while outcome.trials < options.trials {
        let leader = cluster.leader().await?;
        let silent = match options.store {
            StoreKind::Etcd => leader,
            StoreKind::Zookeeper => (leader + 1) % MEMBERS,
        };
        let (mut others, to_silent) = (cluster.endpoints(), cluster.endpoints().remove(silent));
        others.remove(silent);
        let (first, second) = (cluster.url(&[to_silent]), cluster.url(&others));
        let names = (0..BESIDE).map(|n| format!("e{}", outcome.trials + n));
        let begun = names.map(|election| {
            let (stand, first, second) = (&stand, &first, &second);
            async move { Duel::begin(stand, &election, first, second).await }
        });
        let duels = try_join_all(begun).await?;
        // At any moment between two heartbeats.
        sleep((ttl / 3).mul_f64(fastrand::f64())).await;
        let fault = cluster.harm(silent, harm).await?;
        let writing = keep_writing(&stand, &second);
        let gaps = tokio::select! {
            gaps = try_join_all(duels.into_iter().map(|duel| duel.end(|| ()))) => gaps?,
            failed = writing => failed?,
        };
        fault.heal().await?;
        outcome.trials += gaps.len();
        outcome.gaps.extend(gaps.into_iter().flatten());
    }
    Ok(outcome)
}

/// Somebody else uses the store: a disk's stall shows when something is to be written.
async fn keep_writing<T>(stand: &Stand, url: &str) -> Result<T> {
    let elector = stand.connect(url).await?;
    loop {
        elector.campaign("elsewhere").await?.resign().await.ok();
        sleep(Duration::from_millis(50)).await;
    }
}
