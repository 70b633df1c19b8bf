//! Strangers' znodes in an election on ZooKeeper.

use std::{sync::Arc, time::Duration};

use futures::{StreamExt as _, stream};
use tenure::{
    Elector, Error,
    zookeeper::{ZookeeperBackend, ZookeeperConfig},
};
use tenure_containers::{AdminSession, Lifetime, Version};
use tenure_testkit::{proxy::Proxy, suite::until};
use tenure_tests::Zookeeper;

use crate::{elector, ids, is_fit_to_be_printed, leader, names, never_held_more_than, payloads, soon};

/// How many sessions write at a time.
const AT_ONCE: usize = 8;

/// An election among strangers.
pub(crate) struct Ground(pub(crate) Zookeeper);

impl Ground {
    pub(crate) async fn new() -> Self {
        let ground = Self(Zookeeper::new(Version::Zookeeper39).await);
        let admin = ground.0.server().admin();
        admin.create(&ground.path("first"), "not ours").await.unwrap();
        ground
    }

    /// The path of that name in the election `e`.
    fn path(&self, name: &str) -> String {
        format!("{}/e/{name}", self.0.root())
    }

    pub(crate) async fn session(&self) -> AdminSession {
        self.0.server().admin().session().await.unwrap()
    }

    /// Makes persistent znodes.
    async fn put(&self, names: impl IntoIterator<Item = String>, data: &[u8]) {
        let names: Vec<_> = names.into_iter().collect();
        let parts = names.chunks(names.len().div_ceil(AT_ONCE).max(1));
        let putting = parts.map(async |names| {
            let mut session = self.session().await;
            for name in names {
                session.create(&self.path(name), data, Lifetime::Persistent).await.unwrap();
            }
            session.close().await.unwrap();
        });
        stream::iter(putting).buffer_unordered(AT_ONCE).collect::<()>().await;
    }

    /// A znode as a candidate has it, that ends with the session.
    pub(crate) async fn stand(&self, session: &mut AdminSession, data: &[u8]) {
        let path = self.path(&format!("c-{:032x}-", fastrand::u128(..)));
        session.create(&path, data, Lifetime::EphemeralSequential).await.unwrap();
    }

    /// How many persistent znodes are in the election; the data of one of them, by name, was not changed.
    async fn strangers(&self) -> usize {
        self.0.server().admin().children(&format!("{}/e", self.0.root())).await.unwrap().len()
    }
}

/// The name of an entry with this number.
fn numbered(number: &str) -> String {
    format!("c-{:032x}-{number}", fastrand::u128(..))
}

/// Ours leads, and another waits and leads after it, however many znodes of strangers there are: also such as are named like entries,
/// with numbers before ours.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn thousands_of_strangers_znodes_on_zookeeper_stop_nobody() {
    let ground = Ground::new().await;
    ground.put((0..2500).map(|n| format!("stranger-{n:05}")), b"not ours").await;
    ground.put((0..2500).map(|_| numbered("0000000000")), b"not ours").await;
    let backend = Arc::new(ground.0.backend());
    let (a, b) = (elector(Arc::new(ground.0.backend()), "a"), elector(Arc::clone(&backend), "b"));
    let first = soon("leading among strangers", a.campaign("e")).await.unwrap();
    ground.put((0..2500).map(|n| numbered(&format!("{n:010}"))), b"not ours").await;
    let waiting = {
        let b = Arc::clone(&b);
        tokio::spawn(async move { b.campaign("e").await })
    };
    until("b waits", async || ids(&*b).await == ["a", "b"]).await;
    assert_eq!(leader(&*b).await.unwrap().id, "a");
    ground.put((0..2500).map(|n| numbered(&format!("{:010}", 1_000_000 + n))), b"not ours").await;
    soon("resigning", first.resign()).await.unwrap();
    let next = soon("the hand-over", waiting).await.unwrap().unwrap();
    assert!(next.is_leader());
    assert_eq!(leader(&*a).await.unwrap().id, "b");
    assert!(backend.foreign_entries_seen() >= 2500, "{} were counted", backend.foreign_entries_seen());
    soon("resigning", next.resign()).await.unwrap();
    assert_eq!(leader(&*a).await, None, "none of them leads");
    soon("closing", async {
        a.close().await;
        b.close().await
    })
    .await;
    assert_eq!(ground.strangers().await, 10_001, "nothing of theirs was deleted");
    never_held_more_than(128);
}

