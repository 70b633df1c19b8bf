//! ZooKeeper's sessions: replaced, taken back, ended, granted otherwise than asked for.

use std::{
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering::Relaxed},
    },
    time::Duration,
};

use futures::{FutureExt as _, StreamExt as _};
use tenure::{
    CandidateId, Config, ElectionName, Elector, Error, LossReason, StoreElector,
    spi::{Backend, BackendErrorKind, EntryRequest},
    zookeeper::{FencedError, ZookeeperBackend, ZookeeperConfig},
};
use tenure_containers::{Lifetime, Version};
use tenure_testkit::{
    harness::Harness,
    suite::{until, within},
};
use tenure_tests::{Relay, Zookeeper, session_id};

fn backend(zookeeper: &Zookeeper, relay: &Relay) -> ZookeeperBackend {
    let config = ZookeeperConfig::new([relay.endpoint()]).root(zookeeper.root());
    ZookeeperBackend::new(config).unwrap()
}

fn elector(backend: &ZookeeperBackend, ttl: u64) -> StoreElector {
    let config = Config::new().with_ttl(Duration::from_secs(ttl));
    StoreElector::new(Arc::new(backend.clone()), config).unwrap()
}

fn request(nonce: u128) -> EntryRequest {
    EntryRequest {
        election: ElectionName::new("e").unwrap(),
        candidate: CandidateId::new("a").unwrap(),
        value: [].into(),
        nonce,
    }
}

/// Hazard Z3: on a reconnect the server puts a new session in the place of the old one, and says
/// nothing. Leadership is lost at once, and the next term is one of a new session, behind the old entry.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_session_that_is_silently_replaced_ends_its_leaderships() {
    for version in Version::ZOOKEEPER {
        let zookeeper = Zookeeper::new(version).await;
        let relay = Relay::start(zookeeper.server().endpoint()).await.unwrap();
        let backend = backend(&zookeeper, &relay);
        let elector = elector(&backend, 5);
        let first = within("leading", elector.campaign("e")).await.unwrap();
        relay.replace_sessions();
        relay.cut();
        let reason = within("the loss", first.lost()).await;
        assert_eq!(reason, LossReason::SessionExpired);
        let second = within("leading again", elector.campaign("e")).await.unwrap();
        assert!(second.fencing_token() > first.fencing_token());
        assert_ne!(second.entry(), first.entry());
        drop((first, second));
        elector.close().await;
    }
}

/// Hazard Z2: an entry that has our GUID and belongs to another session is never taken for ours.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_entry_of_another_session_is_not_ours() {
    let zookeeper = Zookeeper::new(Version::Zookeeper39).await;
    let backend = zookeeper.backend();
    let session = backend.open_session(Duration::from_secs(5)).await.unwrap();
    let first = session.enter(&request(1)).await.unwrap();
    assert!(first.leads.is_some());

    // A request that is sent and given up; what it makes is exchanged for another session's.
    let asked = request(4);
    assert!(futures::FutureExt::now_or_never(session.enter(&asked)).is_none());
    let parent = format!("{}/e", zookeeper.root());
    let mine = format!("c-{:032x}-", 4);
    let admin = zookeeper.server().admin();
    until("the request was carried out", async || {
        admin.children(&parent).await.unwrap().iter().any(|name| name.starts_with(&mine))
    })
    .await;
    let path =
        admin.children(&parent).await.unwrap().into_iter().find(|name| name.starts_with(&mine)).unwrap();
    let path = format!("{parent}/{path}");
    admin.delete(&path).await.unwrap();
    let mut other = admin.session().await.unwrap();
    other.create(&path, "", Lifetime::Ephemeral).await.unwrap();

    let refused = session.enter(&request(4)).await.unwrap_err();
    assert_eq!(refused.kind(), BackendErrorKind::SessionGone, "{refused}");
    other.close().await.unwrap();
    session.close().await.unwrap();
    backend.close().await;
}

