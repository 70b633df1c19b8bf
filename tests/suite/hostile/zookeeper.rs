//! Foreign znodes in an election on ZooKeeper.

use std::{sync::Arc, time::Duration};

use futures::{StreamExt as _, stream};
use tenure::{
    Elector, Error,
    zookeeper::{ZookeeperBackend, ZookeeperConfig},
};
use tenure_containers::{AdminSession, CreateMode, Version};
use tenure_testkit::{proxy::Proxy, suite::until};
use tenure_tests::Zookeeper;

use crate::{assert_peak_memory_mib, elector, foreign_payloads, ids, is_printable, leader, names, promptly};

/// How many sessions write at the same time.
const CONCURRENT_SESSIONS: usize = 8;

/// An election `e` in which tests create foreign znodes.
pub(crate) struct TestElection(pub(crate) Zookeeper);

impl TestElection {
    pub(crate) async fn new() -> Self {
        let election = Self(Zookeeper::new(Version::Zookeeper39).await);
        let admin = election.0.server().admin();
        admin.create(&election.path("first"), "foreign").await.unwrap();
        election
    }

    /// The path of the znode with this name in the election.
    fn path(&self, name: &str) -> String {
        format!("{}/e/{name}", self.0.root())
    }

    pub(crate) async fn session(&self) -> AdminSession {
        self.0.server().admin().session().await.unwrap()
    }

    /// Creates persistent znodes.
    async fn put(&self, names: impl IntoIterator<Item = String>, data: &[u8]) {
        let names: Vec<_> = names.into_iter().collect();
        let parts = names.chunks(names.len().div_ceil(CONCURRENT_SESSIONS).max(1));
        let putting = parts.map(async |names| {
            let mut session = self.session().await;
            for name in names {
                session.create(&self.path(name), data, CreateMode::Persistent).await.unwrap();
            }
            session.close().await.unwrap();
        });
        stream::iter(putting).buffer_unordered(CONCURRENT_SESSIONS).collect::<()>().await;
    }

    /// Enters as a candidate: creates an ephemeral sequential znode.
    pub(crate) async fn enter(&self, session: &mut AdminSession, data: &[u8]) {
        let path = self.path(&format!("c-{:032x}-", fastrand::u128(..)));
        session.create(&path, data, CreateMode::EphemeralSequential).await.unwrap();
    }

    /// The number of znodes in the election.
    async fn count_znodes(&self) -> usize {
        self.0.server().admin().children(&format!("{}/e", self.0.root())).await.unwrap().len()
    }
}

/// The name of an entry with this sequence number.
fn entry_name(number: &str) -> String {
    format!("c-{:032x}-{number}", fastrand::u128(..))
}

/// A candidate leads, and another waits and leads next, however many foreign znodes there are, also if they are named like
/// entries with lower numbers.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn thousands_of_foreign_znodes_on_zookeeper_stop_no_candidate() {
    let election = TestElection::new().await;
    election.put((0..2500).map(|n| format!("foreign-{n:05}")), b"foreign").await;
    election.put((0..2500).map(|_| entry_name("0000000000")), b"foreign").await;
    let backend = Arc::new(election.0.backend());
    let (a, b) = (elector(Arc::new(election.0.backend()), "a"), elector(Arc::clone(&backend), "b"));
    let first = promptly("leading among foreign znodes", a.campaign("e")).await.unwrap();
    election.put((0..2500).map(|n| entry_name(&format!("{n:010}"))), b"foreign").await;
    let waiting = {
        let b = Arc::clone(&b);
        tokio::spawn(async move { b.campaign("e").await })
    };
    until("b waits", async || ids(&*b).await == ["a", "b"]).await;
    assert_eq!(leader(&*b).await.unwrap().id, "a");
    election.put((0..2500).map(|n| entry_name(&format!("{:010}", 1_000_000 + n))), b"foreign").await;
    promptly("resigning", first.resign()).await.unwrap();
    let next = promptly("the handover", waiting).await.unwrap().unwrap();
    assert!(next.is_leader());
    assert_eq!(leader(&*a).await.unwrap().id, "b");
    assert!(backend.foreign_entries_seen() >= 2500, "{} were counted", backend.foreign_entries_seen());
    promptly("resigning", next.resign()).await.unwrap();
    assert_eq!(leader(&*a).await, None, "no foreign znode leads");
    promptly("closing", async {
        a.close().await;
        b.close().await
    })
    .await;
    assert_eq!(election.count_znodes().await, 10_001, "no foreign znode was deleted");
    assert_peak_memory_mib(128);
}

