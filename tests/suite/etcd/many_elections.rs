//! Hundreds of elections of one process on etcd, which share transactions and watches.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
    time::Duration,
};

use futures::{FutureExt as _, future::join_all};
use tenure::{Config, Elector, Error, Leadership};
use tenure_containers::{EtcdServer, Permission, Version};
use tenure_testkit::{
    proxy::Proxy,
    suite::{until, within},
};
use tokio::task::JoinHandle;

const PASSWORD: &str = "correct-horse-7";

async fn server(version: Version, flags: &[&str]) -> EtcdServer {
    EtcdServer::start_with(version, flags).await.unwrap_or_else(|error| panic!("{error}"))
}

/// The outcome of each election's campaign.
type Outcomes = BTreeMap<String, Result<Leadership, Error>>;

fn config() -> Config {
    Config::new().with_ttl(Duration::from_secs(5))
}

async fn connect(server: &EtcdServer, login: &str) -> Arc<dyn Elector> {
    let url = format!("etcd://{login}{}/acme", server.endpoint());
    tenure::connect_with(&url, config()).await.unwrap()
}

/// Campaigns in all elections at once.
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

/// Elections that the user may not enter do not fail others in the same batch: each campaign gets its own outcome, also from
/// an etcd that does not check permissions in nested transactions.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_refused_election_does_not_fail_others_in_its_batch() {
    for version in Version::ETCD {
        let server = server(version, &[]).await;
        let admin = server.admin();
        admin.add_user("app", PASSWORD, Permission::ReadWrite, "/acme/allowed-").await.unwrap();
        admin.grant_permission("app", Permission::ReadWrite, "/acme/~").await.unwrap();
        let root = admin.enable_auth("root-password").await.unwrap();
        let elector = connect(&server, &format!("app:{PASSWORD}@")).await;
        let first = within("the session", elector.campaign("allowed-first")).await.unwrap();
        let mut elections = names("allowed", 150);
        for (n, forbidden) in names("forbidden", 10).into_iter().enumerate() {
            elections.insert(n * 15, forbidden);
        }
        let ended = campaign(&elector, &elections).await;
        for (election, outcome) in &ended {
            match outcome {
                Ok(leadership) => assert!(
                    election.starts_with("allowed") && leadership.is_leader(),
                    "{election}: {:?} {:?}",
                    leadership.loss(),
                    elector.status()
                ),
                Err(Error::Unauthorized(_)) => assert!(election.starts_with("forbidden"), "{election}"),
                Err(error) => panic!("{election}: {error}"),
            }
        }
        assert_eq!(ended.values().filter(|outcome| outcome.is_ok()).count(), 150);
        assert!(root.list("/acme/forbidden").await.unwrap().is_empty(), "no forbidden election was entered");
        drop((first, ended));
        elector.close().await;
    }
}

/// An etcd that accepts few operations per transaction gets smaller transactions, and every campaign succeeds.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_etcd_with_a_low_transaction_limit_works() {
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

/// Hazard G13: two processes campaign in the same elections at once. In each election one leads, and then the other with a
/// larger token.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn each_of_many_elections_has_one_leader_at_a_time() {
    let server = server(Version::Etcd35, &[]).await;
    let (a, b) = (connect(&server, "").await, connect(&server, "").await);
    let elections = names("e", 300);
    let sessions = (a.campaign("first-a").await.unwrap(), b.campaign("first-b").await.unwrap());
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
    drop(sessions);
    for elector in [a, b] {
        elector.close().await;
    }
}

/// Waits until each election has `count` candidates.
async fn wait_for_candidates(elector: &Arc<dyn Elector>, elections: &[String], count: usize) {
    let entered = async {
        for election in elections {
            while elector.candidates(election).await.unwrap().len() < count {
                tokio::time::sleep(Duration::from_millis(10)).await;
            }
        }
    };
    within("all candidates have entered", entered).await;
}

/// Starts campaigns of `waiter` in all elections that `leader` leads, and returns once it waits in each.
async fn start_waiting(
    leader: &Arc<dyn Elector>,
    waiter: &Arc<dyn Elector>,
    elections: &[String],
) -> JoinHandle<Outcomes> {
    let waiting = tokio::spawn({
        let (waiter, elections) = (Arc::clone(waiter), elections.to_vec());
        async move { campaign(&waiter, &elections).await }
    });
    wait_for_candidates(leader, elections, 2).await;
    waiting
}

