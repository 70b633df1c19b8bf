//! What every adapter of a store that compares and swaps has to do: the contract of [`CasStore`], on a real server.

use futures::{StreamExt as _, future::join_all, stream};
use tenure::spi::Backend as _;
use tenure_cas::{CasStore, Freshness, Swap, Version};
use tenure_testkit::suite::within;

use crate::cas::{CasServer, epoch_of};

/// Tests of the contract. The argument makes a [`CasServer`] whose part of the store is empty.
#[macro_export]
macro_rules! cas_contract {
    ($new:expr) => {
        $crate::cas_contract!(@ $new;
            a_swap_replaces_one_version
            of_many_swaps_one_is_done
            no_version_is_used_twice
            all_records_with_a_prefix_are_listed
            the_largest_record_is_kept
            every_name_of_an_election_is_a_key
            a_change_gives_a_hint
        );
    };
    (@ $new:expr; $($case:ident)*) => {
        $(
            #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
            async fn $case() {
                $crate::cas_contract::$case(&$new.await).await;
            }
        )*
    };
}

/// More records than a store lists in one answer.
const BEYOND_ONE_PAGE: usize = 1_100;
/// The largest record of an election, with what a resign request adds.
const MAX_RECORD_BYTES: usize = 384 * 1024 + 1024;

/// A body that no other record has.
fn unique_body() -> Vec<u8> {
    format!("{:032x}", fastrand::u128(..)).into_bytes()
}

async fn swap(store: &impl CasStore, key: &str, expected: Option<&Version>, body: &[u8]) -> Swap {
    let swapped = store.swap(key, expected, epoch_of(store).await, body).await;
    swapped.unwrap_or_else(|error| panic!("{key}: {error}"))
}

/// Creates a record. A request that is not answered in time is repeated: it may have been carried out.
async fn create(store: &impl CasStore, key: &str) -> Version {
    let body = unique_body();
    let creating = async {
        loop {
            match store.swap(key, None, epoch_of(store).await, &body).await {
                Ok(Swap::Done(version)) => return version,
                Ok(Swap::Conflict) => match read(store, key).await {
                    Some((version, found)) if found == body => return version,
                    other => panic!("{key} exists: {other:?}"),
                },
                Err(error) if error.is_retryable() => {
                    tokio::time::sleep(std::time::Duration::from_millis(100)).await;
                }
                other => panic!("{key}: {other:?}"),
            }
        }
    };
    within("creating a record", creating).await
}

async fn read(store: &impl CasStore, key: &str) -> Option<(Version, Vec<u8>)> {
    let found = store.read(key, Freshness::Fresh).await.unwrap_or_else(|error| panic!("{key}: {error}"));
    found.map(|record| {
        assert_eq!(record.key, key);
        (record.version, record.body)
    })
}

async fn delete(store: &impl CasStore, key: &str, expected: &Version) -> bool {
    store.delete(key, expected).await.unwrap_or_else(|error| panic!("{key}: {error}"))
}

async fn keys(store: &impl CasStore, prefix: &str) -> Vec<String> {
    let records = store.list(prefix).await.unwrap_or_else(|error| panic!("{prefix}: {error}"));
    let mut keys: Vec<_> = records.into_iter().map(|record| record.key).collect();
    keys.sort();
    keys
}

