//! The requests of the etcd backend: what each must do for the engine.

use std::{
    future::poll_fn,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering::SeqCst},
    },
    time::Duration,
};

use futures::future::join_all;

use tenure::{
    CandidateId, ElectionName,
    etcd::{EtcdBackend, EtcdConfig},
    spi::{Backend, BackendErrorKind, BackendSession, Entered, EntryEvent, EntryRequest, QueuePosition, Won},
};
use tenure_containers::{EtcdServer, Version};
use tenure_testkit::{
    harness::Harness,
    suite::{until, within},
};
use tenure_tests::{Etcd, session_options};

fn request(nonce: u128) -> EntryRequest {
    EntryRequest {
        election: ElectionName::new("e").unwrap(),
        candidate: CandidateId::new("a").unwrap(),
        value: b"value".as_slice().into(),
        nonce,
    }
}

async fn open_session(backend: &EtcdBackend) -> Box<dyn BackendSession> {
    backend.open_session(&session_options(Duration::from_secs(5))).await.unwrap()
}

/// Enters an election in which nobody else is.
async fn win(session: &dyn BackendSession, request: &EntryRequest) -> Won {
    match session.enter(request).await.unwrap() {
        Entered::Leads(won) => won,
        other => panic!("{other:?}"),
    }
}

/// Hazard G14: a new request removes the entry of an earlier one instead of taking it over. Repeated withdrawals of the
/// earlier request do not touch the later request's entry.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_request_never_takes_over_the_entry_of_another() {
    for version in Version::ETCD {
        let etcd = Etcd::new(version).await;
        let config = EtcdConfig::new([etcd.server().endpoint()]).prefix(etcd.prefix());
        let backend = EtcdBackend::new(config).unwrap();
        let session = open_session(&backend).await;
        let first = win(&*session, &request(1)).await;
        assert_eq!(win(&*session, &request(1)).await, first, "the same request finds its entry");

        let refused = session.enter(&request(2)).await.unwrap_err();
        assert_eq!(refused.kind(), BackendErrorKind::Unavailable, "{refused}");
        let second = win(&*session, &request(2)).await;
        assert!(second.token > first.token && second.entry.version > first.entry.version);

        for _ in 0..3 {
            session.leave(&request(1), None).await.unwrap();
        }
        let updated = EntryRequest { value: b"another".as_slice().into(), ..request(2) };
        session.update(&second.entry, &updated).await.unwrap();
        assert_eq!(win(&*session, &request(2)).await.entry, second.entry, "also with a new value");
        session.leave(&request(2), Some(&second.entry)).await.unwrap();
        session.leave(&request(2), Some(&second.entry)).await.unwrap();
        session.close().await.unwrap();
        session.close().await.unwrap();
        backend.close().await;
        assert!(etcd.remaining_state().await.is_empty());
    }
}

/// A resign request stays when the leader writes a new value before it has received the request.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_new_value_keeps_the_resign_request() {
    let etcd = Etcd::new(Version::Etcd35).await;
    let config = EtcdConfig::new([etcd.server().endpoint()]).prefix(etcd.prefix());
    let backend = EtcdBackend::new(config).unwrap();
    let session = open_session(&backend).await;
    let won = win(&*session, &request(1)).await;
    backend.request_resign(&request(1).election).await.unwrap().unwrap();
    let updated = EntryRequest { value: b"another".as_slice().into(), ..request(1) };
    session.update(&won.entry, &updated).await.unwrap();
    let leader = backend.leader(&request(1).election).await.unwrap().unwrap();
    assert_eq!(leader.value, b"another");
    let mut watcher = session.entry_watcher();
    watcher.add(7, &won.entry);
    let event = within("the resign request", poll_fn(|context| watcher.poll_next(context))).await.unwrap();
    assert_eq!(event, (7, EntryEvent::ResignRequested));
    drop(watcher);
    session.close().await.unwrap();
    backend.close().await;
}

