//! What an adapter has to promise, without an election, and what a URL has to have.

use std::{fs, os::unix::fs::PermissionsExt as _};

use directory_store::DirectoryStore;
use tenure::Registry;
use tenure_cas::{CasStore as _, Epoch, Freshness::Fresh, Swap};
use tenure_core::spi::BackendErrorKind;

const EPOCH: Epoch = Epoch(0);

/// Of all swaps with the same version one is done, whichever client sends it.
#[tokio::test(flavor = "multi_thread")]
async fn a_swap_is_one_step() {
    const CLIENTS: usize = 4;
    const INCREMENTS: usize = 25;
    let directory = tempfile::tempdir().unwrap();
    let clients = (0..CLIENTS).map(|client| {
        let store = DirectoryStore::open(directory.path()).unwrap();
        tokio::spawn(async move {
            let mut done = 0;
            while done < INCREMENTS {
                let found = store.read("e/count", Fresh).await.unwrap();
                let (version, body) = found.map(|found| (found.version, found.body)).unzip();
                let text = body.map(|body| String::from_utf8(body).unwrap());
                let count = text.map_or(0, |text| text.split(' ').next().unwrap().parse::<usize>().unwrap());
                // No two bodies are equal.
                let next = format!("{} {client} {done}", count + 1);
                let swap = store.swap("e/count", version.as_ref(), EPOCH, next.as_bytes()).await.unwrap();
                done += usize::from(swap != Swap::Conflict);
            }
        })
    });
    for client in clients.collect::<Vec<_>>() {
        client.await.unwrap();
    }
    let store = DirectoryStore::open(directory.path()).unwrap();
    let found = store.read("e/count", Fresh).await.unwrap().unwrap();
    assert!(found.body.starts_with(format!("{} ", CLIENTS * INCREMENTS).as_bytes()), "{found:?}");
}

#[tokio::test]
async fn only_the_expected_version_is_replaced_or_deleted() {
    let directory = tempfile::tempdir().unwrap();
    let store = DirectoryStore::open(directory.path()).unwrap();
    let Swap::Done(first) = store.swap("s/a", None, EPOCH, b"1").await.unwrap() else { panic!("absent") };
    assert_eq!(store.swap("s/a", None, EPOCH, b"2").await.unwrap(), Swap::Conflict, "it exists");
    let Swap::Done(second) = store.swap("s/a", Some(&first), EPOCH, b"2").await.unwrap() else {
        panic!("it has this version")
    };
    assert_eq!(store.swap("s/a", Some(&first), EPOCH, b"3").await.unwrap(), Swap::Conflict);
    assert!(!store.delete("s/a", &first).await.unwrap());
    assert_eq!(store.read("s/a", Fresh).await.unwrap().unwrap().body, b"2");
    assert!(store.delete("s/a", &second).await.unwrap());
    assert_eq!(store.read("s/a", Fresh).await.unwrap(), None);
    assert_eq!(store.swap("s/a", Some(&second), EPOCH, b"4").await.unwrap(), Swap::Conflict, "it is absent");
}

/// A writer that was killed leaves a file that is no record, and the next one replaces it.
#[tokio::test]
async fn what_is_no_record_is_not_listed() {
    let directory = tempfile::tempdir().unwrap();
    let store = DirectoryStore::open(directory.path()).unwrap();
    for number in 0..16 {
        fs::write(directory.path().join(format!("new-{number}")), "incomplete").unwrap();
    }
    fs::create_dir(directory.path().join("e/folder")).unwrap();
    for key in ["e/a", "e/b", "store", "s/c"] {
        store.swap(key, None, EPOCH, key.as_bytes()).await.unwrap();
    }
    for (prefix, expected) in [("e/", &["e/a", "e/b"][..]), ("s/", &["s/c"])] {
        let mut records = store.list(prefix).await.unwrap();
        records.sort_by(|a, b| a.key.cmp(&b.key));
        assert_eq!(records.iter().map(|record| &*record.key).collect::<Vec<_>>(), expected);
        assert!(records.iter().all(|record| record.body == record.key.as_bytes()));
    }
}

/// An error says whether it is worth another attempt.
#[tokio::test]
async fn errors_have_a_kind_and_name_the_directory() {
    let directory = tempfile::tempdir().unwrap();
    let root = directory.path().join("store");
    assert!(DirectoryStore::open(&root).is_err(), "it is not created");
    fs::create_dir(&root).unwrap();
    let store = DirectoryStore::open(&root).unwrap();
    fs::remove_dir_all(&root).unwrap();
    let error = store.read("s/a", Fresh).await.unwrap_err();
    assert_eq!(error.kind(), BackendErrorKind::Unavailable, "it may be mounted again");
    assert!(error.to_string().contains(&root.display().to_string()), "{error}");
    // Root may write anywhere.
    fs::create_dir(&root).unwrap();
    fs::set_permissions(&root, fs::Permissions::from_mode(0o500)).unwrap();
    match DirectoryStore::open(&root) {
        Err(error) => assert_eq!(error.kind(), std::io::ErrorKind::PermissionDenied),
        Ok(_) => assert!(fs::create_dir(root.join("x")).is_ok(), "this user may write there"),
    }
}

#[tokio::test]
async fn what_cannot_work_is_refused_in_words() {
    let mut registry = Registry::builtin();
    registry.register("directory", directory_store::open).unwrap();
    for (url, expected) in [
        ("directory:", "give directory:/PATH"),
        ("directory://host/x", "give directory:/PATH"),
        ("directory:/does/not/exist", "No such file or directory"),
        ("directory:/tmp?poll=1s", "unknown setting poll; allowed are candidate, "),
    ] {
        let refused = registry.connect(url).await.unwrap_err().to_string();
        assert!(refused.contains(expected), "{url}: {refused}");
    }
}
