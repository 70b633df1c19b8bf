//! Redis and Valkey servers are started and administered; a replica is promoted.

use tenure_containers::{ContainerError, RedisCluster, RedisServer, RedisSettings, SharedRedis, Version};

#[tokio::test]
async fn a_server_recovers_from_faults() -> Result<(), ContainerError> {
    for version in Version::REDIS {
        let shared = SharedRedis::get(version).await?;
        let field = if version == Version::Redis70 { "redis_version" } else { "valkey_version" };
        let number = shared.admin().info(field).await?;
        assert!(version.to_string().ends_with(&number[..3]), "{number}");

        let settings = RedisSettings::default().set("appendonly", "yes");
        let server = RedisServer::start_with(version, &settings).await?;
        let (admin, endpoint) = (server.admin(), server.endpoint());
        admin.run(&["SET", "kept", "1"]).await?;
        for kill in [true, false] {
            let run = admin.info("run_id").await?;
            let fault = if kill { server.kill().await? } else { server.stop().await? };
            assert!(admin.health().await.is_err());
            fault.heal().await?;
            assert_eq!(admin.run(&["GET", "kept"]).await?, ["1"]);
            assert_ne!(admin.info("run_id").await?, run);
        }
        let frozen = server.pause().await?;
        assert!(admin.health().await.is_err());
        frozen.heal().await?;
        server.wipe().await?;
        assert_eq!(server.endpoint(), endpoint);
        assert!(admin.run(&["GET", "kept"]).await?.is_empty());
        assert!(matches!(admin.run(&["NONSENSE"]).await, Err(ContainerError::Refused { .. })));
    }
    Ok(())
}

#[tokio::test]
async fn a_replica_is_promoted() -> Result<(), ContainerError> {
    for version in Version::REDIS {
        let cluster = RedisCluster::start(version).await?;
        let [primary, replica] = [0, 1].map(|index| cluster.member(index).admin());
        primary.run(&["SET", "kept", "1"]).await?;
        cluster.wait_for_replica().await?;
        let refused = replica.run(&["SET", "kept", "2"]).await.unwrap_err().to_string();
        assert!(refused.to_lowercase().contains("read only"), "{refused}");
        cluster.promote(1).await?;
        replica.run(&["SET", "kept", "2"]).await?;
        assert_eq!(primary.run(&["GET", "kept"]).await?, ["1"], "both are primaries");
    }
    Ok(())
}