/// Each request has each of its outcomes.
#[allow(missing_docs, clippy::missing_panics_doc)]
pub async fn a_swap_replaces_one_version(server: &impl CasServer) {
    let backend = server.backend(&server.endpoint());
    let store = backend.store();
    assert_eq!(read(store, "e/a").await, None);
    let Swap::Done(first) = swap(store, "e/a", None, b"1").await else { panic!() };
    assert_eq!(swap(store, "e/a", None, b"2").await, Swap::Conflict);
    assert_eq!(read(store, "e/a").await, Some((first.clone(), b"1".to_vec())));

    let Swap::Done(second) = swap(store, "e/a", Some(&first), b"3").await else { panic!() };
    assert_ne!(first, second);
    assert_eq!(swap(store, "e/a", Some(&first), b"4").await, Swap::Conflict);
    assert_eq!(swap(store, "e/b", Some(&first), b"5").await, Swap::Conflict, "there is no such record");
    assert_eq!(read(store, "e/b").await, None);
    assert_eq!(read(store, "e/a").await, Some((second.clone(), b"3".to_vec())));
    let stale = store.read("e/a", Freshness::MayBeStale).await.unwrap_or_else(|error| panic!("{error}"));
    assert!(stale.is_none_or(|record| record.version == first || record.version == second));

    assert!(!delete(store, "e/a", &first).await);
    assert!(delete(store, "e/a", &second).await);
    assert!(!delete(store, "e/a", &second).await);
    assert_eq!(read(store, "e/a").await, None);
    backend.close().await;
    backend.close().await;
}

/// Of clients that swap a record at the same time, one succeeds. That holds also for those that create it.
#[allow(missing_docs, clippy::missing_panics_doc)]
pub async fn of_many_swaps_one_is_done(server: &impl CasServer) {
    let backends: Vec<_> = (0..8).map(|_| server.backend(&server.endpoint())).collect();
    for key in ["e/a", "e/b", "e/c"] {
        let mut expected = None;
        for _ in 0..10 {
            let bodies: Vec<_> = backends.iter().map(|_| unique_body()).collect();
            let swaps = backends.iter().zip(&bodies);
            let swaps = swaps.map(|(backend, body)| swap(backend.store(), key, expected.as_ref(), body));
            let outcomes = join_all(swaps).await;
            let mut done = outcomes.iter().zip(&bodies).filter_map(|(outcome, body)| match outcome {
                Swap::Done(version) => Some((version.clone(), body.clone())),
                _ => None,
            });
            let winner = done.next().expect("one is done");
            assert_eq!(done.next(), None, "only one is done");
            for backend in &backends {
                assert_eq!(read(backend.store(), key).await.as_ref(), Some(&winner));
            }
            expected = Some(winner.0);
        }
    }
    join_all(backends.iter().map(|backend| backend.close())).await;
}

/// A version is not used again, also after the record was deleted.
#[allow(missing_docs, clippy::missing_panics_doc)]
pub async fn no_version_is_used_twice(server: &impl CasServer) {
    let backend = server.backend(&server.endpoint());
    let store = backend.store();
    let mut versions = Vec::new();
    for _ in 0..5 {
        let first = create(store, "s/a").await;
        let Swap::Done(second) = swap(store, "s/a", Some(&first), &unique_body()).await else { panic!() };
        assert!(delete(store, "s/a", &second).await);
        for earlier in [&first, &second].into_iter().chain(&versions) {
            assert_eq!(swap(store, "s/a", Some(earlier), &unique_body()).await, Swap::Conflict);
            assert!(!delete(store, "s/a", earlier).await);
        }
        versions.extend([first, second]);
    }
    let last = create(store, "s/a").await;
    for earlier in &versions {
        assert_eq!(swap(store, "s/a", Some(earlier), &unique_body()).await, Swap::Conflict);
        assert!(!delete(store, "s/a", earlier).await);
    }
    assert!(!versions.contains(&last));
    backend.close().await;
}

/// A list is complete in however many answers it comes, and has what was written just before it.
#[allow(missing_docs, clippy::missing_panics_doc)]
pub async fn all_records_with_a_prefix_are_listed(server: &impl CasServer) {
    let backend = server.backend(&server.endpoint());
    let store = backend.store();
    assert!(keys(store, "s/").await.is_empty());
    create(store, "store").await;
    create(store, "e/s").await;
    let deleted = create(store, "s/deleted").await;
    assert!(delete(store, "s/deleted", &deleted).await);
    let mut expected: Vec<_> = (0..BEYOND_ONE_PAGE).map(|number| format!("s/{number:032x}")).collect();
    let creations = expected.iter().map(|key| create(store, key));
    stream::iter(creations).buffer_unordered(32).collect::<Vec<_>>().await;
    expected.sort();
    assert_eq!(keys(store, "s/").await, expected);
    assert_eq!(keys(store, "e/").await, ["e/s"]);
    let listed = store.list("e/").await.unwrap_or_else(|error| panic!("{error}"));
    assert_eq!(read(store, "e/s").await, Some((listed[0].version.clone(), listed[0].body.clone())));
    backend.close().await;
}