/// Hazards G12, E2: a heartbeat looks for an entry of the session. When it is gone, the watcher and the waiting call learn of it.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_heartbeat_finds_that_an_entry_is_gone() {
    for version in Version::ETCD {
        let etcd = Etcd::new(version).await;
        let config = EtcdConfig::new([etcd.server().endpoint()]).prefix(etcd.prefix());
        let backend = EtcdBackend::new(config).unwrap();
        let (leader, waiting) = (open_session(&backend).await, open_session(&backend).await);
        let won = win(&*leader, &request(1)).await;
        let Entered::Queued { entry: Some(queued) } = waiting.enter(&request(2)).await.unwrap() else {
            panic!("the first candidate leads");
        };
        leader.heartbeat().await.unwrap();
        waiting.heartbeat().await.unwrap();
        let client = etcd_client::Client::connect([etcd.server().endpoint()], None).await.unwrap();
        for key in [&won.entry.key, &queued.key] {
            client.kv_client().delete(&**key, None).await.unwrap();
        }
        leader.heartbeat().await.unwrap();
        waiting.heartbeat().await.unwrap();
        // Both were found missing before anybody watched or waited.
        let mut watcher = leader.entry_watcher();
        watcher.add(1, &won.entry);
        let event = within("the deletion", poll_fn(|context| watcher.poll_next(context))).await.unwrap();
        assert_eq!(event, (1, EntryEvent::Deleted));
        let position = QueuePosition::new(|_| {});
        let second = request(2);
        let wait = waiting.wait_turn(&second, Some(&queued), &position);
        let gone = within("the end of the wait", wait).await.unwrap_err();
        assert_eq!(gone.kind(), BackendErrorKind::EntryGone, "{gone}");
        drop(watcher);
        leader.close().await.unwrap();
        waiting.close().await.unwrap();
        backend.close().await;
    }
}

/// A waiting candidate says whether it is next in line, and before it waits as the next one.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_waiting_candidate_says_when_it_is_next() {
    let etcd = Etcd::new(Version::Etcd35).await;
    let config = EtcdConfig::new([etcd.server().endpoint()]).prefix(etcd.prefix());
    let backend = EtcdBackend::new(config).unwrap();
    let mut sessions = Vec::new();
    let mut entries = Vec::new();
    for nonce in 1..=3 {
        let session = open_session(&backend).await;
        entries.push(match session.enter(&request(nonce)).await.unwrap() {
            Entered::Leads(won) if nonce == 1 => won.entry,
            Entered::Queued { entry: Some(entry) } if nonce > 1 => entry,
            other => panic!("{other:?}"),
        });
        sessions.push(session);
    }
    let (changes, mut changed) = tokio::sync::mpsc::unbounded_channel();
    let position = QueuePosition::new(move |is_next| changes.send(is_next).unwrap());
    let third = request(3);
    let mut wait = sessions[2].wait_turn(&third, Some(&entries[2]), &position);
    tokio::select! {
        _ = &mut wait => panic!("it does not lead"),
        is_next = within("the third one", changed.recv()) => assert_eq!(is_next, Some(false)),
    }
    sessions[1].leave(&request(2), Some(&entries[1])).await.unwrap();
    tokio::select! {
        _ = &mut wait => panic!("it does not lead"),
        is_next = within("the second one", changed.recv()) => assert_eq!(is_next, Some(true)),
    }
    sessions[0].leave(&request(1), Some(&entries[0])).await.unwrap();
    let won = within("leading", wait).await.unwrap();
    assert_eq!(won.entry, entries[2]);
    for session in sessions {
        session.keep_alive().await.unwrap();
        session.close().await.unwrap();
        let gone = session.keep_alive().await.unwrap_err();
        assert_eq!(gone.kind(), BackendErrorKind::SessionGone, "{gone}");
    }
    backend.close().await;
}

/// Hazard E13: every session has a lease of its own.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn two_sessions_never_share_a_lease() {
    let etcd = Etcd::new(Version::Etcd35).await;
    let config = EtcdConfig::new([etcd.server().endpoint()]).prefix(etcd.prefix());
    let backend = EtcdBackend::new(config).unwrap();
    let mut ids = std::collections::BTreeSet::new();
    let mut sessions = Vec::new();
    for _ in 0..20 {
        let session = open_session(&backend).await;
        assert!(ids.insert(session.id()), "{}", session.id());
        sessions.push(session);
    }
    for session in sessions {
        session.close().await.unwrap();
    }
    backend.close().await;
}

/// How many transactions the server has received since it started.
async fn transactions(server: &EtcdServer) -> usize {
    let client = reqwest::Client::builder().no_proxy().build().unwrap();
    let metrics = client.get(format!("http://{}/metrics", server.endpoint())).send().await.unwrap();
    let metrics = metrics.text().await.unwrap();
    let counted = metrics.lines().filter(|line| {
        line.starts_with("grpc_server_started_total{") && line.contains("grpc_method=\"Txn\"")
    });
    counted.map(|line| line.rsplit_once(' ').unwrap().1.parse::<usize>().unwrap()).sum()
}