/// On a slow connection, znodes that are only named like entries are not read one after the other.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn thousands_of_similar_znodes_on_a_slow_connection_stop_no_candidate() {
    let election = TestElection::new().await;
    election.put((0..2000).map(|_| entry_name("0000000000")), b"foreign").await;
    let proxy = Proxy::start(election.0.server().endpoint()).await.unwrap();
    let backend = || {
        let config = ZookeeperConfig::new([proxy.endpoint()]).root(election.0.root());
        Arc::new(ZookeeperBackend::new(config).unwrap())
    };
    let [a, b] = ["a", "b"].map(|id| elector(backend(), id));
    proxy.delay(Duration::from_millis(10));
    assert_eq!(leader(&*b).await, None);
    let first = promptly("leading", a.campaign("e")).await.unwrap();
    assert_eq!(leader(&*b).await.unwrap().id, "a");
    let waiting = {
        let b = Arc::clone(&b);
        tokio::spawn(async move { b.campaign("e").await })
    };
    until("b waits", async || ids(&*b).await == ["a", "b"]).await;
    promptly("resigning", first.resign()).await.unwrap();
    let next = promptly("the handover", waiting).await.unwrap().unwrap();
    promptly("resigning", next.resign()).await.unwrap();
    promptly("closing", async {
        a.close().await;
        b.close().await
    })
    .await;
}

/// Hazard Z8: thousands of candidates with the same sequence number are ordered by the transactions that created them.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn thousands_of_candidates_with_one_sequence_number_are_ordered() {
    let election = TestElection::new().await;
    let mut others = election.session().await;
    for _ in 0..2000 {
        others
            .create(&election.path(&entry_name("0000000000")), b"other", CreateMode::Ephemeral)
            .await
            .unwrap();
    }
    let candidate = elector(Arc::new(election.0.backend()), "candidate");
    let first = promptly("listing", candidate.candidates("e")).await.unwrap().swap_remove(0);
    assert_eq!(leader(&*candidate).await.unwrap().session, first.session);
    let waiting = {
        let candidate = Arc::clone(&candidate);
        tokio::spawn(async move { candidate.campaign("e").await })
    };
    until("the candidate waits", async || ids(&*candidate).await.len() == 2001).await;
    others.close().await.unwrap();
    let leadership = promptly("leading", waiting).await.unwrap().unwrap();
    promptly("resigning", leadership.resign()).await.unwrap();
    promptly("closing", candidate.close()).await;
    assert_eq!(election.count_znodes().await, 1);
}

/// Candidates of other libraries may have any value: they are waited for and listed.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn candidates_on_zookeeper_with_garbage_for_values_are_waited_for_and_shown() {
    // A server accepts requests of 1 MiB in total.
    const MAX_BYTES: usize = (1 << 20) - 1024;
    let election = TestElection::new().await;
    let candidate = elector(Arc::new(election.0.backend()), "candidate");
    let mut ahead = Vec::new();
    for payload in foreign_payloads(MAX_BYTES) {
        let mut session = election.session().await;
        election.enter(&mut session, &payload).await;
        ahead.push(session);
    }
    let waiting = {
        let candidate = Arc::clone(&candidate);
        tokio::spawn(async move { candidate.campaign("e").await })
    };
    until("the candidate waits", async || ids(&*candidate).await.last().is_some_and(|id| id == "candidate"))
        .await;
    let mut behind = election.session().await;
    election.enter(&mut behind, &foreign_payloads(MAX_BYTES)[0]).await;
    let shown = promptly("listing", candidate.candidates("e")).await.unwrap();
    assert_eq!(shown.len(), ahead.len() + 2);
    assert!(shown.iter().all(|candidate| candidate.value.len() <= 64 * 1024 && candidate.id.len() <= 255));
    for session in ahead {
        let first = leader(&*candidate).await.unwrap();
        assert_eq!(tenure_tests::session_id(&first.session), session.id(), "in their order");
        let refused = promptly("asking to resign", candidate.request_resign("e")).await.unwrap_err();
        assert!(matches!(refused, Error::Refused(_)) && is_printable(&refused.to_string()), "{refused}");
        assert!(!waiting.is_finished());
        session.close().await.unwrap();
    }
    let leadership = promptly("leading", waiting).await.unwrap().unwrap();
    assert_eq!(leader(&*candidate).await.unwrap().id, "candidate");
    promptly("resigning", leadership.resign()).await.unwrap();
    assert_eq!(tenure_tests::session_id(&leader(&*candidate).await.unwrap().session), behind.id());
    promptly("closing", candidate.close()).await;
    assert_peak_memory_mib(128);
}

