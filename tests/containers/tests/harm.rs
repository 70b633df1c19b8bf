//! What can be done to the members of breakable clusters is done to them, and undone.

use std::time::Duration;

use tenure_containers::{
    ContainerError, EtcdCluster, Harm, Version, Way, ZookeeperEnsemble, ZookeeperSettings,
};
use tokio::time::timeout;

const MOMENT: Duration = Duration::from_millis(500);

type Outcome = Result<(), ContainerError>;

/// Each of these keeps a leader from its followers.
const DEPOSE: [Harm; 4] = [Harm::Kill, Harm::Freeze, Harm::CutPeers(Way::Both), Harm::Cut(Way::Out)];
/// These it may survive.
const HINDER: [Harm; 3] = [Harm::FillDisk, Harm::CutPeers(Way::In), Harm::LosePackets(20)];

#[tokio::test]
async fn cluster_members_are_harmed_and_healed() -> Outcome {
    let cluster = EtcdCluster::breakable(Version::Etcd35, &[]).await?;
    // ZooKeeper's leader leads on while its followers write.
    for harm in DEPOSE.into_iter().chain([Harm::StallDisk]) {
        let leader = cluster.leader().await?;
        let fault = cluster.harm(leader, harm).await?;
        // A stalled disk shows when something is to be written.
        let _ = timeout(MOMENT, cluster.member(leader).admin().put("unheard", "")).await;
        let successor = cluster.successor_of(leader).await?;
        cluster.member(successor).admin().put("harmed", format!("{harm:?}")).await?;
        fault.heal().await?;
        let found = cluster.member(leader).admin().get("harmed").await?;
        assert_eq!(found.unwrap().value, format!("{harm:?}").as_bytes());
    }
    for harm in HINDER {
        let leader = cluster.leader().await?;
        let fault = cluster.harm(leader, harm).await?;
        fault.heal().await?;
        cluster.member(leader).admin().put("healed", "").await?;
    }
    Ok(())
}

#[tokio::test]
async fn ensemble_members_are_harmed_and_healed() -> Outcome {
    let ensemble = ZookeeperEnsemble::breakable(Version::Zookeeper39, &ZookeeperSettings::default()).await?;
    ensemble.member(0).admin().create("/harmed", "").await?;
    for harm in DEPOSE {
        let leader = ensemble.leader().await?;
        let fault = ensemble.harm(leader, harm).await?;
        let _ = timeout(MOMENT, ensemble.member(leader).admin().set("/harmed", "unheard")).await;
        let successor = ensemble.successor_of(leader).await?;
        ensemble.member(successor).admin().set("/harmed", format!("{harm:?}")).await?;
        fault.heal().await?;
        ensemble.leader().await?;
    }
    for harm in HINDER.into_iter().chain([Harm::StallDisk]) {
        let leader = ensemble.leader().await?;
        let fault = ensemble.harm(leader, harm).await?;
        fault.heal().await?;
        ensemble.leader().await?;
    }
    Ok(())
}

#[tokio::test]
async fn ensemble_member_whose_data_are_taken_away_has_them_anew() -> Outcome {
    let ensemble = ZookeeperEnsemble::breakable(Version::Zookeeper39, &ZookeeperSettings::default()).await?;
    ensemble.member(0).admin().create("/kept", "").await?;
    for member in 0..3 {
        ensemble.renew(member).await?;
        assert!(ensemble.member(member).admin().get("/kept").await?.is_some());
    }
    Ok(())
}

#[tokio::test]
async fn cluster_members_count_the_leases_that_ran_out() -> Outcome {
    let cluster = EtcdCluster::start(Version::Etcd35).await?;
    let leader = cluster.leader().await?;
    let lease = cluster.member(0).admin().grant_lease(Duration::from_secs(1)).await?;
    while cluster.member(leader).admin().lease(lease).await?.is_some() {}
    let mut revoked = Vec::new();
    let led_by = cluster.member(leader).admin().expiries().await?.member;
    for member in 0..3 {
        let expiries = cluster.member(member).admin().expiries().await?;
        assert_eq!(expiries.leader, led_by);
        revoked.push((member, expiries.revoked));
    }
    let all: u64 = revoked.iter().map(|(_, count)| count).sum();
    assert!(all == 1 && revoked.contains(&(leader, 1)), "{leader}: {revoked:?}");
    Ok(())
}

/// A full disk is full: what the server does by that is its own affair.
#[tokio::test]
async fn cluster_member_with_a_full_disk_is_not_the_end_of_the_cluster() -> Outcome {
    let cluster = EtcdCluster::breakable(Version::Etcd35, &[]).await?;
    let fault = cluster.harm(0, Harm::FillDisk).await?;
    let leader = cluster.leader().await?;
    cluster.member(leader).admin().put("meanwhile", "").await?;
    drop(fault);
    assert!(cluster.member(leader).admin().get("meanwhile").await?.is_some());
    Ok(())
}
