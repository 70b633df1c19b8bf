//! The requests of the etcd backend: what each must do for the engine.

use std::time::Duration;

use tenure::{
    CandidateId, ElectionName,
    etcd::{EtcdBackend, EtcdConfig},
    spi::{Backend, BackendErrorKind, EntryEvent, EntryRequest},
};
use tenure_containers::Version;
use tenure_testkit::{harness::Harness, suite::within};
use tenure_tests::Etcd;

fn request(nonce: u128) -> EntryRequest {
    EntryRequest {
        election: ElectionName::new("e").unwrap(),
        candidate: CandidateId::new("a").unwrap(),
        value: b"value".as_slice().into(),
        nonce,
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
        let session = backend.open_session(Duration::from_secs(5)).await.unwrap();
        let first = session.enter(&request(1)).await.unwrap();
        assert_eq!(session.enter(&request(1)).await.unwrap(), first, "the same request finds its entry");

        let refused = session.enter(&request(2)).await.unwrap_err();
        assert_eq!(refused.kind(), BackendErrorKind::Unavailable, "{refused}");
        let second = session.enter(&request(2)).await.unwrap();
        assert!(second.leads > first.leads && second.entry.version > first.entry.version);

        for _ in 0..3 {
            session.leave(&request(1), None).await.unwrap();
        }
        let updated = EntryRequest { value: b"another".as_slice().into(), ..request(2) };
        session.update(&second.entry, &updated).await.unwrap();
        assert_eq!(session.enter(&request(2)).await.unwrap().entry, second.entry, "also with a new value");
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
    let session = backend.open_session(Duration::from_secs(5)).await.unwrap();
    let entered = session.enter(&request(1)).await.unwrap();
    backend.request_resign(&request(1).election).await.unwrap().unwrap();
    let updated = EntryRequest { value: b"another".as_slice().into(), ..request(1) };
    session.update(&entered.entry, &updated).await.unwrap();
    let leader = backend.leader(&request(1).election).await.unwrap().unwrap();
    assert_eq!(leader.value, b"another");
    let mut watcher = session.entry_watcher();
    watcher.add(7, &entered.entry);
    let event = within("the resign request", watcher.next()).await.unwrap();
    assert_eq!(event, (7, EntryEvent::ResignRequested));
    drop(watcher);
    session.close().await.unwrap();
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
        let session = backend.open_session(Duration::from_secs(5)).await.unwrap();
        assert!(ids.insert(session.id()), "{}", session.id());
        sessions.push(session);
    }
    for session in sessions {
        session.close().await.unwrap();
    }
    backend.close().await;
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