/// Hazards Z6, Z7, Z11: connected, broken, connected, many times over, with events in between that no
/// watch of an older connection can tell of.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_happened_while_the_connection_was_broken_is_seen() {
    let zookeeper = Zookeeper::new(Version::Zookeeper39).await;
    let relay = Relay::start(zookeeper.server().endpoint()).await.unwrap();
    let unsteady = backend(&zookeeper, &relay);
    let (a, b) = (Arc::new(elector(&zookeeper.backend(), 5)), Arc::new(elector(&unsteady, 5)));
    for _ in 0..5 {
        let first = within("leading", a.campaign("e")).await.unwrap();
        let waiting = Arc::clone(&b);
        let waiting = tokio::spawn(async move { waiting.campaign("e").await });
        until("it waits", async || a.candidates("e").await.unwrap().len() == 2).await;
        for _ in 0..3 {
            let before = relay.connections();
            relay.cut();
            until("it is connected again", async || relay.connections() > before).await;
        }
        // The leader goes while the waiting one hears nothing.
        let resigned = tokio::spawn(first.resign());
        relay.cut();
        let second = within("the hand-over", waiting).await.unwrap().unwrap();
        resigned.await.unwrap().unwrap();
        let before = relay.connections();
        relay.cut();
        until("it is connected again", async || relay.connections() > before).await;
        let deadline = second.deadline();
        until("a heartbeat was confirmed", async || second.deadline() > deadline || !second.is_leader())
            .await;
        assert!(second.is_leader(), "{:?}", second.loss());
        second.resign().await.unwrap();
    }
    a.close().await;
    b.close().await;
}

/// Hazard Z13: nonsense on the connection ends the client's task or confuses its state; the session
/// goes on over another connection, and leadership is kept.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn nonsense_from_a_server_costs_a_connection_only() {
    let zookeeper = Zookeeper::new(Version::Zookeeper39).await;
    let relay = Relay::start(zookeeper.server().endpoint()).await.unwrap();
    let backend = backend(&zookeeper, &relay);
    let elector = elector(&backend, 5);
    let leadership = within("leading", elector.campaign("e")).await.unwrap();
    let frame = |body: &[u8]| [&u32::try_from(body.len()).unwrap().to_be_bytes()[..], body].concat();
    for nonsense in [
        frame(&[0; 16]),    // an answer to nothing
        frame(&[0xff; 16]), // a watch's event that is none
        frame(&[0; 3]),     // too short for a header
        frame(&[]),         // nothing
        vec![0xff; 64],     // a negative length
        frame(&[[0xff; 4], [0; 4], [0; 4], [0; 4], [0, 0, 0, 9], [0, 0, 0, 3], [0xff; 4]].concat()),
    ] {
        let before = relay.connections();
        relay.inject(nonsense.clone());
        let deadline = leadership.deadline();
        until("a heartbeat was confirmed", async || {
            leadership.deadline() > deadline || !leadership.is_leader()
        })
        .await;
        assert!(leadership.is_leader(), "{:?} after {nonsense:?}", leadership.loss());
        // Where it did no harm, the next one begins on a clean connection all the same.
        relay.cut();
        until("it is connected again", async || relay.connections() > before).await;
    }
    leadership.resign().await.unwrap();
    elector.close().await;
}

/// A TTL that the server does not grant is refused, saying what it grants and what can be done.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_ttl_that_the_server_changes_too_much_is_refused() {
    let zookeeper = Zookeeper::new(Version::Zookeeper39).await;
    // The tests' servers grant 1 s to 60 s.
    let asked = |settings: &str| format!("{}?{settings}", zookeeper.url());
    let elector = tenure::connect(&asked("ttl=5m&grace_period=1s")).await.unwrap();
    let refused = within("the refusal", elector.campaign("e")).await.unwrap_err();
    let Error::Refused(reason) = &refused else { panic!("{refused:?}") };
    let reason = reason.to_string();
    assert!(reason.contains("grants a session of 1m when 5m is asked for"), "{reason}");
    assert!(reason.contains("allowed are 2m 30s to 10m"), "{reason}");
    elector.close().await;

    let elector = tenure::connect(&asked("ttl=5m&grace_period=1s&min_ttl=30s&max_ttl=10m")).await.unwrap();
    let leadership = within("leading", elector.campaign("e")).await.unwrap();
    assert!(leadership.remaining() < Duration::from_secs(60), "by what was granted");
    drop(leadership);
    elector.close().await;
    until("nothing is left", async || zookeeper.remaining_state().await.is_empty()).await;
}

