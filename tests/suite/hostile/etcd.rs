//! Foreign keys in an election on etcd.

use std::sync::Arc;

use etcd_client::{Client, GetOptions, PutOptions, Txn, TxnOp};
use tenure::{
    Elector, Error,
    etcd::{EtcdBackend, EtcdConfig},
};
use tenure_containers::Version;
use tenure_testkit::suite::until;
use tenure_tests::Etcd;

use crate::{assert_peak_memory_mib, elector, foreign_payloads, ids, is_printable, leader, names, promptly};

/// An election `e`, and a client that writes foreign keys to it.
pub(crate) struct TestElection {
    pub(crate) etcd: Etcd,
    client: Client,
}

impl TestElection {
    pub(crate) async fn new() -> Self {
        let etcd = Etcd::new(Version::Etcd35).await;
        let client = Client::connect([etcd.server().endpoint()], None).await.unwrap();
        Self { etcd, client }
    }

    pub(crate) fn backend(&self) -> Arc<EtcdBackend> {
        let config = EtcdConfig::new([self.etcd.server().endpoint()]).prefix(self.etcd.prefix());
        Arc::new(EtcdBackend::new(config).unwrap())
    }

    /// The key with this name in the election.
    fn key(&self, name: impl AsRef<[u8]>) -> Vec<u8> {
        [self.etcd.prefix().as_bytes(), b"/e/", name.as_ref()].concat()
    }

    /// Writes keys, a hundred in a transaction.
    async fn put(&self, keys: impl IntoIterator<Item = Vec<u8>>, value: &[u8], lease: i64) {
        let puts =
            keys.into_iter().map(|key| TxnOp::put(key, value, Some(PutOptions::new().with_lease(lease))));
        let puts: Vec<_> = puts.collect();
        for some in puts.chunks(100) {
            self.client.kv_client().txn(Txn::new().and_then(some)).await.unwrap();
        }
    }

    /// Enters as another library's candidate: creates a lease, and a key named after it.
    pub(crate) async fn enter(&self, value: &[u8]) -> i64 {
        let lease = self.client.lease_client().grant(600, None).await.unwrap().id();
        self.put([self.key(format!("{lease:x}"))], value, lease).await;
        lease
    }

    pub(crate) async fn leave(&self, lease: i64) {
        self.client.lease_client().revoke(lease).await.unwrap();
    }

    /// The number of keys in the election. Asserts that none was modified since it was created.
    async fn count_unmodified(&self) -> usize {
        let options = GetOptions::new().with_prefix().with_keys_only();
        let mut found = self.client.kv_client().get(self.key(""), Some(options)).await.unwrap();
        let found = found.take_kvs();
        assert!(found.iter().all(|kv| kv.mod_revision() == kv.create_revision()));
        found.len()
    }
}

/// A candidate leads, and another waits and leads next, however many foreign keys there are.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn thousands_of_foreign_keys_on_etcd_stop_no_candidate() {
    let election = TestElection::new().await;
    let foreign = |from: usize| {
        (from..from + 5000).map(|n| election.key(format!("foreign-{n:05}"))).collect::<Vec<_>>()
    };
    election.put(foreign(0), b"foreign", 0).await;
    let backend = election.backend();
    let (a, b) = (elector(election.backend(), "a"), elector(Arc::clone(&backend), "b"));
    let first = promptly("leading among foreign keys", a.campaign("e")).await.unwrap();
    election.put(foreign(5000), b"foreign", 0).await;
    let waiting = {
        let b = Arc::clone(&b);
        tokio::spawn(async move { b.campaign("e").await })
    };
    until("b waits", async || ids(&*b).await == ["a", "b"]).await;
    assert_eq!(leader(&*b).await.unwrap().id, "a");
    election.put(foreign(10_000), b"foreign", 0).await;
    promptly("resigning", first.resign()).await.unwrap();
    let next = promptly("the handover", waiting).await.unwrap().unwrap();
    assert!(next.is_leader());
    assert_eq!(leader(&*a).await.unwrap().id, "b");
    assert!(backend.foreign_entries_seen() >= 5000, "{} were counted", backend.foreign_entries_seen());
    promptly("resigning", next.resign()).await.unwrap();
    assert_eq!(leader(&*a).await, None, "no foreign key leads");
    promptly("closing", async {
        a.close().await;
        b.close().await
    })
    .await;
    assert_eq!(election.count_unmodified().await, 15_000, "no foreign key was deleted");
    assert_peak_memory_mib(128);
}

/// The values of foreign keys are not read.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn huge_foreign_values_on_etcd_are_not_read() {
    let election = TestElection::new().await;
    let value = vec![b'x'; 1 << 20];
    for n in 0..80 {
        election.put([election.key(format!("foreign-{n}"))], &value, 0).await;
    }
    drop(value);
    let [a, b] = ["a", "b"].map(|id| elector(election.backend(), id));
    assert_eq!(leader(&*b).await, None);
    let first = promptly("leading", a.campaign("e")).await.unwrap();
    assert_eq!(leader(&*b).await.unwrap().id, "a");
    assert!(promptly("trying", b.try_campaign("e")).await.unwrap().is_none());
    let waiting = {
        let b = Arc::clone(&b);
        tokio::spawn(async move { b.campaign("e").await })
    };
    until("b waits", async || {
        let options = GetOptions::new().with_prefix().with_count_only();
        election.client.kv_client().get(election.key(""), Some(options)).await.unwrap().count() == 82
    })
    .await;
    promptly("resigning", first.resign()).await.unwrap();
    drop(promptly("the handover", waiting).await.unwrap().unwrap());
    assert_peak_memory_mib(48);
}

