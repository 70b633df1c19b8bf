//! ZooKeeper's sessions: replaced, resumed, expired, and granted with another timeout than requested.

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
use tenure_containers::{CreateMode, Version, ZookeeperServer, ZookeeperSettings};
use tenure_testkit::{
    harness::Harness,
    suite::{until, within},
};
use tenure_tests::{Zookeeper, ZookeeperProxy, session_id, session_options};

fn backend(zookeeper: &Zookeeper, proxy: &ZookeeperProxy) -> ZookeeperBackend {
    let config = ZookeeperConfig::new([proxy.endpoint()]).root(zookeeper.root());
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

/// Hazard Z3: on a reconnect the server silently replaces the session with a new one. Leadership is lost at once, and the next
/// term belongs to a new session, whose entry is behind the old one.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_session_that_is_silently_replaced_ends_its_leaderships() {
    for version in Version::ZOOKEEPER {
        let zookeeper = Zookeeper::new(version).await;
        let proxy = ZookeeperProxy::start(zookeeper.server().endpoint()).await.unwrap();
        let backend = backend(&zookeeper, &proxy);
        let elector = elector(&backend, 5);
        let first = within("leading", elector.campaign("e")).await.unwrap();
        proxy.replace_sessions();
        proxy.cut();
        let reason = within("the loss", first.lost()).await;
        assert_eq!(reason, LossReason::SessionExpired);
        let second = within("leading again", elector.campaign("e")).await.unwrap();
        assert!(second.fencing_token() > first.fencing_token());
        assert_ne!(second.entry(), first.entry());
        drop((first, second));
        elector.close().await;
    }
}

/// Hazard Z2: an entry with the request's GUID that belongs to another session is never taken over.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_entry_of_another_session_is_never_taken_over() {
    let zookeeper = Zookeeper::new(Version::Zookeeper39).await;
    let backend = zookeeper.backend();
    let session = backend.open_session(&session_options(Duration::from_secs(5))).await.unwrap();
    let first = session.enter(&request(1)).await.unwrap();
    assert!(first.token().is_some());

    // A request is sent and dropped; its entry is replaced with one of another session.
    let dropped = request(4);
    // On a busy machine the answer may be there already.
    drop(futures::FutureExt::now_or_never(session.enter(&dropped)));
    let parent = format!("{}/e", zookeeper.root());
    let name_prefix = format!("c-{:032x}-", 4);
    let admin = zookeeper.server().admin();
    until("the request was executed", async || {
        admin.children(&parent).await.unwrap().iter().any(|name| name.starts_with(&name_prefix))
    })
    .await;
    let path = admin
        .children(&parent)
        .await
        .unwrap()
        .into_iter()
        .find(|name| name.starts_with(&name_prefix))
        .unwrap();
    let path = format!("{parent}/{path}");
    admin.delete(&path).await.unwrap();
    let mut other = admin.session().await.unwrap();
    other.create(&path, "", CreateMode::Ephemeral).await.unwrap();

    let refused = session.enter(&request(4)).await.unwrap_err();
    assert_eq!(refused.kind(), BackendErrorKind::SessionGone, "{refused}");
    other.close().await.unwrap();
    session.close().await.unwrap();
    backend.close().await;
}

/// Hazards Z6, Z7, Z11: the connection breaks many times, and changes happen in between that watches of the old connection
/// cannot report.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn changes_during_a_broken_connection_are_noticed() {
    let zookeeper = Zookeeper::new(Version::Zookeeper39).await;
    let proxy = ZookeeperProxy::start(zookeeper.server().endpoint()).await.unwrap();
    let unstable = backend(&zookeeper, &proxy);
    let (a, b) = (Arc::new(elector(&zookeeper.backend(), 5)), Arc::new(elector(&unstable, 5)));
    for _ in 0..5 {
        let first = within("leading", a.campaign("e")).await.unwrap();
        let waiting = Arc::clone(&b);
        let waiting = tokio::spawn(async move { waiting.campaign("e").await });
        until("it waits", async || a.candidates("e").await.unwrap().len() == 2).await;
        for _ in 0..3 {
            let before = proxy.connections();
            proxy.cut();
            until("it is connected again", async || proxy.connections() > before).await;
        }
        // The leader resigns while the waiting candidate is disconnected.
        let resigned = tokio::spawn(first.resign());
        proxy.cut();
        let second = within("the handover", waiting).await.unwrap().unwrap();
        resigned.await.unwrap().unwrap();
        let before = proxy.connections();
        proxy.cut();
        until("it is connected again", async || proxy.connections() > before).await;
        let deadline = second.deadline();
        until("a heartbeat was confirmed", async || second.deadline() > deadline || !second.is_leader())
            .await;
        assert!(second.is_leader(), "{:?}", second.loss());
        second.resign().await.unwrap();
    }
    a.close().await;
    b.close().await;
}