/// Sequence numbers that no server assigns: names without a valid number are foreign, the others are ordered by number.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn znodes_with_unusual_numbers_are_ordered_or_foreign() {
    let election = TestElection::new().await;
    let mut session = election.session().await;
    let in_order = [
        "0000000000",
        "0000000001",
        "2147483647",
        "-2147483648",
        "-000000001",
        "4294967296",
        "9223372036854775807",
    ];
    for number in in_order {
        session.create(&election.path(&entry_name(number)), number, CreateMode::Ephemeral).await.unwrap();
    }
    let foreign = [
        "",
        "1",
        "000000001",
        "9223372036854775808",
        "9999999999999999999",
        "18446744073709551616",
        "00000000000000000000000001",
        "000000000x",
        "0x00000001",
        "+000000001",
        " 000000001",
        "--00000001",
        "-9223372036854775808",
        "-2147483649",
        "1e00000000",
        "٠١٢٣٤٥٦٧٨٩",
        "００００００００００",
    ];
    for number in foreign {
        session.create(&election.path(&entry_name(number)), "foreign", CreateMode::Ephemeral).await.unwrap();
    }
    let backend = Arc::new(election.0.backend());
    let candidate = elector(Arc::clone(&backend), "candidate");
    let shown = promptly("listing", candidate.candidates("e")).await.unwrap();
    let numbers: Vec<_> = shown.iter().map(|candidate| candidate.value_lossy()).collect();
    assert_eq!(numbers, in_order);
    assert!(backend.foreign_entries_seen() >= foreign.len() as u64);
    assert_eq!(leader(&*candidate).await.unwrap().value, in_order[0].as_bytes());
    assert!(promptly("trying", candidate.try_campaign("e")).await.unwrap().is_none());
    let waiting = {
        let candidate = Arc::clone(&candidate);
        tokio::spawn(async move { candidate.campaign("e").await })
    };
    until("the candidate waits", async || ids(&*candidate).await.contains(&"candidate".to_owned())).await;
    session.close().await.unwrap();
    let leadership = promptly("leading", waiting).await.unwrap().unwrap();
    promptly("resigning", leadership.resign()).await.unwrap();
    promptly("closing", candidate.close()).await;
}

/// All unusual names that the server accepts.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn unusual_names_on_zookeeper_stop_no_candidate() {
    let election = TestElection::new().await;
    let mut session = election.session().await;
    let mut accepted = Vec::new();
    for name in names::unusual().into_iter().chain(["x".repeat(500_000)]) {
        // The server refuses separators, control characters, and characters from U+D800.
        if session.create(&election.path(&name), "foreign", CreateMode::Persistent).await.is_ok() {
            accepted.push(name);
        }
    }
    assert!(accepted.len() > 20 && accepted.contains(&"名前".to_owned()), "{accepted:?}");
    let candidate = elector(Arc::new(election.0.backend()), "candidate");
    let leadership = promptly("leading", candidate.campaign("e")).await.unwrap();
    assert_eq!(ids(&*candidate).await, ["candidate"]);
    assert_eq!(leader(&*candidate).await.unwrap().id, "candidate");
    promptly("resigning", leadership.resign()).await.unwrap();
    names::check_election_names(&*candidate).await;
    promptly("closing", candidate.close()).await;
    for name in accepted {
        let found = election.0.server().admin().get(&election.path(&name)).await.unwrap();
        assert_eq!(found.unwrap().data, b"foreign", "{name:?}");
    }
    assert_peak_memory_mib(128);
}
