//! A cluster of three NATS servers, one of which is killed, frozen or cut off.

use std::{
    sync::{
        Arc, Mutex,
        atomic::{AtomicUsize, Ordering::SeqCst},
    },
    time::Duration,
};

use serde_json::json;
use tenure::{
    Config, Elector, Level,
    nats::{NatsConfig, NatsStore},
};
use tenure_cas::{CasStore as _, Epoch, Freshness, Swap};
use tenure_containers::{NatsCluster, NatsServer, NatsSettings, Version};
use tenure_testkit::{
    proxy::Proxy,
    suite::{until, within},
};

const BUCKET: &str = "acme";
/// No epoch: the store loses no write.
const FIXED: Epoch = Epoch(0);

async fn cluster() -> NatsCluster {
    NatsCluster::start(Version::Nats215).await.unwrap_or_else(|error| panic!("{error}"))
}

async fn connect(cluster: &NatsCluster, ttl: u64) -> Arc<dyn Elector> {
    let config = Config::new().with_ttl(Duration::from_secs(ttl));
    let url = format!("nats://{}/{BUCKET}?attempt_timeout=1s", cluster.endpoints().join(","));
    tenure::connect_with(&url, config).await.unwrap()
}

/// The member that leads the bucket fails in different ways. A leadership whose TTL is longer than the election of another member is
/// kept, a waiting candidate still gets its turn, and never do two lead.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_member_that_fails_ends_no_leadership() {
    let cluster = cluster().await;
    for way in ["killed", "frozen", "cut off"] {
        let (a, b) = (connect(&cluster, 30).await, connect(&cluster, 30).await);
        let first = within("leading", a.campaign("e")).await.unwrap();
        let elector = Arc::clone(&b);
        let waiting = tokio::spawn(async move { elector.campaign("e").await });
        until("both candidates have entered", async || {
            a.candidates("e").await.is_ok_and(|candidates| candidates.len() == 2)
        })
        .await;
        let leader = cluster.leader(BUCKET).await.unwrap();
        let member = cluster.member(leader);
        let fault = match way {
            "killed" => member.kill().await,
            "frozen" => member.pause().await,
            _ => cluster.isolate_from_peers(leader).await,
        };
        let fault = fault.unwrap();
        cluster.successor_of(leader, BUCKET).await.unwrap();
        let deadline = first.deadline();
        until("a heartbeat was confirmed", async || first.deadline() > deadline || !first.is_leader()).await;
        assert!(first.is_leader(), "{way}: {:?}; {:?}", first.loss(), a.status());
        assert!(!waiting.is_finished());
        within("resigning", first.resign()).await.unwrap();
        let second = within("the handover", waiting).await.unwrap().unwrap();
        assert!(second.is_leader(), "{way}");
        within("resigning", second.resign()).await.unwrap();
        fault.heal().await.unwrap();
        a.close().await;
        b.close().await;
        until("all replicas are current", async || {
            let state = cluster.member(leader).admin().bucket(BUCKET).await.unwrap_or_default();
            let replicas = state["cluster"]["replicas"].as_array().cloned().unwrap_or_default();
            replicas.len() == 2 && replicas.iter().all(|replica| replica["current"] == true)
        })
        .await;
    }
}

/// Counts those who work at the same time.
struct Working<'a>(&'a AtomicUsize);

impl<'a> Working<'a> {
    fn begin(working: &'a AtomicUsize, most: &AtomicUsize) -> Self {
        most.fetch_max(working.fetch_add(1, SeqCst) + 1, SeqCst);
        Self(working)
    }
}

impl Drop for Working<'_> {
    fn drop(&mut self) {
        self.0.fetch_sub(1, SeqCst);
    }
}

