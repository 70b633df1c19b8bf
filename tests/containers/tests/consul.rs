//! Consul servers are started and administered; faults are injected and healed.

use tenure_containers::{
    ConsulCluster, ConsulServer, ConsulSettings, ContainerError, Direction, FaultKind, SharedConsul, Version,
};

type Outcome = Result<(), ContainerError>;

const VERSION: Version = Version::Consul18;

#[tokio::test]
async fn keys_and_tokens_are_administered() -> Outcome {
    let server = ConsulServer::start_with(VERSION, &ConsulSettings::default().acl()).await?;
    let admin = server.admin().with_token(ConsulSettings::MANAGEMENT_TOKEN);
    let token = admin.create_token("key_prefix \"a/\" { policy = \"write\" }").await?;
    let owner = server.admin().with_token(token.secret.as_str());
    owner.put("a/1", "one").await?;
    let refused = owner.put("b", "").await.unwrap_err();
    assert!(refused.to_string().contains("Permission denied"), "{refused}");
    assert!(server.admin().get("a/1").await.is_err(), "there is no anonymous access");
    assert_eq!(owner.get("a/1").await?.as_deref(), Some("one"));
    assert_eq!(admin.keys("a/").await?, ["a/1"]);
    admin.delete_prefix("a/").await?;
    assert_eq!(owner.get("a/1").await?, None);
    admin.delete_token(&token).await?;
    let refused = owner.get("a/1").await.unwrap_err();
    assert!(refused.to_string().contains("ACL not found"), "{refused}");
    Ok(())
}

#[tokio::test]
async fn a_server_keeps_its_data_unless_it_is_wiped_and_restores_a_snapshot() -> Outcome {
    let server = ConsulServer::start(VERSION).await?;
    let admin = server.admin();
    admin.put("kept", "1").await?;
    server.kill().await?.heal().await?;
    assert_eq!(admin.get("kept").await?.as_deref(), Some("1"));
    let snapshot = admin.save_snapshot().await?;
    admin.put("kept", "2").await?;
    admin.restore_snapshot(snapshot).await?;
    assert_eq!(admin.get("kept").await?.as_deref(), Some("1"));
    server.wipe().await?;
    assert_eq!(admin.get("kept").await?, None);
    Ok(())
}

#[tokio::test]
async fn a_shared_server_is_found() -> Outcome {
    let server = SharedConsul::get(VERSION).await?;
    let key = format!("test-{:016x}", fastrand::u64(..));
    server.admin().put(&key, "1").await?;
    assert_eq!(server.admin().get(&key).await?.as_deref(), Some("1"));
    server.admin().delete_prefix(&key).await
}

#[tokio::test]
async fn consul_members_recover_from_every_fault() -> Outcome {
    let cluster = ConsulCluster::start_with_fault_injection(VERSION, &ConsulSettings::default()).await?;
    for kind in [
        FaultKind::Kill,
        FaultKind::Freeze,
        FaultKind::PartitionFromPeers(Direction::Both),
        FaultKind::PartitionFromAll(Direction::Outbound),
    ] {
        let leader = cluster.leader().await?;
        let fault = cluster.inject(leader, kind).await?;
        let successor = cluster.successor_of(leader).await?;
        cluster.member(successor).admin().put("written", format!("{kind:?}")).await?;
        fault.heal().await?;
        let found = cluster.member(leader).admin().get("written").await?;
        assert_eq!(found, Some(format!("{kind:?}")));
    }
    for kind in [
        FaultKind::FillDisk,
        FaultKind::StallDisk,
        FaultKind::PartitionFromPeers(Direction::Inbound),
        FaultKind::LosePackets { percent: 20 },
    ] {
        let leader = cluster.leader().await?;
        cluster.inject(leader, kind).await?.heal().await?;
        let leader = cluster.leader().await?;
        cluster.member(leader).admin().put("healed", "").await?;
    }
    Ok(())
}
