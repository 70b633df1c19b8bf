//! MariaDB with an asynchronous replica that is promoted.

use std::{
    sync::Arc,
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use tenure::{
    Config, Connection, Elector,
    mysql::{MysqlConfig, MysqlStore},
    spi::BackendErrorKind,
};
use tenure_cas::{CasStore, Epoch, EpochState, Freshness, Swap, Version as RecordVersion};
use tenure_containers::{MysqlCluster, Version};
use tenure_testkit::{
    proxy::Proxy,
    suite::{until, within},
};
use tenure_tests::{
    CasServer as _, Mysql, campaign::campaign, mysql::begin_first_epoch, wait_for_heartbeats,
};

/// The number of terms of an epoch.
const TERMS: u64 = 1 << 40;

/// A primary in the first epoch, and a replica that has its tables.
async fn cluster() -> MysqlCluster {
    let cluster = MysqlCluster::start(Version::Mariadb1011).await.unwrap();
    begin_first_epoch(cluster.member(0).admin()).await;
    cluster.wait_for_replica(1, 0).await.unwrap();
    cluster
}

/// The five-minute steps since 2026.
fn steps_since_2026() -> u64 {
    let since_1970 = SystemTime::now().duration_since(UNIX_EPOCH).unwrap();
    since_1970.as_secs() / 300 - 5_890_752
}

fn url(cluster: &MysqlCluster) -> String {
    format!("mysql://root@{}/tenure?attempt_timeout=1s", cluster.endpoints().join(","))
}

async fn connect(url: &str) -> Arc<dyn Elector> {
    tenure::connect_with(url, Config::new().with_ttl(Duration::from_secs(3)))
        .await
        .unwrap_or_else(|error| panic!("{url}: {error}"))
}

fn store(endpoints: Vec<String>) -> MysqlStore {
    let config = MysqlConfig::new(endpoints, "root", "tenure").attempt_timeout(Duration::from_secs(1));
    MysqlStore::new(config).unwrap()
}

async fn create(store: &MysqlStore, key: &str, epoch: Epoch) -> RecordVersion {
    match store.swap(key, None, epoch, b"1").await.unwrap_or_else(|error| panic!("{error}")) {
        Swap::Done(version) => version,
        other => panic!("{other:?}"),
    }
}

/// Hazard C5: a takeover that the replica does not have is lost. The next token is higher all the same, and the leader of before has stopped.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_promotion_raises_the_tokens() {
    let cluster = cluster().await;
    let (first, second) = (connect(&url(&cluster)).await, connect(&url(&cluster)).await);
    within("leading", first.campaign("e")).await.unwrap().resign().await.unwrap();
    cluster.wait_for_replica(1, 0).await.unwrap();
    cluster.stop_replication(1).await.unwrap();
    let mut lost = within("leading", first.campaign("e")).await.unwrap();
    for _ in 0..3 {
        lost.resign().await.unwrap();
        lost = within("leading", first.campaign("e")).await.unwrap();
    }
    assert!(lost.fencing_token().get() < TERMS);
    let waiting = campaign(&second);
    let _killed = cluster.member(0).kill().await.unwrap();
    cluster.promote(1).await.unwrap();
    let leadership = within("leading", waiting).await.unwrap().unwrap();
    assert!(!lost.is_leader(), "it has stopped before");
    assert!(leadership.fencing_token().get() >= TERMS, "{}", leadership.fencing_token());
    wait_for_heartbeats(&leadership).await;
    drop(lost);
    leadership.resign().await.unwrap();
    for elector in [first, second] {
        elector.close().await;
    }
}

