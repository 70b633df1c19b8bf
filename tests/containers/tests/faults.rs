//! Every kind of fault is injected into the members of clusters, and healed.

use std::time::Duration;

use tenure_containers::{
    ContainerError, Direction, EtcdCluster, FaultKind, PostgresCluster, PostgresSettings, Replication,
    Version, ZookeeperEnsemble, ZookeeperSettings,
};
use tokio::time::timeout;

/// How long a member that may not answer is waited for.
const REQUEST_TIMEOUT: Duration = Duration::from_millis(500);

type Outcome = Result<(), ContainerError>;

/// Faults of a leader after which the cluster elects another.
const DEPOSING_FAULTS: [FaultKind; 4] = [
    FaultKind::Kill,
    FaultKind::Freeze,
    FaultKind::PartitionFromPeers(Direction::Both),
    FaultKind::PartitionFromAll(Direction::Outbound),
];
/// Faults that a leader may survive.
const SURVIVABLE_FAULTS: [FaultKind; 3] = [
    FaultKind::FillDisk,
    FaultKind::PartitionFromPeers(Direction::Inbound),
    FaultKind::LosePackets { percent: 20 },
];

#[tokio::test]
async fn cluster_members_recover_from_every_fault() -> Outcome {
    let cluster = EtcdCluster::start_with_fault_injection(Version::Etcd35, &[]).await?;
    // Only etcd's leader is deposed by a stalled disk: ZooKeeper's leads while its followers can write.
    for kind in DEPOSING_FAULTS.into_iter().chain([FaultKind::StallDisk]) {
        let leader = cluster.leader().await?;
        let fault = cluster.inject(leader, kind).await?;
        // A stalled disk has an effect only when something is written.
        let _ = timeout(REQUEST_TIMEOUT, cluster.member(leader).admin().put("unanswered", "")).await;
        let successor = cluster.successor_of(leader).await?;
        cluster.member(successor).admin().put("written", format!("{kind:?}")).await?;
        fault.heal().await?;
        let found = cluster.member(leader).admin().get("written").await?;
        assert_eq!(found.unwrap().value, format!("{kind:?}").as_bytes());
    }
    for kind in SURVIVABLE_FAULTS {
        let leader = cluster.leader().await?;
        let fault = cluster.inject(leader, kind).await?;
        fault.heal().await?;
        cluster.member(leader).admin().put("healed", "").await?;
    }
    Ok(())
}

#[tokio::test]
async fn ensemble_members_recover_from_every_fault() -> Outcome {
    let ensemble =
        ZookeeperEnsemble::start_with_fault_injection(Version::Zookeeper39, &ZookeeperSettings::default())
            .await?;
    ensemble.member(0).admin().create("/written", "").await?;
    for kind in DEPOSING_FAULTS {
        let leader = ensemble.leader().await?;
        let fault = ensemble.inject(leader, kind).await?;
        let _ = timeout(REQUEST_TIMEOUT, ensemble.member(leader).admin().set("/written", "unanswered")).await;
        let successor = ensemble.successor_of(leader).await?;
        ensemble.member(successor).admin().set("/written", format!("{kind:?}")).await?;
        fault.heal().await?;
        ensemble.leader().await?;
    }
    for kind in SURVIVABLE_FAULTS.into_iter().chain([FaultKind::StallDisk]) {
        let leader = ensemble.leader().await?;
        let fault = ensemble.inject(leader, kind).await?;
        fault.heal().await?;
        ensemble.leader().await?;
    }
    Ok(())
}

#[tokio::test]
async fn ensemble_member_without_data_copies_them_from_the_leader() -> Outcome {
    let ensemble =
        ZookeeperEnsemble::start_with_fault_injection(Version::Zookeeper39, &ZookeeperSettings::default())
            .await?;
    ensemble.member(0).admin().create("/kept", "").await?;
    for member in 0..3 {
        ensemble.resync_member(member).await?;
        assert!(ensemble.member(member).admin().get("/kept").await?.is_some());
    }
    Ok(())
}

/// Faults of a PostgreSQL primary, none of which lets it acknowledge a commit to a client.
const FAULTS_OF_A_PRIMARY: [FaultKind; 6] = [
    FaultKind::Kill,
    FaultKind::Freeze,
    FaultKind::StallDisk,
    FaultKind::PartitionFromPeers(Direction::Both),
    FaultKind::PartitionFromClients(Direction::Both),
    FaultKind::PartitionFromAll(Direction::Outbound),
];