/// Hazard Z13: garbage on the connection ends the client's task or corrupts its state. The session continues on another
/// connection, and leadership is kept.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn garbage_from_a_server_costs_only_a_connection() {
    let zookeeper = Zookeeper::new(Version::Zookeeper39).await;
    let proxy = ZookeeperProxy::start(zookeeper.server().endpoint()).await.unwrap();
    let backend = backend(&zookeeper, &proxy);
    let elector = elector(&backend, 5);
    let leadership = within("leading", elector.campaign("e")).await.unwrap();
    let frame = |body: &[u8]| [&u32::try_from(body.len()).unwrap().to_be_bytes()[..], body].concat();
    for garbage in [
        frame(&[0; 16]),    // a response without a request
        frame(&[0xff; 16]), // an invalid watch event
        frame(&[0; 3]),     // too short for a header
        frame(&[]),         // an empty frame
        vec![0xff; 64],     // a negative length
        frame(&[[0xff; 4], [0; 4], [0; 4], [0; 4], [0, 0, 0, 9], [0, 0, 0, 3], [0xff; 4]].concat()),
    ] {
        let before = proxy.connections();
        proxy.inject(garbage.clone());
        let deadline = leadership.deadline();
        until("a heartbeat was confirmed", async || {
            leadership.deadline() > deadline || !leadership.is_leader()
        })
        .await;
        assert!(leadership.is_leader(), "{:?} after {garbage:?}", leadership.loss());
        // The next one starts on a new connection in any case.
        proxy.cut();
        until("it is connected again", async || proxy.connections() > before).await;
    }
    leadership.resign().await.unwrap();
    elector.close().await;
}

/// A TTL that the server does not grant is refused. The error says what the server grants and what can be done.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_ttl_that_the_server_changes_too_much_is_refused() {
    let zookeeper = Zookeeper::new(Version::Zookeeper39).await;
    // Servers in tests grant 1 s to 60 s.
    let url = |settings: &str| format!("{}?{settings}", zookeeper.url());
    let elector = tenure::connect(&url("ttl=5m&grace_period=1s")).await.unwrap();
    let refused = within("the refusal", elector.campaign("e")).await.unwrap_err();
    let Error::Refused(reason) = &refused else { panic!("{refused:?}") };
    let reason = reason.to_string();
    assert!(reason.contains("grants a session of 1m when 5m is asked for"), "{reason}");
    assert!(reason.contains("allowed are 2m 30s to 10m"), "{reason}");
    elector.close().await;

    let elector = tenure::connect(&url("ttl=5m&grace_period=1s&min_ttl=30s&max_ttl=10m")).await.unwrap();
    let leadership = within("leading", elector.campaign("e")).await.unwrap();
    assert!(leadership.remaining() < Duration::from_secs(60), "the deadline follows the granted timeout");
    drop(leadership);
    elector.close().await;
    until("nothing is left", async || zookeeper.remaining_state().await.is_empty()).await;
}

/// A fenced write is executed while the leadership is valid, and never afterwards.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn only_the_leader_makes_a_fenced_write() {
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

/// The elections of one elector share a session and lose it together.
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

/// A server with a lower limit shortens a session's timeout when it resumes the session: the store would expire the session
/// before the deadline. Leadership ends at once, before the next candidate leads.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_session_with_a_shortened_timeout_is_abandoned() {
    let zookeeper = Zookeeper::new(Version::Zookeeper39).await;
    let proxy = ZookeeperProxy::start(zookeeper.server().endpoint()).await.unwrap();
    let (a, b) = (elector(&backend(&zookeeper, &proxy), 10), Arc::new(elector(&zookeeper.backend(), 10)));
    let first = within("leading", a.campaign("e")).await.unwrap();
    let waiting = Arc::clone(&b);
    let next = tokio::spawn(async move { waiting.campaign("e").await });
    until("it waits", async || b.candidates("e").await.unwrap().len() == 2).await;
    let deadline = first.deadline();
    until("a heartbeat was confirmed", async || first.deadline() > deadline).await;
    proxy.override_session_timeout(2_000);
    proxy.cut();
    within("the loss", first.lost()).await;
    let second = within("the next leader", next).await.unwrap().unwrap();
    assert!(!first.is_leader() && second.is_leader());
    drop((first, second));
    drop(proxy);
    a.close().await;
    b.close().await;
}