/// A fenced write is carried out while the leadership stands, and never after.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_fenced_write_is_made_by_the_leader_only() {
    for version in Version::ZOOKEEPER {
        let zookeeper = Zookeeper::new(version).await;
        let backend = zookeeper.backend();
        let elector = elector(&backend, 5);
        let leadership = within("leading", elector.campaign("e")).await.unwrap();
        let cursor = format!("{}/cursor", zookeeper.root());
        backend.fenced(&leadership).create(&cursor, "1").commit().await.unwrap();
        backend.fenced(&leadership).set(&cursor, "2", Some(0)).commit().await.unwrap();
        let refused = backend.fenced(&leadership).set(&cursor, "3", Some(0)).commit().await.unwrap_err();
        assert!(matches!(refused, FencedError::Refused { step: 1, .. }), "{refused}");

        let entry = leadership.entry().to_owned();
        let stale = leadership.handle();
        zookeeper.server().admin().delete(&entry).await.unwrap();
        let refused = backend.fenced(&stale).set(&cursor, "3", None).commit().await.unwrap_err();
        assert!(matches!(&refused, FencedError::NotLeader { entry: gone } if *gone == entry), "{refused}");
        let znode = zookeeper.server().admin().get(&cursor).await.unwrap().unwrap();
        assert_eq!((znode.data.as_slice(), znode.version), (&b"2"[..], 1));

        let next = within("leading again", elector.campaign("e")).await.unwrap();
        backend.fenced(&next).delete(&cursor, Some(1)).commit().await.unwrap();
        assert_eq!(zookeeper.server().admin().get(&cursor).await.unwrap(), None);
        drop((leadership, next));
        elector.close().await;
    }
}

/// Several elections share one session, and lose it together.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn elections_of_one_elector_share_a_session() {
    let zookeeper = Zookeeper::new(Version::Zookeeper39).await;
    let elector = elector(&zookeeper.backend(), 5);
    let mut terms = Vec::new();
    for n in 0..20 {
        terms.push(within("leading", elector.campaign(&format!("e{n}"))).await.unwrap());
    }
    let sessions: std::collections::BTreeSet<_> = {
        let mut sessions = Vec::new();
        for n in 0..20 {
            sessions.push(elector.leader(&format!("e{n}")).await.unwrap().unwrap().session);
        }
        sessions.into_iter().collect()
    };
    assert_eq!(sessions.len(), 1, "{sessions:?}");
    let session = sessions.into_iter().next().unwrap();
    zookeeper.server().admin().expire_session(session_id(&session)).await.unwrap();
    for term in &terms {
        within("the loss", term.lost()).await;
    }
    let again = within("leading again", elector.campaign("e0")).await.unwrap();
    assert!(again.fencing_token() > terms[0].fencing_token());
    drop((terms, again));
    elector.close().await;
}

/// A server with other bounds cuts a session's timeout as it resumes it: the store would let go before the
/// deadline. The leadership ends at once, and nobody leads beside it.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_session_that_is_cut_short_is_given_up() {
    let zookeeper = Zookeeper::new(Version::Zookeeper39).await;
    let relay = Relay::start(zookeeper.server().endpoint()).await.unwrap();
    let (a, b) = (elector(&backend(&zookeeper, &relay), 10), Arc::new(elector(&zookeeper.backend(), 10)));
    let first = within("leading", a.campaign("e")).await.unwrap();
    let waiting = Arc::clone(&b);
    let next = tokio::spawn(async move { waiting.campaign("e").await });
    until("it waits", async || b.candidates("e").await.unwrap().len() == 2).await;
    let deadline = first.deadline();
    until("a heartbeat was confirmed", async || first.deadline() > deadline).await;
    relay.ask_for(2_000);
    relay.cut();
    within("the loss", first.lost()).await;
    let second = within("the next leader", next).await.unwrap().unwrap();
    assert!(!first.is_leader() && second.is_leader());
    drop((first, second));
    drop(relay);
    a.close().await;
    b.close().await;
}

/// Hazard Z13: an ordinary reconnect panics nowhere, not even where that is caught: a process may be built to
/// abort.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_reconnect_panics_nowhere() {
    static PANICS: AtomicUsize = AtomicUsize::new(0);
    let usual = std::panic::take_hook();
    std::panic::set_hook(Box::new(move |panic| {
        PANICS.fetch_add(1, Relaxed);
        usual(panic);
    }));
    let zookeeper = Zookeeper::new(Version::Zookeeper39).await;
    let relay = Relay::start(zookeeper.server().endpoint()).await.unwrap();
    let elector = elector(&backend(&zookeeper, &relay), 5);
    let leadership = within("leading", elector.campaign("e")).await.unwrap();
    for _ in 0..20 {
        let before = relay.connections();
        relay.cut();
        until("it is connected again", async || relay.connections() > before).await;
        let candidates = within("reading", elector.candidates("e")).await.unwrap();
        assert_eq!(candidates.len(), 1);
    }
    assert!(leadership.is_leader(), "{:?}", leadership.loss());
    assert_eq!(PANICS.load(Relaxed), 0);
    leadership.resign().await.unwrap();
    elector.close().await;
}

