//! etcd servers of every version are started and administered; faults are injected and healed.

use std::{collections::HashSet, process::Command, time::Duration};

use tenure_containers::{
    ContainerError, EtcdAdmin, EtcdCluster, EtcdServer, Permission, SharedEtcd, Version,
};
use tenure_testkit::proxy::{Direction, Proxy};

/// Defines one test per function and version of etcd.
macro_rules! for_every_etcd {
    ($($case:ident),* $(,)?) => {
        mod etcd_3_4 {
            $(#[tokio::test] async fn $case() { super::$case(super::Version::Etcd34).await.unwrap() })*
        }
        mod etcd_3_5 {
            $(#[tokio::test] async fn $case() { super::$case(super::Version::Etcd35).await.unwrap() })*
        }
    };
}

for_every_etcd!(
    keys_and_leases_are_administered,
    auth_is_switched_on,
    a_killed_server_comes_back_with_its_data,
    a_stopped_server_comes_back_when_its_fault_is_dropped,
    a_frozen_server_answers_again_when_healed,
    a_wiped_server_is_empty_at_the_same_endpoint,
    a_shared_server_is_found,
    a_proxy_disturbs_its_connections,
    cluster_elects_another_leader_when_its_own_is_killed,
    cluster_elects_another_leader_when_its_own_is_frozen,
    cluster_member_isolated_from_peers_still_answers_clients,
);

type Outcome = Result<(), ContainerError>;

async fn keys_and_leases_are_administered(version: Version) -> Outcome {
    let server = EtcdServer::start(version).await?;
    let admin = server.admin();
    let lease = admin.grant_lease(Duration::from_secs(60)).await?;
    admin.put("/a/2", "second").await?;
    admin.put_with_lease("/a/1", [0, 255], lease).await?;
    admin.put("/b", "").await?;

    let listed = admin.list("/a/").await?;
    assert_eq!(listed.iter().map(|found| found.key.as_str()).collect::<Vec<_>>(), ["/a/2", "/a/1"]);
    assert_eq!((listed[0].value.as_slice(), listed[0].lease), (&b"second"[..], 0));
    assert_eq!((listed[1].value.as_slice(), listed[1].lease), (&[0, 255][..], lease));
    assert!(listed[0].create_revision < listed[1].create_revision);
    assert_eq!(admin.list("").await?.len(), 3);

    assert_eq!(admin.leases().await?, [lease]);
    let found = admin.lease(lease).await?.unwrap();
    assert_eq!((found.granted, found.keys), (Duration::from_secs(60), vec!["/a/1".to_owned()]));
    admin.revoke_lease(lease).await?;
    assert_eq!(admin.lease(lease).await?, None);
    assert!(admin.revoke_lease(lease).await.is_err());
    assert_eq!(admin.get("/a/1").await?, None, "the key goes with its lease");

    assert_eq!(admin.compact().await?, admin.revision().await?);
    assert!(admin.delete("/b").await?);
    assert!(!admin.delete("/b").await?);
    assert_eq!(admin.delete_prefix("/a/").await?, 1);
    Ok(())
}

async fn auth_is_switched_on(version: Version) -> Outcome {
    let server = EtcdServer::start(version).await?;
    let anonymous = server.admin();
    anonymous.add_user("alice", "wonder", Permission::ReadWrite, "/alice/").await?;
    let root = anonymous.enable_auth("secret").await?;

    assert!(anonymous.get("/alice/x").await.is_err());
    let alice = anonymous.login("alice", "wonder").await?;
    alice.put("/alice/x", "1").await?;
    let refused = alice.put("/bob/x", "1").await.unwrap_err();
    assert!(refused.to_string().contains("permission denied"), "{refused}");
    let refused = anonymous.login("alice", "under").await.unwrap_err();
    assert!(matches!(refused, ContainerError::Refused { .. }), "{refused}");
    assert!(!format!("{root:?}{refused:?}").contains("under"));
    root.put("/bob/x", "1").await?;
    server.kill().await?.heal().await
}

async fn a_killed_server_comes_back_with_its_data(version: Version) -> Outcome {
    let server = EtcdServer::start(version).await?;
    server.admin().put("kept", "1").await?;

    let fault = server.kill().await?;
    assert!(server.admin().health().await.is_err());

    fault.heal().await?;
    assert!(server.admin().get("kept").await?.is_some());
    Ok(())
}

async fn a_stopped_server_comes_back_when_its_fault_is_dropped(version: Version) -> Outcome {
    let server = EtcdServer::start(version).await?;
    let fault = server.stop().await?;
    assert!(server.admin().health().await.is_err());
    drop(fault);
    until_healthy(server.admin()).await;
    Ok(())
}

async fn a_frozen_server_answers_again_when_healed(version: Version) -> Outcome {
    let server = EtcdServer::start(version).await?;
    let fault = server.pause().await?;
    assert!(server.admin().health().await.is_err());
    tokio::net::TcpStream::connect(server.endpoint()).await.expect("it still accepts connections");
    fault.heal().await?;
    server.admin().health().await
}

async fn a_wiped_server_is_empty_at_the_same_endpoint(version: Version) -> Outcome {
    let server = EtcdServer::start(version).await?;
    let endpoint = server.endpoint();
    server.admin().put("lost", "1").await?;
    server.wipe().await?;
    assert_eq!(server.endpoint(), endpoint);
    assert_eq!(server.admin().get("lost").await?, None);
    Ok(())
}

async fn a_shared_server_is_found(version: Version) -> Outcome {
    let shared = SharedEtcd::get(version).await?;
    assert_eq!(shared.is_dedicated(), std::env::var(version.shared_variable()).is_err());
    shared.admin().health().await
}

async fn a_proxy_disturbs_its_connections(version: Version) -> Outcome {
    let server = SharedEtcd::get(version).await?;
    let proxy = Proxy::start(server.endpoint()).await.unwrap();
    let through_proxy = EtcdAdmin::new(proxy.endpoint());
    through_proxy.health().await?;

    proxy.cut();
    assert!(through_proxy.health().await.is_err());
    proxy.heal();
    until_healthy(&through_proxy).await;
    proxy.blackhole(Direction::ToClient);
    assert!(through_proxy.health().await.is_err());
    server.admin().health().await
}

async fn cluster_elects_another_leader_when_its_own_is_killed(version: Version) -> Outcome {
    let cluster = EtcdCluster::start(version).await?;
    assert_eq!(cluster.endpoints().into_iter().collect::<HashSet<_>>().len(), 3);
    let leader = cluster.leader().await?;
    let follower = cluster.member((leader + 1) % 3);

    let fault = cluster.member(leader).kill().await?;
    cluster.successor_of(leader).await?;
    until_healthy(follower.admin()).await;
    follower.admin().put("written", "meanwhile").await?;

    fault.heal().await?;
    assert!(cluster.member(leader).admin().get("written").await?.is_some());
    Ok(())
}

async fn cluster_elects_another_leader_when_its_own_is_frozen(version: Version) -> Outcome {
    let cluster =
        EtcdCluster::start_with(version, &["--heartbeat-interval=50", "--election-timeout=500"]).await?;
    let leader = cluster.leader().await?;
    let fault = cluster.member(leader).pause().await?;
    cluster.successor_of(leader).await?;
    fault.heal().await
}

async fn cluster_member_isolated_from_peers_still_answers_clients(version: Version) -> Outcome {
    let cluster = EtcdCluster::start(version).await?;
    let leader = cluster.leader().await?;
    let fault = cluster.isolate_from_peers(leader).await?;
    cluster.successor_of(leader).await?;
    let unhealthy = cluster.member(leader).admin().health().await.unwrap_err();
    assert!(is_answer(&unhealthy), "{unhealthy}");
    fault.heal().await?;
    cluster.member(leader).admin().health().await
}

/// Whether the server was reached: it answered, or a read without a quorum timed out.
fn is_answer(error: &ContainerError) -> bool {
    match error {
        ContainerError::Refused { .. } => true,
        ContainerError::Unreachable { source, .. } => source.is_timeout(),
        _ => false,
    }
}

async fn until_healthy(admin: &EtcdAdmin) {
    while admin.health().await.is_err() {
        tokio::task::yield_now().await;
    }
}

#[tokio::test]
async fn a_server_whose_test_panicked_is_removed() {
    let outcome = tokio::spawn(async {
        let server = EtcdServer::start(Version::Etcd35).await.unwrap();
        let _fault = server.pause().await.unwrap();
        assert_eq!(list_own_resources().map(|listed| listed.is_empty()), [false, false]);
        panic!("like a failing test");
    });
    assert!(outcome.await.unwrap_err().is_panic());
    assert_eq!(list_own_resources(), ["", ""]);
}

#[test]
fn a_server_that_outlives_its_runtime_is_removed() {
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build().unwrap();
    let server = runtime.block_on(EtcdServer::start(Version::Etcd35)).unwrap();
    drop(runtime);
    drop(server);
    assert_eq!(list_own_resources(), ["", ""]);
}

#[tokio::test]
async fn a_server_is_published_on_loopback_only() {
    let server = EtcdServer::start(Version::Etcd35).await.unwrap();
    let [id, _] = list_own_resources();
    let published = Command::new("docker").args(["port", id.trim()]).output().unwrap().stdout;
    let published = String::from_utf8(published).unwrap();
    assert_eq!(published.trim(), format!("2379/tcp -> {}", server.endpoint()));
}

/// The containers and the volumes that this process has created.
fn list_own_resources() -> [String; 2] {
    let own = format!("--filter=label=tenure-test={}", std::process::id());
    [["container", "ls"], ["volume", "ls"]].map(|list| {
        let mut command = Command::new("docker");
        command.args(list).args(["--quiet", &own]);
        if list[0] == "container" {
            command.arg("--all");
        }
        String::from_utf8(command.output().unwrap().stdout).unwrap()
    })
}

#[tokio::test]
async fn a_missing_image_is_an_error_that_names_the_remedy() {
    const MISSING: &str = "tenure-test/none:0";
    let printed = output_of_failed_start(
        "a_missing_image_is_an_error_that_names_the_remedy",
        (Version::Etcd35.image_variable(), MISSING),
    )
    .await;
    for part in [MISSING, "cargo xtask images", "TENURE_TEST_IMAGE_ETCD_3_5"] {
        assert!(printed.contains(part), "{part} is not in: {printed}");
    }
}

#[tokio::test]
async fn a_missing_engine_is_an_error_that_names_the_remedy() {
    let printed = output_of_failed_start(
        "a_missing_engine_is_an_error_that_names_the_remedy",
        ("DOCKER_HOST", "unix:///no/such.sock"),
    )
    .await;
    for part in ["/no/such.sock", "cargo xtask test"] {
        assert!(printed.contains(part), "{part} is not in: {printed}");
    }
}

/// Runs `test` in a process of its own, with this environment variable, and returns what it prints. Setting the variable in
/// this process would affect other threads.
async fn output_of_failed_start(test: &str, variable: (&str, &str)) -> String {
    if std::env::var(variable.0).is_ok_and(|value| value == variable.1) {
        let error = EtcdServer::start(Version::Etcd35).await.unwrap_err();
        panic!("{error}: {:?}", std::error::Error::source(&error));
    }
    let outcome = Command::new(std::env::current_exe().unwrap())
        .args(["--exact", test, "--nocapture"])
        .env(variable.0, variable.1)
        .output()
        .unwrap();
    String::from_utf8(outcome.stderr).unwrap()
}