#[tokio::test]
async fn postgres_primary_is_fenced_and_joins_again_after_every_fault() -> Outcome {
    let cluster = start_postgres().await?;
    for kind in FAULTS_OF_A_PRIMARY {
        let former = cluster.primary().await?;
        let (former_admin, successor) = (cluster.member(former).admin(), 1 - former);
        let fault = cluster.inject(former, kind).await?;
        let unanswered = timeout(REQUEST_TIMEOUT, former_admin.execute("INSERT INTO written VALUES ('no')"));
        assert!(!matches!(unanswered.await, Ok(Ok(()))), "{kind:?}");
        cluster.fence(former).await?;
        assert!(former_admin.health().await.is_err());
        cluster.promote(successor).await?;
        cluster.replicate_asynchronously(successor).await?;
        let insert = format!("INSERT INTO written VALUES ('{kind:?}')");
        cluster.member(successor).admin().execute(&insert).await?;
        fault.heal().await?;
        assert!(former_admin.is_replica().await?);
        cluster.replicate_synchronously(successor).await?;
    }
    let expected = FAULTS_OF_A_PRIMARY.map(|kind| vec![Some(format!("{kind:?}"))]);
    let replica = cluster.member(1 - cluster.primary().await?).admin();
    let found = replica.query("SELECT kind FROM written WHERE kind <> 'no' ORDER BY ctid").await?;
    assert_eq!(found, expected);
    Ok(())
}

#[tokio::test]
async fn postgres_replica_follows_again_after_every_fault() -> Outcome {
    let cluster = start_postgres().await?;
    let primary = cluster.member(0).admin();
    for kind in
        FAULTS_OF_A_PRIMARY.into_iter().filter(|kind| !matches!(kind, FaultKind::PartitionFromClients(_)))
    {
        let fault = cluster.inject(1, kind).await?;
        let unanswered = timeout(REQUEST_TIMEOUT, primary.execute("INSERT INTO written VALUES ('no')"));
        assert!(unanswered.await.is_err(), "{kind:?}");
        cluster.replicate_asynchronously(0).await?;
        primary.execute("INSERT INTO written VALUES ('yes')").await?;
        fault.heal().await?;
        cluster.replicate_synchronously(0).await?;
    }
    let replica = cluster.member(1).admin();
    assert_eq!(replica.value("SELECT count(*) FROM written WHERE kind = 'yes'").await?, "5");
    // The primary is not deposed by these.
    for kind in SURVIVABLE_FAULTS {
        cluster.inject(0, kind).await?.heal().await?;
        primary.execute("INSERT INTO written VALUES ('healed')").await?;
    }
    Ok(())
}

async fn start_postgres() -> Result<PostgresCluster, ContainerError> {
    let (version, settings) = (Version::Postgres17, PostgresSettings::default());
    let cluster =
        PostgresCluster::start_with_fault_injection(version, Replication::Synchronous, &settings).await?;
    cluster.member(0).admin().execute("CREATE TABLE written (kind text)").await?;
    Ok(cluster)
}

#[tokio::test]
async fn cluster_members_count_expired_leases() -> Outcome {
    let cluster = EtcdCluster::start(Version::Etcd35).await?;
    let leader = cluster.leader().await?;
    let lease = cluster.member(0).admin().grant_lease(Duration::from_secs(1)).await?;
    while cluster.member(leader).admin().lease(lease).await?.is_some() {}
    let mut revoked = Vec::new();
    let leader_id = cluster.member(leader).admin().lease_expiry_stats().await?.member;
    for member in 0..3 {
        let stats = cluster.member(member).admin().lease_expiry_stats().await?;
        assert_eq!(stats.leader, leader_id);
        revoked.push((member, stats.revoked));
    }
    let all: u64 = revoked.iter().map(|(_, count)| count).sum();
    assert!(all == 1 && revoked.contains(&(leader, 1)), "{leader}: {revoked:?}");
    Ok(())
}

/// The member with the full disk may end or go on; the cluster works either way.
#[tokio::test]
async fn cluster_works_while_a_member_has_a_full_disk() -> Outcome {
    let cluster = EtcdCluster::start_with_fault_injection(Version::Etcd35, &[]).await?;
    let fault = cluster.inject(0, FaultKind::FillDisk).await?;
    let leader = cluster.leader().await?;
    cluster.member(leader).admin().put("meanwhile", "").await?;
    drop(fault);
    assert!(cluster.member(leader).admin().get("meanwhile").await?.is_some());
    Ok(())
}
