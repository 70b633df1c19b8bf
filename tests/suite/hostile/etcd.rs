//! Strangers' keys in an election on etcd.

use std::sync::Arc;

use etcd_client::{Client, GetOptions, PutOptions, Txn, TxnOp};
use tenure::{
    Elector, Error,
    etcd::{EtcdBackend, EtcdConfig},
};
use tenure_containers::Version;
use tenure_testkit::suite::until;
use tenure_tests::Etcd;

use crate::{elector, ids, is_fit_to_be_printed, leader, names, never_held_more_than, payloads, soon};

/// An election among strangers.
pub(crate) struct Ground {
    pub(crate) etcd: Etcd,
    client: Client,
}

impl Ground {
    pub(crate) async fn new() -> Self {
        let etcd = Etcd::new(Version::Etcd35).await;
        let client = Client::connect([etcd.server().endpoint()], None).await.unwrap();
        Self { etcd, client }
    }

    pub(crate) fn backend(&self) -> Arc<EtcdBackend> {
        let config = EtcdConfig::new([self.etcd.server().endpoint()]).prefix(self.etcd.prefix());
        Arc::new(EtcdBackend::new(config).unwrap())
    }

    /// The key of that name in the election `e`.
    fn key(&self, name: impl AsRef<[u8]>) -> Vec<u8> {
        [self.etcd.prefix().as_bytes(), b"/e/", name.as_ref()].concat()
    }

    /// Puts keys, a hundred at a time.
    async fn put(&self, keys: impl IntoIterator<Item = Vec<u8>>, value: &[u8], lease: i64) {
        let puts =
            keys.into_iter().map(|key| TxnOp::put(key, value, Some(PutOptions::new().with_lease(lease))));
        let puts: Vec<_> = puts.collect();
        for some in puts.chunks(100) {
            self.client.kv_client().txn(Txn::new().and_then(some)).await.unwrap();
        }
    }

    /// A lease, and a key that is named after it: what a candidate has.
    pub(crate) async fn stand(&self, value: &[u8]) -> i64 {
        let lease = self.client.lease_client().grant(600, None).await.unwrap().id();
        self.put([self.key(format!("{lease:x}"))], value, lease).await;
        lease
    }

    pub(crate) async fn leave(&self, lease: i64) {
        self.client.lease_client().revoke(lease).await.unwrap();
    }

    /// How many keys are in the election, none of which was changed since it was made.
    async fn untouched(&self) -> usize {
        let options = GetOptions::new().with_prefix().with_keys_only();
        let mut found = self.client.kv_client().get(self.key(""), Some(options)).await.unwrap();
        let found = found.take_kvs();
        assert!(found.iter().all(|kv| kv.mod_revision() == kv.create_revision()));
        found.len()
    }
}

/// Ours leads, and another waits and leads after it, however many keys of strangers there are.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn thousands_of_strangers_keys_on_etcd_stop_nobody() {
    let ground = Ground::new().await;
    let strangers =
        |from: usize| (from..from + 5000).map(|n| ground.key(format!("stranger-{n:05}"))).collect::<Vec<_>>();
    ground.put(strangers(0), b"not ours", 0).await;
    let backend = ground.backend();
    let (a, b) = (elector(ground.backend(), "a"), elector(Arc::clone(&backend), "b"));
    let first = soon("leading among strangers", a.campaign("e")).await.unwrap();
    ground.put(strangers(5000), b"not ours", 0).await;
    let waiting = {
        let b = Arc::clone(&b);
        tokio::spawn(async move { b.campaign("e").await })
    };
    until("b waits", async || ids(&*b).await == ["a", "b"]).await;
    assert_eq!(leader(&*b).await.unwrap().id, "a");
    ground.put(strangers(10_000), b"not ours", 0).await;
    soon("resigning", first.resign()).await.unwrap();
    let next = soon("the hand-over", waiting).await.unwrap().unwrap();
    assert!(next.is_leader());
    assert_eq!(leader(&*a).await.unwrap().id, "b");
    assert!(backend.foreign_entries_seen() >= 5000, "{} were counted", backend.foreign_entries_seen());
    soon("resigning", next.resign()).await.unwrap();
    assert_eq!(leader(&*a).await, None, "none of them leads");
    soon("closing", async {
        a.close().await;
        b.close().await
    })
    .await;
    assert_eq!(ground.untouched().await, 15_000, "nothing of theirs was deleted");
    never_held_more_than(128);
}

/// What no candidate wrote is not even read.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn huge_values_of_strangers_on_etcd_are_not_read() {
    let ground = Ground::new().await;
    let value = vec![b'x'; 1 << 20];
    for n in 0..80 {
        ground.put([ground.key(format!("stranger-{n}"))], &value, 0).await;
    }
    drop(value);
    let [a, b] = ["a", "b"].map(|id| elector(ground.backend(), id));
    assert_eq!(leader(&*b).await, None);
    let first = soon("leading", a.campaign("e")).await.unwrap();
    assert_eq!(leader(&*b).await.unwrap().id, "a");
    assert!(soon("trying", b.try_campaign("e")).await.unwrap().is_none());
    let waiting = {
        let b = Arc::clone(&b);
        tokio::spawn(async move { b.campaign("e").await })
    };
    until("b waits", async || {
        let options = GetOptions::new().with_prefix().with_count_only();
        ground.client.kv_client().get(ground.key(""), Some(options)).await.unwrap().count() == 82
    })
    .await;
    soon("resigning", first.resign()).await.unwrap();
    soon("the hand-over", waiting).await.unwrap().unwrap();
    never_held_more_than(48);
}

