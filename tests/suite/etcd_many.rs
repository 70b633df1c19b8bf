//! Very many elections of one process on etcd, which share transactions.

use std::{collections::BTreeMap, sync::Arc, time::Duration};

use futures::future::join_all;
use tenure::{
    Config, Elector, Error, Leadership, Secret, StoreElector,
    etcd::{EtcdBackend, EtcdConfig},
};
use tenure_containers::{EtcdServer, Permission, Version};
use tenure_testkit::suite::within;
use tokio::task::JoinHandle;

const PASSWORD: &str = "correct-horse-7";

async fn server(version: Version, flags: &[&str]) -> EtcdServer {
    EtcdServer::start_with(version, flags).await.unwrap_or_else(|error| panic!("{error}"))
}

/// By election.
type Outcomes = BTreeMap<String, Result<Leadership, Error>>;

fn config() -> Config {
    Config::new().with_ttl(Duration::from_secs(5))
}

async fn connect(server: &EtcdServer, login: &str) -> Arc<dyn Elector> {
    let url = format!("etcd://{login}{}/acme", server.endpoint());
    tenure::connect_with(&url, config()).await.unwrap()
}

/// The same, with one watch for all that it waits for from the first wait on.
fn with_a_common_watch(
    server: &EtcdServer,
    login: impl FnOnce(EtcdConfig) -> EtcdConfig,
) -> Arc<dyn Elector> {
    let etcd = login(EtcdConfig::new([server.endpoint()]).prefix("/acme").prefix_watch_threshold(1));
    Arc::new(StoreElector::new(Arc::new(EtcdBackend::new(etcd).unwrap()), config()).unwrap())
}

/// Campaigns for all of them at once.
async fn campaign(elector: &Arc<dyn Elector>, elections: &[String]) -> Outcomes {
    let campaigns = elections.iter().map(|election| {
        let (elector, election) = (Arc::clone(elector), election.clone());
        tokio::spawn(async move { (election.clone(), elector.campaign(&election).await) })
    });
    let ended = within("all campaigns", join_all(campaigns)).await;
    ended.into_iter().map(Result::unwrap).collect()
}

fn names(prefix: &str, count: usize) -> Vec<String> {
    (0..count).map(|n| format!("{prefix}-{n}")).collect()
}

/// Elections that may not be entered cost those nothing that are entered in the same breath: each is told of its own fate,
/// also by an etcd that looks at no permission of what is nested in a transaction.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_refused_election_costs_its_neighbours_nothing() {
    for version in Version::ETCD {
        let server = server(version, &[]).await;
        let admin = server.admin();
        admin.add_user("app", PASSWORD, Permission::ReadWrite, "/acme/ours-").await.unwrap();
        admin.permit("app", Permission::ReadWrite, "/acme/~").await.unwrap();
        let root = admin.enable_auth("root-password").await.unwrap();
        let elector = connect(&server, &format!("app:{PASSWORD}@")).await;
        let first = within("the session", elector.campaign("ours-first")).await.unwrap();
        let mut elections = names("ours", 150);
        for (n, theirs) in names("theirs", 10).into_iter().enumerate() {
            elections.insert(n * 15, theirs);
        }
        let ended = campaign(&elector, &elections).await;
        for (election, outcome) in &ended {
            match outcome {
                Ok(leadership) => assert!(election.starts_with("ours") && leadership.is_leader()),
                Err(Error::Unauthorized(_)) => assert!(election.starts_with("theirs"), "{election}"),
                Err(error) => panic!("{election}: {error}"),
            }
        }
        assert_eq!(ended.values().filter(|outcome| outcome.is_ok()).count(), 150);
        assert!(root.list("/acme/theirs").await.unwrap().is_empty(), "nothing is entered that may not be");
        drop((first, ended));
        elector.close().await;
    }
}

/// An etcd that takes few operations in a transaction is asked for fewer, and every election is led.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_etcd_that_takes_small_transactions_serves() {
    let server = server(Version::Etcd35, &["--max-txn-ops=16"]).await;
    let elector = connect(&server, "").await;
    let first = within("the session", elector.campaign("first")).await.unwrap();
    let ended = campaign(&elector, &names("e", 300)).await;
    for (election, outcome) in &ended {
        assert!(outcome.as_ref().is_ok_and(|leadership| leadership.is_leader()), "{election}: {outcome:?}");
    }
    drop((first, ended));
    elector.close().await;
    assert!(server.admin().list("/acme/e").await.unwrap().is_empty());
}

