//! API servers are started and administered; two over one etcd fail and recover; a candidate of client-go leads.

use std::time::Duration;

use serde_json::json;
use tenure_containers::{
    ContainerError, Direction, FaultKind, GoCandidate, GoCandidateSettings, GoEvent, KubernetesAdmin,
    KubernetesCluster, KubernetesServer, KubernetesSettings, SharedKubernetes, Version,
};

const VERSION: Version = Version::Kubernetes120;

type Outcome = Result<(), ContainerError>;

fn new_namespace() -> String {
    format!("test-{:08x}", fastrand::u32(..))
}

async fn holder(admin: &KubernetesAdmin, namespace: &str) -> Result<String, ContainerError> {
    let lease = admin.lease(namespace, "e").await?;
    Ok(lease.map_or_else(String::new, |lease| lease["spec"]["holderIdentity"].as_str().unwrap().to_owned()))
}

fn refusal<T: std::fmt::Debug>(outcome: Result<T, ContainerError>) -> String {
    outcome.unwrap_err().to_string()
}

#[tokio::test]
async fn a_shared_server_has_a_namespace_for_each_test() -> Outcome {
    let shared = SharedKubernetes::get(VERSION).await?;
    assert_eq!(shared.is_dedicated(), std::env::var(VERSION.shared_variable()).is_err());
    let (admin, own) = (shared.admin(), new_namespace());
    admin.create_namespace(&own).await?;
    assert!(refusal(admin.create_namespace(&own).await).contains("409 AlreadyExists"));
    admin.create_lease(&own, "e", &json!({ "holderIdentity": "a", "leaseDurationSeconds": 15 })).await?;
    admin.patch_lease(&own, "e", &json!({ "spec": { "holderIdentity": "b" } })).await?;
    let lease = admin.lease(&own, "e").await?.unwrap();
    assert_eq!(
        (&lease["spec"]["holderIdentity"], &lease["spec"]["leaseDurationSeconds"]),
        (&json!("b"), &json!(15))
    );
    assert!(lease["metadata"]["resourceVersion"].as_str().unwrap().parse::<u64>().is_ok());
    admin.delete_lease(&own, "e").await?;
    assert_eq!(admin.lease(&own, "e").await?, None);
    assert!(refusal(admin.delete_lease(&own, "e").await).contains("404 NotFound"));

    // A namespace can be created again at once, and is empty then.
    admin.create_lease(&own, "e", &json!({})).await?;
    admin.delete_namespace(&own).await?;
    assert!(refusal(admin.create_lease(&own, "f", &json!({})).await).contains("404 NotFound"));
    admin.create_namespace(&own).await?;
    assert!(admin.leases(&own).await?.is_empty());
    admin.delete_namespace(&own).await
}

#[tokio::test]
async fn users_and_service_accounts_may_do_what_roles_allow() -> Outcome {
    let shared = SharedKubernetes::get(VERSION).await?;
    let (admin, own) = (shared.admin(), new_namespace());
    admin.create_namespace(&own).await?;
    admin.create_service_account(&own, "billing").await?;
    let token = admin.request_token(&own, "billing", Duration::from_secs(600)).await?;
    let account = format!("system:serviceaccount:{own}:billing");
    for (user, token) in [("alice", "alice-token"), (&account, &token)] {
        let client = admin.with_token(token);
        assert!(refusal(client.leases(&own).await).contains("403 Forbidden"));
        admin.allow(&own, user, &["list"]).await?;
        client.leases(&own).await?;
        assert!(refusal(client.create_lease(&own, "e", &json!({})).await).contains("403 Forbidden"));
        admin.allow(&own, user, &["create"]).await?;
        client.create_lease(&own, user.split(':').next().unwrap(), &json!({})).await?;
        assert!(refusal(client.leases(&own).await).contains("403 Forbidden"));
    }
    assert!(refusal(admin.with_token("wrong").leases(&own).await).contains("401 Unauthorized"));
    admin.delete_namespace(&own).await
}