/// A candidate that may not watch the whole prefix is refused the prefix watch, uses one watch per key, and leads in turn.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_candidate_that_may_not_watch_the_prefix_still_leads() {
    for version in Version::ETCD {
        let server = server(version, &[]).await;
        let admin = server.admin();
        admin.add_user("app", PASSWORD, Permission::ReadWrite, "/acme/allowed-").await.unwrap();
        admin.grant_permission("app", Permission::ReadWrite, "/acme/~").await.unwrap();
        admin.enable_auth("root-password").await.unwrap();
        let leader = connect(&server, &format!("app:{PASSWORD}@")).await;
        let elections = names("allowed", 20);
        let held = campaign(&leader, &elections).await;
        let waiter = connect(&server, &format!("app:{PASSWORD}@")).await;
        let waiting = start_waiting(&leader, &waiter, &elections).await;
        for leadership in held.into_values() {
            leadership.unwrap().resign().await.unwrap();
        }
        let led = within("all are led", waiting).await.unwrap();
        assert!(led.values().all(|outcome| outcome.as_ref().is_ok_and(|leadership| leadership.is_leader())));
        drop(led);
        waiter.close().await;
        leader.close().await;
    }
}

/// A process that waits in more than a thousand elections leads all of them with larger tokens once the leader's sessions have
/// ended. Hazard E18: a session has at most 500 entries.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn thousands_are_taken_over_at_once() {
    for version in Version::ETCD {
        let server = server(version, &[]).await;
        let (leader, waiter) = (connect(&server, "").await, connect(&server, "").await);
        let elections = names("e", 1_500);
        let held = campaign(&leader, &elections).await;
        let first = |outcome: &Result<Leadership, Error>| outcome.as_ref().unwrap().fencing_token();
        let before: BTreeMap<_, _> =
            held.iter().map(|(name, outcome)| (name.clone(), first(outcome))).collect();
        let waiting = start_waiting(&leader, &waiter, &elections).await;
        let session =
            |led: &Leadership| i64::from_str_radix(led.entry().rsplit('/').next().unwrap(), 16).unwrap();
        let sessions: BTreeSet<i64> = held.values().flatten().map(session).collect();
        assert_eq!(sessions.len(), 3, "one for each 500 entries");
        for session in sessions {
            server.admin().revoke_lease(session).await.unwrap();
        }
        let led = within("all are led", waiting).await.unwrap();
        for (name, outcome) in &led {
            assert!(first(outcome) > before[name], "{name}");
            assert!(outcome.as_ref().unwrap().is_leader(), "{name}");
        }
        for leadership in held.values().flatten() {
            within("the loss", leadership.lost()).await;
        }
        drop((held, led));
        waiter.close().await;
        leader.close().await;
    }
}

/// Hazard G13: when a waiting candidate's entry is deleted together with the leader's, in one revision and one watch response,
/// the candidate does not lead by that: it enters again.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn entries_deleted_in_one_revision_make_no_leader() {
    for version in Version::ETCD {
        let server = server(version, &[]).await;
        let leader = connect(&server, "").await;
        let elections = names("e", 200);
        let held = campaign(&leader, &elections).await;
        let waiter = connect(&server, "").await;
        let waiting = start_waiting(&leader, &waiter, &elections).await;
        let before = server.admin().revision().await.unwrap();
        assert_eq!(server.admin().delete_prefix("/acme/e-").await.unwrap(), 400);
        let led = within("all are led", waiting).await.unwrap();
        for (name, outcome) in &led {
            assert!(
                outcome.as_ref().unwrap().fencing_token().get() > before,
                "{name}: it leads by a deleted entry"
            );
        }
        drop((held, led));
        waiter.close().await;
        leader.close().await;
    }
}

/// Hazard E21: on a slow server requests are sent twice. The mark of one that was withdrawn before both were answered is deleted
/// once they were, while the session goes on.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn marks_of_withdrawn_requests_are_deleted() {
    for version in Version::ETCD {
        let server = server(version, &[]).await;
        let proxy = Proxy::start(server.endpoint()).await.unwrap();
        let url = format!("etcd://{}/acme", proxy.endpoint());
        let elector = tenure::connect_with(&url, config()).await.unwrap();
        let held = within("leading", elector.campaign("held")).await.unwrap();
        // More than the hedge delay of 300 ms for each answer.
        proxy.delay(Duration::from_millis(200));
        let led = campaign(&elector, &names("e", 100)).await;
        within("all resign", join_all(led.into_values().map(|led| led.unwrap().resign()))).await;
        let marks = async || server.admin().list("/acme/~withdrawn/").await.unwrap().len();
        let (given_up, mut most) = (names("f", 100), 0);
        while most == 0 {
            // Given up as soon as it has begun.
            given_up.iter().for_each(|election| drop(elector.campaign(election).now_or_never()));
            most = marks().await;
        }
        proxy.heal();
        until("the marks are deleted", async || marks().await == 0).await;
        until("no other entry is left", async || server.admin().list("/acme/").await.unwrap().len() == 1)
            .await;
        assert!(held.is_leader(), "the session goes on");
        drop(held);
        elector.close().await;
    }
}