/// On a line where each answer takes its time, those that are only named like entries are not looked at one after the other.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn thousands_of_lookalikes_on_a_slow_line_stop_nobody() {
    let ground = Ground::new().await;
    ground.put((0..2000).map(|_| numbered("0000000000")), b"not ours").await;
    let proxy = Proxy::start(ground.0.server().endpoint()).await.unwrap();
    let backend = || {
        let config = ZookeeperConfig::new([proxy.endpoint()]).root(ground.0.root());
        Arc::new(ZookeeperBackend::new(config).unwrap())
    };
    let [a, b] = ["a", "b"].map(|id| elector(backend(), id));
    proxy.delay(Duration::from_millis(10));
    assert_eq!(leader(&*b).await, None);
    let first = soon("leading", a.campaign("e")).await.unwrap();
    assert_eq!(leader(&*b).await.unwrap().id, "a");
    let waiting = {
        let b = Arc::clone(&b);
        tokio::spawn(async move { b.campaign("e").await })
    };
    until("b waits", async || ids(&*b).await == ["a", "b"]).await;
    soon("resigning", first.resign()).await.unwrap();
    let next = soon("the hand-over", waiting).await.unwrap().unwrap();
    soon("resigning", next.resign()).await.unwrap();
    soon("closing", async {
        a.close().await;
        b.close().await
    })
    .await;
}

/// Hazard Z8: thousands of candidates with one number are told apart by the transactions that made them.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn thousands_of_candidates_with_one_number_are_told_apart() {
    let ground = Ground::new().await;
    let mut theirs = ground.session().await;
    for _ in 0..2000 {
        theirs.create(&ground.path(&numbered("0000000000")), b"theirs", Lifetime::Ephemeral).await.unwrap();
    }
    let ours = elector(Arc::new(ground.0.backend()), "ours");
    let first = soon("listing", ours.candidates("e")).await.unwrap().swap_remove(0);
    assert_eq!(leader(&*ours).await.unwrap().session, first.session);
    let waiting = {
        let ours = Arc::clone(&ours);
        tokio::spawn(async move { ours.campaign("e").await })
    };
    until("ours waits", async || ids(&*ours).await.len() == 2001).await;
    theirs.close().await.unwrap();
    let leadership = soon("leading", waiting).await.unwrap().unwrap();
    soon("resigning", leadership.resign()).await.unwrap();
    soon("closing", ours.close()).await;
    assert_eq!(ground.strangers().await, 1);
}