#[tokio::test]
async fn a_server_recovers_from_faults() -> Outcome {
    let server =
        KubernetesServer::start_with(VERSION, &KubernetesSettings::default().flag("--goaway-chance=0.01"))
            .await?;
    let (admin, own) = (server.admin(), new_namespace());
    admin.create_namespace(&own).await?;
    let authority = admin.authority().await?;
    assert!(authority.starts_with("-----BEGIN CERTIFICATE-----"));
    for kill in [true, false] {
        let fault = if kill { server.kill().await? } else { server.pause().await? };
        assert!(admin.health().await.is_err());
        fault.heal().await?;
        assert!(admin.leases(&own).await?.is_empty());
    }
    assert_eq!(admin.authority().await?, authority);
    let namespaces = server.kubectl(&["get", "namespaces", "--output=name"]).await?;
    assert!(namespaces.contains(&own), "{namespaces}");
    let failed = refusal(server.kubectl(&["get", "lease", "none", "--namespace", &own]).await);
    assert!(failed.contains("NotFound"), "{failed}");

    // One request at a time: the others are refused.
    admin.allow(&own, "bob", &["list"]).await?;
    admin.throttle("bob").await?;
    let bob = admin.with_token("bob-token");
    let refused = async {
        loop {
            let requests = futures::future::join_all((0..20).map(|_| bob.leases(&own))).await;
            if let Some(error) = requests.into_iter().find_map(Result::err) {
                return error.to_string();
            }
        }
    };
    let refused = tokio::time::timeout(Duration::from_secs(60), refused).await.expect("a request is refused");
    assert!(refused.contains("429"), "{refused}");
    admin.leases(&own).await?;
    Ok(())
}

#[tokio::test]
async fn two_servers_have_one_etcd_and_fail_each_on_its_own() -> Outcome {
    let cluster =
        KubernetesCluster::start_with_fault_injection(VERSION, &KubernetesSettings::default()).await?;
    let [first, second] = [0, 1].map(|index| cluster.server(index).admin());
    assert_eq!(first.authority().await?, second.authority().await?);
    let own = new_namespace();
    first.create_namespace(&own).await?;
    first.create_service_account(&own, "billing").await?;
    let token = first.request_token(&own, "billing", Duration::from_secs(600)).await?;
    let account = format!("system:serviceaccount:{own}:billing");
    first.allow(&own, &account, &["list", "create"]).await?;
    second.allow(&own, &account, &["list", "create"]).await?;
    second.with_token(&token).create_lease(&own, "e", &json!({ "holderIdentity": "a" })).await?;
    assert_eq!(holder(first, &own).await?, "a");

    for kind in [0, 1, 2, 3] {
        let fault = match kind {
            0 => cluster.server(0).pause().await?,
            1 => cluster.isolate_from_etcd(0).await?,
            2 => cluster.inject(0, FaultKind::PartitionFromClients(Direction::Both)).await?,
            _ => cluster.server(0).kill().await?,
        };
        assert!(first.leases(&own).await.is_err(), "{fault:?}");
        second.patch_lease(&own, "e", &json!({ "spec": { "holderIdentity": format!("b{kind}") } })).await?;
        fault.heal().await?;
        assert_eq!(holder(first, &own).await?, format!("b{kind}"));
    }
    let stalled = cluster.inject_into_etcd(FaultKind::StallDisk).await?;
    assert!(second.delete_lease(&own, "e").await.is_err());
    stalled.heal().await?;
    let frozen = cluster.etcd().pause().await?;
    assert!(first.leases(&own).await.is_err() && second.leases(&own).await.is_err());
    frozen.heal().await?;
    first.leases(&own).await?;
    second.leases(&own).await?;
    Ok(())
}

#[tokio::test]
async fn candidates_of_client_go_lead_in_turn() -> Outcome {
    let cluster = KubernetesCluster::start(VERSION).await?;
    let (admin, own) = (cluster.server(1).admin(), new_namespace());
    admin.create_namespace(&own).await?;
    let settings = GoCandidateSettings::default();
    let start = async |server, id| GoCandidate::start(&cluster, server, (&own, "e"), id, &settings).await;
    let (started, stopped, leader) = (
        |id: &str| GoEvent::Started(id.to_owned()),
        |id: &str| GoEvent::Stopped(id.to_owned()),
        |id: &str| GoEvent::Leader(id.to_owned()),
    );
    let mut a = start(0, "a").await?;
    a.wait_for(&started("a")).await?;
    let mut b = start(1, "b").await?;
    b.wait_for(&leader("a")).await?;
    assert_eq!(holder(admin, &own).await?, "a");
    a.terminate().await?;
    a.wait_for(&stopped("a")).await?;
    assert_eq!(a.next_event().await, None);
    b.wait_for(&started("b")).await?;

    let mut c = start(0, "c").await?;
    let frozen = b.pause().await?;
    c.wait_for(&started("c")).await?;
    frozen.heal().await?;
    b.wait_for(&stopped("b")).await?;

    let mut d = start(1, "d").await?;
    let isolated = c.isolate().await?;
    c.wait_for(&stopped("c")).await?;
    d.wait_for(&started("d")).await?;
    drop(isolated);
    d.kill().await?;
    let mut e = start(1, "e").await?;
    e.wait_for(&started("e")).await?;
    Ok(())
}