/// A record as large as the recipe makes, and somewhat larger, is stored and read unchanged.
#[allow(missing_docs, clippy::missing_panics_doc)]
pub async fn the_largest_record_is_kept(server: &impl CasServer) {
    let backend = server.backend(&server.endpoint());
    let store = backend.store();
    // Not all of one byte, and with characters of several bytes.
    let text: String = (0..).map(|number: u32| format!("{number:x} é ")).take(MAX_RECORD_BYTES).collect();
    let large = text.chars().take(MAX_RECORD_BYTES - MAX_RECORD_BYTES / 8).collect::<String>().into_bytes();
    assert!(large.len() > 384 * 1024, "{}", large.len());
    let Swap::Done(first) = swap(store, "e/a", None, &large).await else { panic!() };
    assert_eq!(read(store, "e/a").await, Some((first.clone(), large.clone())));
    let Swap::Done(_) = swap(store, "e/a", Some(&first), b"small").await else { panic!() };
    assert_eq!(read(store, "e/a").await.map(|(_, body)| body), Some(b"small".to_vec()));
    backend.close().await;
}

/// Names that differ only in the case of a letter, and names with characters that have a meaning for a store, have records of their own.
#[allow(missing_docs, clippy::missing_panics_doc)]
pub async fn every_name_of_an_election_is_a_key(server: &impl CasServer) {
    let backend = server.backend(&server.endpoint());
    let store = backend.store();
    let longest = "x".repeat(255);
    let names = [
        "a", "A", "b.c", "b.C", ".hidden", "...", "end.", "-", "--x", "_", "_x", "a..b", "s", "e", "store",
        "0", "%41", &longest,
    ];
    let mut expected: Vec<_> = names
        .iter()
        .filter(|name| tenure::ElectionName::new(name).is_ok())
        .map(|name| format!("e/{name}"))
        .collect();
    let mut versions = Vec::new();
    for key in &expected {
        versions.push(create(store, key).await);
    }
    for (key, version) in expected.iter().zip(&versions) {
        assert_eq!(read(store, key).await.map(|(version, _)| version).as_ref(), Some(version), "{key}");
    }
    expected.sort();
    assert_eq!(keys(store, "e/").await, expected);
    backend.close().await;
}

/// A store with hints gives one after a change. A store without has no stream of them.
#[allow(missing_docs, clippy::missing_panics_doc)]
pub async fn a_change_gives_a_hint(server: &impl CasServer) {
    let (backend, other) = (server.backend(&server.endpoint()), server.backend(&server.endpoint()));
    let store = backend.store();
    let mut version = create(store, "e/a").await;
    if !server.gives_hints() {
        assert!(store.changes("e/a").is_none());
        return;
    }
    // A subscription may only begin to connect.
    let subscribing = async {
        loop {
            match store.changes("e/a") {
                Some(hints) => break hints,
                None => tokio::time::sleep(std::time::Duration::from_millis(20)).await,
            }
        }
    };
    let mut hints = within("subscribing", subscribing).await;
    for _ in 0..3 {
        // Until a hint is seen: the subscription may not have reached the server yet.
        let changing = async {
            loop {
                let Swap::Done(next) = swap(other.store(), "e/a", Some(&version), &unique_body()).await
                else {
                    panic!()
                };
                version = next;
                tokio::select! {
                    hint = hints.next() => break hint,
                    () = tokio::time::sleep(std::time::Duration::from_millis(500)) => {}
                }
            }
        };
        assert_eq!(within("a hint", changing).await, Some(()));
    }
    drop(hints);
    other.close().await;
    backend.close().await;
}