/// Another's candidates may have written anything: they are waited for, shown and outlived.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn candidates_on_etcd_with_garbage_for_values_are_waited_for_and_shown() {
    let ground = Ground::new().await;
    let ours = elector(ground.backend(), "ours");
    let mut ahead = Vec::new();
    for payload in payloads(1 << 20) {
        ahead.push(ground.stand(&payload).await);
    }
    let waiting = {
        let ours = Arc::clone(&ours);
        tokio::spawn(async move { ours.campaign("e").await })
    };
    until("ours waits", async || ids(&*ours).await.last().is_some_and(|id| id == "ours")).await;
    let behind = ground.stand(&payloads(1 << 20)[0]).await;
    let shown = soon("listing", ours.candidates("e")).await.unwrap();
    assert_eq!(shown.len(), ahead.len() + 2);
    assert!(shown.iter().all(|candidate| candidate.value.len() <= 64 * 1024 && candidate.id.len() <= 255));
    for lease in ahead {
        let first = leader(&*ours).await.unwrap();
        assert_eq!(first.session, format!("{lease:x}"), "in their order");
        let refused = soon("asking to resign", ours.request_resign("e")).await.unwrap_err();
        assert!(
            matches!(refused, Error::Refused(_)) && is_fit_to_be_printed(&refused.to_string()),
            "{refused}"
        );
        assert!(!waiting.is_finished());
        ground.leave(lease).await;
    }
    let leadership = soon("leading", waiting).await.unwrap().unwrap();
    assert_eq!(leader(&*ours).await.unwrap().id, "ours");
    soon("resigning", leadership.resign()).await.unwrap();
    assert_eq!(leader(&*ours).await.unwrap().session, format!("{behind:x}"));
    soon("closing", ours.close()).await;
    assert_eq!(ground.untouched().await, 1);
    never_held_more_than(128);
}

/// As many candidates with values as large as etcd takes as would not fit into one answer, and not into memory.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn candidates_on_etcd_with_huge_values_are_read_in_parts() {
    const COUNT: usize = 80;
    let ground = Ground::new().await;
    let value = vec![b'x'; 1 << 20];
    for _ in 0..COUNT {
        ground.stand(&value).await;
    }
    drop(value);
    let ours = elector(ground.backend(), "ours");
    let shown = soon("listing", ours.candidates("e")).await.unwrap();
    assert_eq!(shown.len(), COUNT);
    assert!(shown.iter().all(|candidate| candidate.value.len() == 64 * 1024));
    soon("closing", ours.close()).await;
    never_held_more_than(128);
}

/// Only a key that is named after its own lease, as Go writes it, is waited for.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn keys_on_etcd_with_wrong_numbers_are_nobodys() {
    let ground = Ground::new().await;
    let [one, other] = [ground.stand(b"").await, ground.stand(b"").await];
    ground.put([ground.key(format!("{one:x}")), ground.key(format!("{other:x}"))], b"no lease", 0).await;
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
    ground.put(names.map(|name| ground.key(name)), b"under a lease", one).await;
    if upper != format!("{one:x}") {
        ground.put([ground.key(&upper)], b"under a lease", one).await;
    }
    let backend = ground.backend();
    let ours = elector(Arc::clone(&backend), "ours");
    assert_eq!(leader(&*ours).await, None);
    let leadership = soon("leading", ours.campaign("e")).await.unwrap();
    assert_eq!(ids(&*ours).await, ["ours"]);
    assert!(backend.foreign_entries_seen() >= names.len() as u64);
    soon("resigning", leadership.resign()).await.unwrap();
    for name in names {
        let found = ground.client.kv_client().get(ground.key(name), None).await.unwrap();
        assert_eq!(found.kvs().len(), 1, "{name:?} is there still");
    }
    soon("closing", ours.close()).await;
}

/// etcd's keys may be any bytes.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn odd_names_on_etcd_stop_nobody() {
    let ground = Ground::new().await;
    let mut keys: Vec<_> = names::odd().iter().map(|name| ground.key(name)).collect();
    keys.extend([&b"\xff\xfe"[..], b"\0", b"\x80", b"\xc3("].map(|name| ground.key(name)));
    keys.push(ground.key(vec![0xff; 1 << 20]));
    let count = keys.len();
    for key in keys {
        ground.put([key], b"not ours", 0).await;
    }
    let ours = elector(ground.backend(), "ours");
    let leadership = soon("leading", ours.campaign("e")).await.unwrap();
    assert_eq!(ids(&*ours).await, ["ours"]);
    assert_eq!(leader(&*ours).await.unwrap().id, "ours");
    soon("resigning", leadership.resign()).await.unwrap();
    names::are_refused_or_work(&*ours).await;
    soon("closing", ours.close()).await;
    assert_eq!(ground.untouched().await, count);
    never_held_more_than(128);
}