/// Hazard G13: of two processes that campaign for the same elections in the same breath one leads each, with a token of its own,
/// and the other leads it next, with a larger one.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn each_of_many_elections_has_one_leader_at_a_time() {
    let server = server(Version::Etcd35, &[]).await;
    let (a, b) = (connect(&server, "").await, connect(&server, "").await);
    let elections = names("e", 300);
    let warm = (a.campaign("first-a").await.unwrap(), b.campaign("first-b").await.unwrap());
    let campaigns: Vec<_> = [&a, &b]
        .into_iter()
        .flat_map(|elector| elections.iter().map(move |election| (Arc::clone(elector), election.clone())))
        .map(|(elector, election)| {
            tokio::spawn(async move {
                let leadership = elector.campaign(&election).await.unwrap();
                let (token, entry) = (leadership.fencing_token(), leadership.entry().to_owned());
                leadership.resign().await.unwrap();
                (election, token, entry)
            })
        })
        .collect();
    let mut tokens: BTreeMap<String, Vec<_>> = BTreeMap::new();
    for led in within("all", join_all(campaigns)).await {
        let (election, token, entry) = led.unwrap();
        tokens.entry(election).or_default().push((token, entry));
    }
    assert_eq!(tokens.len(), 300);
    for (election, led) in tokens {
        let [(first, one), (second, other)] = &led[..] else { panic!("{election}: {led:?}") };
        assert!(first != second && one != other, "{election}: {led:?}");
    }
    drop(warm);
    for elector in [a, b] {
        elector.close().await;
    }
}

/// Returns once `count` candidates stand in each election.
async fn until_all_stand(looks: &Arc<dyn Elector>, elections: &[String], count: usize) {
    let all_stand = async {
        for election in elections {
            while looks.candidates(election).await.unwrap().len() < count {
                tokio::time::sleep(Duration::from_millis(10)).await;
            }
        }
    };
    within("all stand", all_stand).await;
}

/// Has `waits` campaign for all that `holder` leads, and returns once it stands behind it everywhere.
async fn stand_behind(
    holder: &Arc<dyn Elector>,
    waits: &Arc<dyn Elector>,
    elections: &[String],
) -> JoinHandle<Outcomes> {
    let waiting = tokio::spawn({
        let (waits, elections) = (Arc::clone(waits), elections.to_vec());
        async move { campaign(&waits, &elections).await }
    });
    until_all_stand(holder, elections, 2).await;
    waiting
}

/// Whoever may not watch the whole prefix is refused the common watch, has watches of its own, and leads what it waits for.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn who_is_refused_a_common_watch_leads_all_the_same() {
    for version in Version::ETCD {
        let server = server(version, &[]).await;
        let admin = server.admin();
        admin.add_user("app", PASSWORD, Permission::ReadWrite, "/acme/ours-").await.unwrap();
        admin.permit("app", Permission::ReadWrite, "/acme/~").await.unwrap();
        admin.enable_auth("root-password").await.unwrap();
        let holder = connect(&server, &format!("app:{PASSWORD}@")).await;
        let elections = names("ours", 20);
        let held = campaign(&holder, &elections).await;
        let waits = with_a_common_watch(&server, |etcd| etcd.login("app", Secret::new(PASSWORD)));
        let waiting = stand_behind(&holder, &waits, &elections).await;
        for leadership in held.into_values() {
            leadership.unwrap().resign().await.unwrap();
        }
        let led = within("all are led", waiting).await.unwrap();
        assert!(led.values().all(|outcome| outcome.as_ref().is_ok_and(|leadership| leadership.is_leader())));
        drop(led);
        waits.close().await;
        holder.close().await;
    }
}

/// A process that waits for more than a thousand elections leads all of them once their holder's session has ended, with larger tokens.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn thousands_are_taken_over_at_once() {
    for version in Version::ETCD {
        let server = server(version, &[]).await;
        let (holder, waits) = (connect(&server, "").await, connect(&server, "").await);
        let elections = names("e", 1_500);
        let held = campaign(&holder, &elections).await;
        let first = |outcome: &Result<Leadership, Error>| outcome.as_ref().unwrap().fencing_token();
        let before: BTreeMap<_, _> =
            held.iter().map(|(name, outcome)| (name.clone(), first(outcome))).collect();
        let waiting = stand_behind(&holder, &waits, &elections).await;
        let session =
            held.values().next().unwrap().as_ref().unwrap().entry().rsplit('/').next().unwrap().to_owned();
        server.admin().revoke_lease(i64::from_str_radix(&session, 16).unwrap()).await.unwrap();
        let led = within("all are led", waiting).await.unwrap();
        for (name, outcome) in &led {
            assert!(first(outcome) > before[name], "{name}");
            assert!(outcome.as_ref().unwrap().is_leader(), "{name}");
        }
        for leadership in held.values().flatten() {
            within("the holder hears of it", leadership.lost()).await;
        }
        drop((held, led));
        waits.close().await;
        holder.close().await;
    }
}

/// Hazard G13: whoever's own entry ends with the leader's, in one revision and one message, does not lead by that: it enters anew.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn entries_that_end_in_one_breath_make_no_leader() {
    for version in Version::ETCD {
        let server = server(version, &[]).await;
        let holder = connect(&server, "").await;
        let elections = names("e", 200);
        let held = campaign(&holder, &elections).await;
        let waits = with_a_common_watch(&server, |etcd| etcd);
        let waiting = stand_behind(&holder, &waits, &elections).await;
        let before = server.admin().revision().await.unwrap();
        assert_eq!(server.admin().delete_prefix("/acme/e-").await.unwrap(), 400);
        let led = within("all are led", waiting).await.unwrap();
        for (name, outcome) in &led {
            assert!(
                outcome.as_ref().unwrap().fencing_token().get() > before,
                "{name}: by an entry that is gone"
            );
        }
        drop((held, led));
        waits.close().await;
        holder.close().await;
    }
}