/// Hazard C5: a replica that lacks the tables is promoted. A candidate that knows of nothing creates them there, and leads when the leader of before
/// has stopped, with a higher token.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_promoted_replica_without_the_tables_is_waited_for() {
    let cluster = MysqlCluster::start(Version::Mariadb1011).await.unwrap();
    cluster.stop_replication(1).await.unwrap();
    begin_first_epoch(cluster.member(0).admin()).await;
    let first = connect(&url(&cluster)).await;
    let former = within("leading", first.campaign("e")).await.unwrap();
    let _killed = cluster.member(0).kill().await.unwrap();
    cluster.promote(1).await.unwrap();
    let newcomer = connect(&url(&cluster)).await;
    let leadership = within("leading", newcomer.campaign("e")).await.unwrap();
    assert!(!former.is_leader(), "it has stopped before");
    let epoch = leadership.fencing_token().get() / TERMS;
    assert!((1..=steps_since_2026() + 1).contains(&epoch) && epoch + 2 > steps_since_2026(), "{epoch}");
    drop(former);
    leadership.resign().await.unwrap();
    // Who knew of the former primary takes part again.
    within("leading", first.campaign("e")).await.unwrap().resign().await.unwrap();
    for elector in [first, newcomer] {
        elector.close().await;
    }
}

/// The epoch is checked in the statement that swaps, and a former primary that comes back is refused.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_former_primary_is_refused() {
    let cluster = cluster().await;
    let store_of_both = store(cluster.endpoints());
    assert_eq!(store_of_both.epoch().await.unwrap(), EpochState::Known(Epoch(0)));
    let version = create(&store_of_both, "e/a", Epoch(0)).await;
    cluster.wait_for_replica(1, 0).await.unwrap();
    let killed = cluster.member(0).kill().await.unwrap();
    cluster.promote(1).await.unwrap();
    until("the epoch rises", async || {
        store_of_both.epoch().await.is_ok_and(|epoch| epoch == EpochState::Known(Epoch(1)))
    })
    .await;
    assert_eq!(store_of_both.swap("e/a", Some(&version), Epoch(0), b"2").await.unwrap(), Swap::EpochChanged);
    assert_eq!(store_of_both.swap("e/b", None, Epoch(0), b"2").await.unwrap(), Swap::EpochChanged);
    let Swap::Done(second) = store_of_both.swap("e/a", Some(&version), Epoch(1), b"3").await.unwrap() else {
        panic!()
    };

    // It is a primary as well: who starts now uses the later one, and nobody goes back.
    killed.heal().await.unwrap();
    let later = store(cluster.endpoints());
    assert_eq!(later.epoch().await.unwrap(), EpochState::Known(Epoch(1)));
    assert_eq!(later.read("e/a", Freshness::Fresh).await.unwrap().unwrap().version, second);
    let _killed = cluster.member(1).kill().await.unwrap();
    until("the former primary is refused", async || {
        let refused = store_of_both.epoch().await.unwrap_err();
        assert_eq!(refused.kind(), BackendErrorKind::Unavailable);
        refused.to_string().contains("is an earlier primary (epoch 0, and 1 was seen on ")
    })
    .await;
    // An operator decides that it is the right one.
    cluster.member(0).admin().execute("UPDATE tenure_epoch SET server = ''").await.unwrap();
    until("it is used", async || {
        store_of_both.epoch().await.is_ok_and(|epoch| epoch == EpochState::Known(Epoch(2)))
    })
    .await;
}

/// A replica is no primary before it was promoted, whether or not it is read-only, and whatever the user may do.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_replica_is_waited_for() {
    let cluster = cluster().await;
    let replica = cluster.member(1).admin();
    let elector = connect(&replica.url()).await;
    let campaign = campaign(&elector);
    let reports = async |expected: &str| {
        let status = elector.status();
        status.connection == Connection::Retrying && status.last_error.unwrap_or_default().contains(expected)
    };
    until("it is read-only", async || reports("is read-only, as a replica is").await).await;
    replica.execute("SET GLOBAL read_only = 0").await.unwrap();
    until("it replicates", async || reports("replicates from another server").await).await;
    let _killed = cluster.member(0).kill().await.unwrap();
    cluster.promote(1).await.unwrap();
    within("leading", campaign).await.unwrap().unwrap().resign().await.unwrap();
    elector.close().await;
}