/// Candidates of other libraries may have any value: they are waited for and listed.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn candidates_on_etcd_with_garbage_for_values_are_waited_for_and_shown() {
    let election = TestElection::new().await;
    let candidate = elector(election.backend(), "candidate");
    let mut ahead = Vec::new();
    for payload in foreign_payloads(1 << 20) {
        ahead.push(election.enter(&payload).await);
    }
    let waiting = {
        let candidate = Arc::clone(&candidate);
        tokio::spawn(async move { candidate.campaign("e").await })
    };
    until("the candidate waits", async || ids(&*candidate).await.last().is_some_and(|id| id == "candidate"))
        .await;
    let behind = election.enter(&foreign_payloads(1 << 20)[0]).await;
    let shown = promptly("listing", candidate.candidates("e")).await.unwrap();
    assert_eq!(shown.len(), ahead.len() + 2);
    assert!(shown.iter().all(|candidate| candidate.value.len() <= 64 * 1024 && candidate.id.len() <= 255));
    for lease in ahead {
        let first = leader(&*candidate).await.unwrap();
        assert_eq!(first.session, format!("{lease:x}"), "in their order");
        let refused = promptly("asking to resign", candidate.request_resign("e")).await.unwrap_err();
        assert!(matches!(refused, Error::Refused(_)) && is_printable(&refused.to_string()), "{refused}");
        assert!(!waiting.is_finished());
        election.leave(lease).await;
    }
    let leadership = promptly("leading", waiting).await.unwrap().unwrap();
    assert_eq!(leader(&*candidate).await.unwrap().id, "candidate");
    promptly("resigning", leadership.resign()).await.unwrap();
    assert_eq!(leader(&*candidate).await.unwrap().session, format!("{behind:x}"));
    promptly("closing", candidate.close()).await;
    assert_eq!(election.count_unmodified().await, 1);
    assert_peak_memory_mib(128);
}

/// So many candidates with the largest values that etcd accepts that they would exceed the size of one response and the memory
/// limit.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn candidates_on_etcd_with_huge_values_are_read_in_parts() {
    const COUNT: usize = 80;
    let election = TestElection::new().await;
    let value = vec![b'x'; 1 << 20];
    for _ in 0..COUNT {
        election.enter(&value).await;
    }
    drop(value);
    let candidate = elector(election.backend(), "candidate");
    let shown = promptly("listing", candidate.candidates("e")).await.unwrap();
    assert_eq!(shown.len(), COUNT);
    assert!(shown.iter().all(|candidate| candidate.value.len() == 64 * 1024));
    promptly("closing", candidate.close()).await;
    assert_peak_memory_mib(128);
}

/// Only a key that is named after its own lease, in the format that Go's library writes, is waited for.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn keys_on_etcd_with_invalid_lease_ids_are_foreign() {
    let election = TestElection::new().await;
    let [one, other] = [election.enter(b"").await, election.enter(b"").await];
    election
        .put([election.key(format!("{one:x}")), election.key(format!("{other:x}"))], b"no lease", 0)
        .await;
    let zeros = format!("{one:032x}");
    let upper = format!("{one:X}");
    let names = [
        "",
        "0",
        "-1",
        "1",
        "7fffffffffffffff",
        "8000000000000000",
        "ffffffffffffffff",
        "10000000000000000",
        "0x1f",
        "1f ",
        " 1f",
        "١٢٣",
        "1e3",
        "1_000",
        &zeros,
        &format!("{upper}G"),
        &format!("{one:x}/{one:x}"),
        &format!("-{one:x}"),
    ];
    election.put(names.map(|name| election.key(name)), b"under a lease", one).await;
    if upper != format!("{one:x}") {
        election.put([election.key(&upper)], b"under a lease", one).await;
    }
    let backend = election.backend();
    let candidate = elector(Arc::clone(&backend), "candidate");
    assert_eq!(leader(&*candidate).await, None);
    let leadership = promptly("leading", candidate.campaign("e")).await.unwrap();
    assert_eq!(ids(&*candidate).await, ["candidate"]);
    assert!(backend.foreign_entries_seen() >= names.len() as u64);
    promptly("resigning", leadership.resign()).await.unwrap();
    for name in names {
        let found = election.client.kv_client().get(election.key(name), None).await.unwrap();
        assert_eq!(found.kvs().len(), 1, "{name:?} still exists");
    }
    promptly("closing", candidate.close()).await;
}

/// Keys of etcd may contain any bytes.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn unusual_names_on_etcd_stop_no_candidate() {
    let election = TestElection::new().await;
    let mut keys: Vec<_> = names::unusual().iter().map(|name| election.key(name)).collect();
    keys.extend([&b"\xff\xfe"[..], b"\0", b"\x80", b"\xc3("].map(|name| election.key(name)));
    keys.push(election.key(vec![0xff; 1 << 20]));
    let count = keys.len();
    for key in keys {
        election.put([key], b"foreign", 0).await;
    }
    let candidate = elector(election.backend(), "candidate");
    let leadership = promptly("leading", candidate.campaign("e")).await.unwrap();
    assert_eq!(ids(&*candidate).await, ["candidate"]);
    assert_eq!(leader(&*candidate).await.unwrap().id, "candidate");
    promptly("resigning", leadership.resign()).await.unwrap();
    names::check_election_names(&*candidate).await;
    promptly("closing", candidate.close()).await;
    assert_eq!(election.count_unmodified().await, count);
    assert_peak_memory_mib(128);
}