/// Hazard E19: requests to enter that time out while the server is stalled, and are repeated, still share transactions.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn repeated_requests_share_transactions() {
    const ELECTIONS: usize = 2_000;
    for version in Version::ETCD {
        let server = EtcdServer::start(version).await.unwrap_or_else(|error| panic!("{error}"));
        let backend = EtcdBackend::new(EtcdConfig::new([server.endpoint()]).prefix("/acme")).unwrap();
        let options = session_options(Duration::from_secs(60));
        let session: Arc<dyn BackendSession> = Arc::from(backend.open_session(&options).await.unwrap());
        let before = transactions(&server).await;
        let stalled = server.pause().await.unwrap();
        let repeated = Arc::new(AtomicUsize::new(0));
        let entering: Vec<_> = (0..ELECTIONS)
            .map(|n| {
                let (session, repeated) = (Arc::clone(&session), Arc::clone(&repeated));
                let election = ElectionName::new(&format!("e-{n}")).unwrap();
                let request = EntryRequest { election, ..request(n as u128) };
                tokio::spawn(async move {
                    let limit = Duration::from_secs(1);
                    loop {
                        match tokio::time::timeout(limit, session.enter(&request)).await {
                            Ok(Ok(Entered::Leads(won))) => return won,
                            Ok(Ok(other)) => panic!("{other:?}"),
                            Ok(Err(error)) => assert!(error.is_retryable(), "{error}"),
                            Err(_) => drop(repeated.fetch_add(1, SeqCst)),
                        }
                    }
                })
            })
            .collect();
        until("every request was repeated", async || repeated.load(SeqCst) >= 2 * ELECTIONS).await;
        stalled.heal().await.unwrap();
        let won = within("all have entered", join_all(entering)).await;
        assert!(won.into_iter().all(|won| won.is_ok()));
        assert_eq!(server.admin().list("/acme/").await.unwrap().len(), ELECTIONS, "{version:?}");
        let sent = transactions(&server).await - before;
        // Each alone would be two thousand, or more.
        assert!(sent < ELECTIONS / 2, "{version:?}: {sent} transactions");
        session.close().await.unwrap();
        backend.close().await;
    }
}

/// Promise S2, enforced by etcd: the transaction from the guide commits only while the leadership is valid.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_transaction_that_compares_the_entry_is_fenced() {
    use etcd_client::{Client, Compare, CompareOp, Txn, TxnOp};
    use tenure::LeadershipHandle;

    async fn set_cursor(client: &Client, leadership: &LeadershipHandle, key: &str, cursor: &str) -> bool {
        let token = i64::try_from(leadership.fencing_token().get()).unwrap();
        let txn = Txn::new()
            .when([Compare::create_revision(leadership.entry(), CompareOp::Equal, token)])
            .and_then([TxnOp::put(key, cursor, None)]);
        client.kv_client().txn(txn).await.unwrap().succeeded()
    }

    for version in Version::ETCD {
        let etcd = Etcd::new(version).await;
        let endpoint = etcd.server().endpoint();
        let client = Client::connect([format!("http://{endpoint}")], None).await.unwrap();
        let key = format!("cursor-{:016x}", fastrand::u64(..));
        let elector = tenure::connect(&etcd.url()).await.unwrap();
        let first = elector.campaign("e").await.unwrap();
        let old = first.handle();
        assert!(set_cursor(&client, &old, &key, "1").await, "{version:?}");
        first.resign().await.unwrap();
        assert!(!set_cursor(&client, &old, &key, "2").await, "{version:?}: nobody leads");
        let second = elector.campaign("e").await.unwrap();
        assert!(
            !set_cursor(&client, &old, &key, "2").await,
            "{version:?}: its successor has an entry with the same key"
        );
        assert!(set_cursor(&client, &second, &key, "3").await, "{version:?}");
        let found = client.kv_client().get(key.as_str(), None).await.unwrap();
        assert_eq!(found.kvs()[0].value(), b"3");
        client.kv_client().delete(key.as_str(), None).await.unwrap();
        second.resign().await.unwrap();
        elector.close().await;
    }
}