/// Candidates with a short TTL, all of which work, while members fail one after the other: never do two work.
#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn never_do_two_lead_while_members_fail() {
    let cluster = cluster().await;
    let (working, terms, most) =
        (Arc::new(AtomicUsize::new(0)), Arc::new(AtomicUsize::new(0)), Arc::new(AtomicUsize::new(0)));
    let mut electors = Vec::new();
    let mut campaigns = Vec::new();
    for _ in 0..3 {
        let elector = connect(&cluster, 3).await;
        electors.push(Arc::clone(&elector));
        let (working, terms, most) = (Arc::clone(&working), Arc::clone(&terms), Arc::clone(&most));
        campaigns.push(tokio::spawn(async move {
            let mut token = None;
            while let Ok(leadership) = elector.campaign("e").await {
                let before = token.replace(leadership.fencing_token());
                assert!(before < token, "the token rises");
                let work = async {
                    let _working = Working::begin(&working, &most);
                    tokio::time::sleep(Duration::from_millis(500)).await;
                };
                let _ = leadership.run(work).await;
                terms.fetch_add(1, SeqCst);
                let _ = leadership.resign_within(Duration::from_secs(1)).await;
            }
        }));
    }
    until("somebody has led", async || terms.load(SeqCst) > 0).await;
    for freeze in [true, false] {
        let leader = cluster.leader(BUCKET).await.unwrap();
        let member = cluster.member(leader);
        let fault = if freeze { member.pause().await } else { member.kill().await }.unwrap();
        cluster.successor_of(leader, BUCKET).await.unwrap();
        let before = terms.load(SeqCst);
        until("others have led", async || terms.load(SeqCst) >= before + 2).await;
        fault.heal().await.unwrap();
        let before = terms.load(SeqCst);
        until("others have led", async || terms.load(SeqCst) >= before + 2).await;
    }
    for elector in electors {
        elector.close().await;
    }
    for campaign in campaigns {
        within("the end", campaign).await.unwrap();
    }
    assert_eq!(most.load(SeqCst), 1);
}

/// A member that leads the bucket and is cut off from the others answers reads for some seconds. No fresh read is answered by it alone.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_leader_that_is_cut_off_answers_no_fresh_read() {
    let cluster = cluster().await;
    let store = |endpoints: Vec<String>| {
        NatsStore::new(NatsConfig::new(endpoints, BUCKET).attempt_timeout(Duration::from_secs(1))).unwrap()
    };
    let all = store(cluster.endpoints());
    let Swap::Done(version) = all.swap("e/a", None, FIXED, b"1").await.unwrap() else { panic!() };
    let leader = cluster.leader(BUCKET).await.unwrap();
    let isolated = store(vec![cluster.member(leader).endpoint()]);
    assert_eq!(isolated.read("e/a", Freshness::Fresh).await.unwrap().unwrap().version, version);
    let fault = cluster.isolate_from_peers(leader).await.unwrap();
    let stale = isolated.read("e/a", Freshness::MayBeStale).await.unwrap().unwrap();
    assert_eq!(stale.version, version, "it does not know yet that it is cut off");
    isolated.read("e/a", Freshness::Fresh).await.unwrap_err();
    isolated.list("e/").await.unwrap_err();
    isolated.swap("e/a", Some(&version), FIXED, b"lost").await.unwrap_err();

    let others: Vec<_> =
        (0..3).filter(|index| *index != leader).map(|index| cluster.member(index).endpoint()).collect();
    let others = store(others);
    let next = async || match others.swap("e/a", Some(&version), FIXED, b"2").await {
        Ok(Swap::Done(_)) => true,
        Ok(Swap::Conflict) => {
            others.read("e/a", Freshness::Fresh).await.is_ok_and(|found| found.unwrap().body == b"2")
        }
        _ => false,
    };
    until("the others have a leader", next).await;
    isolated.read("e/a", Freshness::Fresh).await.unwrap_err();
    fault.heal().await.unwrap();
    until("it has what the others have", async || {
        isolated.read("e/a", Freshness::Fresh).await.is_ok_and(|found| found.unwrap().body == b"2")
    })
    .await;
    for store in [all, isolated, others] {
        store.close().await;
    }
}