/// Hazard Z13: an ordinary reconnect causes no panic, not even one that is caught: a process may be built to abort on panic.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_reconnect_panics_nowhere() {
    static PANICS: AtomicUsize = AtomicUsize::new(0);
    let default_hook = std::panic::take_hook();
    std::panic::set_hook(Box::new(move |panic| {
        PANICS.fetch_add(1, Relaxed);
        default_hook(panic);
    }));
    let zookeeper = Zookeeper::new(Version::Zookeeper39).await;
    let proxy = ZookeeperProxy::start(zookeeper.server().endpoint()).await.unwrap();
    let elector = elector(&backend(&zookeeper, &proxy), 5);
    let leadership = within("leading", elector.campaign("e")).await.unwrap();
    for _ in 0..20 {
        let before = proxy.connections();
        proxy.cut();
        until("it is connected again", async || proxy.connections() > before).await;
        let candidates = within("reading", elector.candidates("e")).await.unwrap();
        assert_eq!(candidates.len(), 1);
    }
    assert!(leadership.is_leader(), "{:?}", leadership.loss());
    assert_eq!(PANICS.load(Relaxed), 0);
    leadership.resign().await.unwrap();
    elector.close().await;
}

/// A fenced write fails when the store cannot be reached.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_fenced_write_fails_without_a_store() {
    let zookeeper = Zookeeper::new(Version::Zookeeper39).await;
    let proxy = ZookeeperProxy::start(zookeeper.server().endpoint()).await.unwrap();
    let (elector, proxied) = (elector(&zookeeper.backend(), 5), backend(&zookeeper, &proxy));
    let leadership = within("leading", elector.campaign("e")).await.unwrap();
    let path = format!("{}/x", zookeeper.root());
    proxied.fenced(&leadership).create(&path, "1").commit().await.unwrap();
    drop(proxy);
    let refused = within("the error", proxied.fenced(&leadership).set(&path, "2", None).commit()).await;
    assert!(matches!(refused, Err(FencedError::Store(_))), "{refused:?}");
    leadership.resign().await.unwrap();
    elector.close().await;
}

/// An observer that is not polled while it connects blocks neither other requests of its elector nor `close`.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_unpolled_observer_blocks_no_other_request() {
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

/// A foreign znode, with or without children, at the path that is expected not to exist: sessions are resumed nevertheless, and
/// the znode stays.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_foreign_znode_does_not_prevent_session_resumption() {
    let zookeeper = Zookeeper::new(Version::Zookeeper39).await;
    let proxy = ZookeeperProxy::start(zookeeper.server().endpoint()).await.unwrap();
    let elector = elector(&backend(&zookeeper, &proxy), 5);
    let leadership = within("leading", elector.campaign("e")).await.unwrap();
    let admin = zookeeper.server().admin();
    let nowhere = format!("{}/~nowhere", zookeeper.root());
    for path in [nowhere.clone(), format!("{nowhere}/x")] {
        admin.create(&path, "foreign").await.unwrap();
        let before = proxy.connections();
        proxy.cut();
        until("it is connected again", async || proxy.connections() > before).await;
        let deadline = leadership.deadline();
        let renewed = async || leadership.deadline() > deadline || !leadership.is_leader();
        until("a heartbeat was confirmed", renewed).await;
        assert!(leadership.is_leader(), "{path}: {:?}", leadership.loss());
        assert!(admin.get(&path).await.unwrap().is_some(), "{path} is foreign and not deleted");
    }
    drop(leadership);
    elector.close().await;
}

/// Hazard Z22: a server that has as many connections of this client as it allows closes the next one at once. The error says so.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_server_that_allows_no_more_connections_is_named() {
    let settings = ZookeeperSettings::default().set("maxClientCnxns", "2");
    let server = ZookeeperServer::start_with(Version::Zookeeper39, &settings).await.unwrap();
    let backend = ZookeeperBackend::new(ZookeeperConfig::new([server.endpoint()])).unwrap();
    let options = session_options(Duration::from_secs(5));
    let held = (server.admin().session().await.unwrap(), server.admin().session().await.unwrap());
    let refused = backend.open_session(&options).await.unwrap_err();
    assert_eq!(refused.kind(), BackendErrorKind::Unavailable);
    let text = refused.to_string();
    assert!(text.contains(&server.endpoint()) && text.contains("maxClientCnxns"), "{text}");
    held.0.close().await.unwrap();
    let session = within("an open session", async {
        loop {
            if let Ok(session) = backend.open_session(&options).await {
                break session;
            }
        }
    });
    session.await.close().await.unwrap();
    held.1.close().await.unwrap();
}