/// An attempt at another host that answers later than the primary is not cut off: a server counts the handshakes that were, and refuses the client
/// after `max_connect_errors` of them.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn attempts_at_slower_hosts_are_completed() {
    let cluster = cluster().await;
    let replica = cluster.member(1).admin();
    let slow = Proxy::start(replica.endpoint()).await.unwrap();
    slow.delay(Duration::from_millis(200));
    let aborted = "SELECT VARIABLE_VALUE FROM information_schema.GLOBAL_STATUS WHERE VARIABLE_NAME = 'ABORTED_CONNECTS'";
    let before = replica.value(aborted).await.unwrap();
    let hosts = [cluster.member(0).admin().endpoint().to_owned(), slow.endpoint()];
    let config = MysqlConfig::new(hosts, "root", "tenure").attempt_timeout(Duration::from_secs(4));
    let store = MysqlStore::new(config).unwrap();
    store.epoch().await.unwrap();
    store.close().await;
    until("the attempt has ended", async || slow.accepted() == 1 && slow.open() == 0).await;
    assert_eq!(replica.value(aborted).await.unwrap(), before);
}

/// A candidate stays connected to a primary that becomes a replica: it neither writes there nor trusts what it reads there.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_switchover_is_followed() {
    let cluster = cluster().await;
    let elector = connect(&url(&cluster)).await;
    let leadership = within("leading", elector.campaign("e")).await.unwrap();
    let former = cluster.member(0).admin();
    former.execute("SET GLOBAL read_only = 1").await.unwrap();
    cluster.wait_for_replica(1, 0).await.unwrap();
    cluster.promote(1).await.unwrap();
    cluster.follow(0, 1).await.unwrap();
    within("the loss", leadership.lost()).await;
    drop(leadership);
    let next = within("leading", elector.campaign("e")).await.unwrap();
    assert!(next.fencing_token().get() >= TERMS);
    next.resign().await.unwrap();
    elector.close().await;
    // And back.
    let back = connect(&url(&cluster)).await;
    cluster.member(1).admin().execute("SET GLOBAL read_only = 1").await.unwrap();
    cluster.wait_for_replica(0, 1).await.unwrap();
    cluster.promote(0).await.unwrap();
    cluster.follow(1, 0).await.unwrap();
    let last = within("leading", back.campaign("e")).await.unwrap();
    assert!(last.fencing_token().get() >= 2 * TERMS, "{}", last.fencing_token());
    last.resign().await.unwrap();
    back.close().await;
}

/// The tables have come to another server, or a second replica was promoted, which had missed the epoch of the first.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_epoch_is_given_once() {
    let suite = Mysql::new(Version::Mariadb1011).await;
    let backend = suite.backend(&suite.endpoint());
    let store = backend.store();
    let version = match store.swap("e/a", None, Epoch(0), b"1").await.unwrap() {
        Swap::Done(version) => version,
        other => panic!("{other:?}"),
    };
    let epoch = async |store: &MysqlStore| {
        let reading = async {
            loop {
                if let Ok(EpochState::Known(epoch)) = store.epoch().await {
                    return epoch;
                }
            }
        };
        within("an epoch", reading).await
    };
    let sql = async |sql: &str| suite.database().execute(sql).await.unwrap();
    sql("UPDATE tenure_epoch SET server = 'another'").await;
    let refused = store.swap("e/a", Some(&version), Epoch(0), b"2").await.unwrap_err();
    assert_eq!(refused.kind(), BackendErrorKind::Unavailable, "{refused}");
    assert_eq!(epoch(store).await, Epoch(1));
    assert_eq!(store.swap("e/a", Some(&version), Epoch(0), b"2").await.unwrap(), Swap::EpochChanged);
    // The row of before the last epoch, as a replica that lags has it.
    sql("UPDATE tenure_epoch SET server = 'another', epoch = 0").await;
    assert_eq!(epoch(store).await, Epoch(2), "not 1 again");
    sql("DROP TABLE tenure_epoch").await;
    let gone = store.epoch().await.unwrap_err().to_string();
    assert!(gone.contains("restart") && gone.contains("candidates"), "{gone}");
    let other = suite.backend(&suite.endpoint());
    let begun = epoch(other.store()).await;
    assert!(begun.0 > steps_since_2026() - 1, "{begun:?}: it waits, and tokens rise");
    sql("DELETE FROM tenure_epoch").await;
    let empty = other.store().epoch().await.unwrap_err().to_string();
    assert!(empty.contains("tenure_epoch is empty; restart all candidates"), "{empty}");
    let another = suite.backend(&suite.endpoint());
    assert!(epoch(another.store()).await >= begun);
    assert_eq!(epoch(other.store()).await, epoch(another.store()).await);
}
