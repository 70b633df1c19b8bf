//! The diagnosis of Consul for an operator.

use tenure::{
    Level, Secret,
    consul::{ConsulConfig, ConsulStore},
};
use tenure_cas::CasStore as _;
use tenure_containers::{ConsulCluster, ConsulServer, ConsulSettings, Version};

/// The findings that are not good, by their subject, and their texts.
async fn findings(store: &ConsulStore) -> Vec<(String, String)> {
    let found = store.diagnose().await.into_iter().filter(|found| found.level != Level::Good);
    found
        .map(|found| (found.subject, format!("{} {}", found.text, found.advice.unwrap_or_default())))
        .collect()
}

fn store(hosts: impl IntoIterator<Item = String>, token: Option<&str>) -> ConsulStore {
    let mut config = ConsulConfig::new(hosts).prefix("acme");
    if let Some(token) = token {
        config = config.token(Secret::new(token));
    }
    ConsulStore::new(config).unwrap()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_operator_is_told_what_is_wrong() {
    let server = ConsulServer::start_with(Version::Consul18, &ConsulSettings::default().acl()).await.unwrap();
    let admin = server.admin().with_token(ConsulSettings::MANAGEMENT_TOKEN);
    let rules = [
        "key_prefix \"acme/\" { policy = \"write\" } agent_prefix \"\" { policy = \"read\" }",
        "key_prefix \"acme/\" { policy = \"write\" }",
        "key_prefix \"acme/\" { policy = \"read\" }",
    ];
    let mut tokens = Vec::new();
    for rules in rules {
        tokens.push(admin.create_token(rules).await.unwrap().secret);
    }
    let with = |token: &str| store([server.endpoint()], Some(token));
    for (token, version) in [
        (&tokens[0], "Consul 1.8.7, a server, datacenter dc1"),
        (&tokens[1], "the token may not read its version"),
    ] {
        let store = with(token);
        let [(subject, text)] = &findings(&store).await[..] else { panic!("{:?}", store.diagnose().await) };
        assert!(subject == "servers" && text.contains("use three or five servers"), "{text}");
        let all = format!("{:?}", store.diagnose().await);
        assert!(all.contains(version) && all.contains("read and written below"), "{all}");
    }
    let found = findings(&with(&tokens[2])).await;
    let (_, text) = found.iter().find(|(subject, _)| subject == "keys").unwrap();
    assert!(text.contains("key_prefix \"acme/\" { policy = \"write\" }"), "{text}");
    let found = findings(&with("11111111-2222-3333-4444-555555555555")).await;
    assert!(found.iter().any(|(_, text)| text.contains("Consul does not know the token")), "{found:?}");
    assert_eq!(admin.keys("acme/").await.unwrap(), [""; 0], "nothing is left");
    let _killed = server.kill().await.unwrap();
    let subjects: Vec<_> =
        findings(&with(&tokens[0])).await.into_iter().map(|(subject, _)| subject).collect();
    assert_eq!(subjects, [format!("host {}", server.endpoint())]);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_cluster_is_diagnosed_by_any_of_its_servers() {
    let cluster = ConsulCluster::start(Version::Consul18, &ConsulSettings::default()).await.unwrap();
    let leader = cluster.leader().await.unwrap();
    let all = store(cluster.endpoints(), None);
    assert_eq!(findings(&all).await, []);
    assert!(format!("{:?}", all.diagnose().await).contains(&format!("3, of which {}:", cluster.ip(leader))));
    let follower = (leader + 1) % 3;
    let fault = cluster.member(follower).kill().await.unwrap();
    let subjects: Vec<_> = findings(&all).await.into_iter().map(|(subject, _)| subject).collect();
    assert_eq!(subjects, [format!("host {}", cluster.endpoints()[follower])]);
    // Without a majority nothing is written.
    let _second = cluster.member(leader).kill().await.unwrap();
    let found = findings(&store([cluster.endpoints()[(leader + 2) % 3].clone()], None)).await;
    assert!(found.iter().any(|(subject, _)| subject == "keys"), "{found:?}");
    drop(fault);
}