/// A fenced write comes to an end when the store cannot be reached.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_fenced_write_waits_for_no_store() {
    let zookeeper = Zookeeper::new(Version::Zookeeper39).await;
    let relay = Relay::start(zookeeper.server().endpoint()).await.unwrap();
    let (elector, apart) = (elector(&zookeeper.backend(), 5), backend(&zookeeper, &relay));
    let leadership = within("leading", elector.campaign("e")).await.unwrap();
    let path = format!("{}/x", zookeeper.root());
    apart.fenced(&leadership).create(&path, "1").commit().await.unwrap();
    drop(relay);
    let refused = within("an answer", apart.fenced(&leadership).set(&path, "2", None).commit()).await;
    assert!(matches!(refused, Err(FencedError::Store(_))), "{refused:?}");
    leadership.resign().await.unwrap();
    elector.close().await;
}

/// Hazard Z2: somebody deletes the znode that a session writes its heartbeats to. The session is given up
/// though it lives, so that its entries have to go with it: whoever holds a handle keeps nobody waiting.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_session_that_is_given_up_is_ended_in_the_store() {
    let zookeeper = Zookeeper::new(Version::Zookeeper39).await;
    let (a, b) = (elector(&zookeeper.backend(), 4), elector(&zookeeper.backend(), 4));
    let first = within("leading", a.campaign("e")).await.unwrap();
    let handle = first.handle();
    let admin = zookeeper.server().admin();
    let sessions = format!("{}/~sessions", zookeeper.root());
    for session in admin.children(&sessions).await.unwrap() {
        admin.delete(&format!("{sessions}/{session}")).await.unwrap();
    }
    assert_eq!(within("the loss", first.lost()).await, LossReason::SessionExpired);
    drop(first);
    let second = within("the next leader", b.campaign("e")).await.unwrap();
    assert!(second.fencing_token() > handle.fencing_token() && !handle.is_leader());
    let stands = admin.get(handle.entry()).await.unwrap();
    assert_eq!(stands, None);
    drop(second);
    a.close().await;
    b.close().await;
}

/// An observer that nobody polls, in the middle of connecting, keeps an elector neither from answering nor from closing.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_observer_that_is_not_polled_holds_nobody_up() {
    let silent = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let config = ZookeeperConfig::new([silent.local_addr().unwrap().to_string()]);
    let elector = elector(&ZookeeperBackend::new(config).unwrap(), 5);
    let mut leaders = elector.observe("e");
    assert!(leaders.next().now_or_never().is_none());
    within("closing", elector.close()).await;
    drop(leaders);

    let zookeeper = Zookeeper::new(Version::Zookeeper39).await;
    let elector = self::elector(&zookeeper.backend(), 5);
    let mut leaders = elector.observe("e");
    assert!(leaders.next().now_or_never().is_none());
    assert_eq!(within("an answer", elector.leader("e")).await.unwrap(), None);
    within("closing", elector.close()).await;
    drop(leaders);
}

/// A stranger's znode at the path at which nothing should be, childless or not: sessions are resumed all the same, and it stays.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_strangers_znode_keeps_no_session_from_going_on() {
    let zookeeper = Zookeeper::new(Version::Zookeeper39).await;
    let relay = Relay::start(zookeeper.server().endpoint()).await.unwrap();
    let elector = elector(&backend(&zookeeper, &relay), 5);
    let leadership = within("leading", elector.campaign("e")).await.unwrap();
    let admin = zookeeper.server().admin();
    let nowhere = format!("{}/~nowhere", zookeeper.root());
    for path in [nowhere.clone(), format!("{nowhere}/x")] {
        admin.create(&path, "a stranger's").await.unwrap();
        let before = relay.connections();
        relay.cut();
        until("it is connected again", async || relay.connections() > before).await;
        let deadline = leadership.deadline();
        let renewed = async || leadership.deadline() > deadline || !leadership.is_leader();
        until("a heartbeat was confirmed", renewed).await;
        assert!(leadership.is_leader(), "{path}: {:?}", leadership.loss());
        assert!(admin.get(&path).await.unwrap().is_some(), "{path} is not ours to delete");
    }
    drop(leadership);
    elector.close().await;
}