/// Another's candidates may have written anything: they are waited for, shown and outlived.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn candidates_on_zookeeper_with_garbage_for_values_are_waited_for_and_shown() {
    // A server takes requests of 1 MiB, all in all.
    const LARGEST: usize = (1 << 20) - 1024;
    let ground = Ground::new().await;
    let ours = elector(Arc::new(ground.0.backend()), "ours");
    let mut ahead = Vec::new();
    for payload in payloads(LARGEST) {
        let mut session = ground.session().await;
        ground.stand(&mut session, &payload).await;
        ahead.push(session);
    }
    let waiting = {
        let ours = Arc::clone(&ours);
        tokio::spawn(async move { ours.campaign("e").await })
    };
    until("ours waits", async || ids(&*ours).await.last().is_some_and(|id| id == "ours")).await;
    let mut behind = ground.session().await;
    ground.stand(&mut behind, &payloads(LARGEST)[0]).await;
    let shown = soon("listing", ours.candidates("e")).await.unwrap();
    assert_eq!(shown.len(), ahead.len() + 2);
    assert!(shown.iter().all(|candidate| candidate.value.len() <= 64 * 1024 && candidate.id.len() <= 255));
    for session in ahead {
        let first = leader(&*ours).await.unwrap();
        assert_eq!(tenure_tests::session_id(&first.session), session.id(), "in their order");
        let refused = soon("asking to resign", ours.request_resign("e")).await.unwrap_err();
        assert!(
            matches!(refused, Error::Refused(_)) && is_fit_to_be_printed(&refused.to_string()),
            "{refused}"
        );
        assert!(!waiting.is_finished());
        session.close().await.unwrap();
    }
    let leadership = soon("leading", waiting).await.unwrap().unwrap();
    assert_eq!(leader(&*ours).await.unwrap().id, "ours");
    soon("resigning", leadership.resign()).await.unwrap();
    assert_eq!(tenure_tests::session_id(&leader(&*ours).await.unwrap().session), behind.id());
    soon("closing", ours.close()).await;
    never_held_more_than(128);
}

/// Numbers as no server gives them: what is none is nobody's, and the others stand in the order of the numbers.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn znodes_with_wrong_numbers_stand_in_their_order_or_are_nobodys() {
    let ground = Ground::new().await;
    let mut session = ground.session().await;
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
        session.create(&ground.path(&numbered(number)), number, Lifetime::Ephemeral).await.unwrap();
    }
    let nobodys = [
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
    for number in nobodys {
        session.create(&ground.path(&numbered(number)), "nobody's", Lifetime::Ephemeral).await.unwrap();
    }
    let backend = Arc::new(ground.0.backend());
    let ours = elector(Arc::clone(&backend), "ours");
    let shown = soon("listing", ours.candidates("e")).await.unwrap();
    let numbers: Vec<_> = shown.iter().map(|candidate| candidate.value_lossy()).collect();
    assert_eq!(numbers, in_order);
    assert!(backend.foreign_entries_seen() >= nobodys.len() as u64);
    assert_eq!(leader(&*ours).await.unwrap().value, in_order[0].as_bytes());
    assert!(soon("trying", ours.try_campaign("e")).await.unwrap().is_none());
    let waiting = {
        let ours = Arc::clone(&ours);
        tokio::spawn(async move { ours.campaign("e").await })
    };
    until("ours waits", async || ids(&*ours).await.contains(&"ours".to_owned())).await;
    session.close().await.unwrap();
    let leadership = soon("leading", waiting).await.unwrap().unwrap();
    soon("resigning", leadership.resign()).await.unwrap();
    soon("closing", ours.close()).await;
}

/// Whatever names the server takes.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn odd_names_on_zookeeper_stop_nobody() {
    let ground = Ground::new().await;
    let mut session = ground.session().await;
    let mut taken = Vec::new();
    for name in names::odd().into_iter().chain(["x".repeat(500_000)]) {
        // Refused by the server: separators, control characters, what lies beyond U+D800.
        if session.create(&ground.path(&name), "not ours", Lifetime::Persistent).await.is_ok() {
            taken.push(name);
        }
    }
    assert!(taken.len() > 20 && taken.contains(&"名前".to_owned()), "{taken:?}");
    let ours = elector(Arc::new(ground.0.backend()), "ours");
    let leadership = soon("leading", ours.campaign("e")).await.unwrap();
    assert_eq!(ids(&*ours).await, ["ours"]);
    assert_eq!(leader(&*ours).await.unwrap().id, "ours");
    soon("resigning", leadership.resign()).await.unwrap();
    names::are_refused_or_work(&*ours).await;
    soon("closing", ours.close()).await;
    for name in taken {
        let found = ground.0.server().admin().get(&ground.path(&name)).await.unwrap();
        assert_eq!(found.unwrap().data, b"not ours", "{name:?}");
    }
    never_held_more_than(128);
}