/// While the bucket has no leader, a candidate does not connect again and again.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn connections_are_kept_while_the_bucket_has_no_leader() {
    let cluster = cluster().await;
    let store = |endpoint: String| {
        NatsStore::new(NatsConfig::new([endpoint], BUCKET).attempt_timeout(Duration::from_secs(2))).unwrap()
    };
    let first = store(cluster.member(0).endpoint());
    until("the bucket is there", async || first.read("e/a", Freshness::Fresh).await.is_ok()).await;
    first.close().await;
    let leader = cluster.leader(BUCKET).await.unwrap();
    let proxy = Proxy::start(cluster.member((leader + 1) % 3).endpoint()).await.unwrap();
    let store = store(proxy.endpoint());
    store.read("e/a", Freshness::Fresh).await.unwrap();
    let fault = cluster.member(leader).kill().await.unwrap();
    let failures = Mutex::new(Vec::new());
    until("there is another leader", async || match store.read("e/a", Freshness::Fresh).await {
        Ok(_) => true,
        Err(error) => {
            failures.lock().unwrap().push(error.to_string());
            false
        }
    })
    .await;
    let failures = failures.into_inner().unwrap();
    assert!(!failures.is_empty());
    assert_eq!(proxy.accepted(), 1, "{failures:?}");
    store.close().await;
    fault.heal().await.unwrap();
}

/// The findings that are not good.
async fn findings(store: &NatsStore) -> Vec<(String, String)> {
    let found = store.diagnose().await.into_iter().filter(|found| found.level != Level::Good);
    found
        .map(|found| (found.subject, format!("{} {}", found.text, found.advice.unwrap_or_default())))
        .collect()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_operator_is_told_what_is_wrong() {
    let settings = NatsSettings::default().sync_always();
    let cluster = NatsCluster::start_with(Version::Nats215, &settings).await.unwrap();
    let monitor: Vec<_> = (0..3).filter_map(|index| cluster.member(index).monitoring_endpoint()).collect();
    let config =
        NatsConfig::new(cluster.endpoints(), BUCKET).attempt_timeout(Duration::from_secs(1)).monitor(monitor);
    let store = NatsStore::new(config).unwrap();
    until("nothing is wrong", async || findings(&store).await.is_empty()).await;
    let all = format!("{:?}", store.diagnose().await);
    for expected in [
        "NATS 2.15.",
        "in the cluster",
        "replicas: 3; leader m",
        "are flushed to the disk before",
        "delivered",
    ] {
        assert!(all.contains(expected), "{all}");
    }
    let leader = cluster.leader(BUCKET).await.unwrap();
    let fault = cluster.member((leader + 1) % 3).kill().await.unwrap();
    until("a replica is missing", async || {
        findings(&store)
            .await
            .iter()
            .any(|(subject, text)| subject == "bucket" && text.contains("not current m"))
    })
    .await;
    fault.heal().await.unwrap();
    store.close().await;

    let server = NatsServer::start(Version::Nats215).await.unwrap();
    let config = NatsConfig::new([server.endpoint()], BUCKET).attempt_timeout(Duration::from_secs(1));
    let single = NatsStore::new(config.clone()).unwrap();
    let found = findings(&single).await;
    let subjects: Vec<_> = found.iter().map(|(subject, _)| subject.as_str()).collect();
    assert_eq!(subjects, ["bucket", "sync_interval"], "{found:?}");
    assert!(
        found[0].1.contains("replicas: 1") && found[0].1.contains("nats stream edit KV_acme --replicas=3"),
        "{found:?}"
    );
    assert!(found[1].1.contains("not known") && found[1].1.contains("monitor=host1:8222"), "{found:?}");
    single.close().await;
    let monitored =
        NatsStore::new(config.monitor([server.monitoring_endpoint().unwrap(), "127.0.0.1:1".to_owned()]))
            .unwrap();
    let found = findings(&monitored).await;
    assert!(found[1].1.contains("flushed to the disk every 120s"), "{found:?}");
    assert!(found[2].1.contains("the monitoring port does not tell it"), "{found:?}");
    monitored.close().await;

    let denied = json!({ "deny_purge": true, "allow_rollup_hdrs": false, "max_bytes": 10_000_000 });
    server.admin().create_bucket("odd", &denied).await.unwrap();
    let odd = NatsStore::new(NatsConfig::new([server.endpoint()], "odd")).unwrap();
    let found = findings(&odd).await;
    let subjects: Vec<_> = found.iter().map(|(subject, _)| subject.as_str()).collect();
    assert_eq!(subjects, ["bucket", "size", "purge", "sync_interval", "requests"], "{found:?}");
    odd.close().await;
}
