//! Foreign files in the directory of a local store.

use std::{
    ffi::OsStr,
    fs,
    os::unix::{
        ffi::OsStrExt as _,
        fs::{FileExt as _, symlink},
    },
    path::{Path, PathBuf},
    time::Duration,
};

use tenure::{Config, Elector as _, Error};

use crate::{assert_peak_memory_mib, is_printable, promptly};

/// A store's directory with the election `e`.
struct TestStore {
    dir: tempfile::TempDir,
}

impl TestStore {
    fn new() -> Self {
        let store = Self { dir: tempfile::tempdir().unwrap() };
        fs::create_dir_all(store.dir.path().join("elections")).unwrap();
        fs::create_dir_all(store.dir.path().join("tokens")).unwrap();
        store
    }

    /// The election's directory.
    fn election(&self) -> PathBuf {
        self.dir.path().join("elections/e")
    }

    /// The file with the last token. A candidate locks it to enter.
    fn counter(&self) -> PathBuf {
        self.dir.path().join("tokens/e")
    }

    async fn elector(&self) -> std::sync::Arc<dyn tenure::Elector> {
        let config = Config::new().with_ttl(Duration::from_secs(2));
        tenure::connect_with(&format!("local:{}", self.dir.path().display()), config).await.unwrap()
    }

    /// Asserts that a candidate can lead.
    async fn assert_electable(&self) {
        let elector = self.elector().await;
        let leadership = promptly("leading", elector.campaign("e")).await.unwrap();
        assert_eq!(
            promptly("asking", elector.leader("e")).await.unwrap().unwrap().id,
            elector.candidate_id().to_string()
        );
        promptly("resigning", leadership.resign()).await.unwrap();
        promptly("closing", elector.close()).await;
    }

    /// Asserts that a campaign is refused with an error that names the file.
    async fn assert_refused(&self, file: &Path) {
        let elector = self.elector().await;
        let refused = promptly("the refusal", elector.campaign("e")).await.unwrap_err();
        assert!(matches!(refused, Error::Refused(_)), "{refused:?}");
        let error = refused.to_string();
        assert!(error.contains(&file.display().to_string()) && is_printable(&error), "{error}");
        promptly("closing", elector.close()).await;
    }
}

fn sparse(path: &Path) {
    let file = fs::File::create(path).unwrap();
    file.set_len(1 << 30).unwrap();
    file.write_all_at(b"tenure-record/1 garbage", 0).unwrap();
}

fn pipe(path: &Path) {
    let mode = rustix::fs::Mode::from_raw_mode(0o600);
    rustix::fs::mknodat(rustix::fs::CWD, path, rustix::fs::FileType::Fifo, mode, 0).unwrap();
}

fn link_loop(path: &Path) {
    symlink(path, path).unwrap();
}

fn directory(path: &Path) {
    fs::create_dir(path).unwrap();
}

/// A counter with garbage is replaced by one above every token that can have been given out.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn garbage_in_the_counter_stops_no_candidate() {
    let mut random = vec![0; 1 << 20];
    fastrand::fill(&mut random);
    for garbage in
        [&b""[..], b"garbage", b"tenure-record/1 00000000000000000001 9999999999 0000000000000000\n", &random]
    {
        let store = TestStore::new();
        fs::write(store.counter(), garbage).unwrap();
        store.assert_electable().await;
    }
    let store = TestStore::new();
    sparse(&store.counter());
    store.assert_electable().await;
    assert_peak_memory_mib(64);
}

/// Anything but a regular file in place of the counter is refused at once, and left as it is.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_counter_that_is_no_file_is_refused() {
    for put in [directory, pipe, link_loop] {
        let store = TestStore::new();
        put(&store.counter());
        let before = fs::symlink_metadata(store.counter()).unwrap().file_type();
        store.assert_refused(&store.counter()).await;
        assert_eq!(fs::symlink_metadata(store.counter()).unwrap().file_type(), before);
    }
}

/// Anything but a directory in place of the election is refused at once, and left as it is.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_election_that_is_no_directory_is_refused() {
    for put in [|path: &Path| fs::write(path, "foreign").unwrap(), pipe, link_loop] {
        let store = TestStore::new();
        put(&store.election());
        let before = fs::symlink_metadata(store.election()).unwrap().file_type();
        store.assert_refused(&store.election()).await;
        assert_eq!(fs::symlink_metadata(store.election()).unwrap().file_type(), before);
    }
}

/// Foreign files among the entries: thousands, huge ones, and directories, pipes and links that are named like entries.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn foreign_files_among_the_entries_stop_no_candidate() {
    let store = TestStore::new();
    directory(&store.election());
    let file = |name: &str| store.election().join(name);
    for n in 0..5000 {
        fs::write(file(&format!("foreign-{n}")), "foreign").unwrap();
    }
    for (n, put) in [directory, pipe, link_loop].into_iter().enumerate() {
        put(&file(&format!("entry-{:020}", n + 1)));
    }
    for name in [
        "entry-99999999999999999999",
        "entry-1",
        "entry-00000000000000000000",
        ".new-",
        "\u{1b}[31m\n\u{202e}",
        "-rf *",
    ] {
        sparse(&file(name));
    }
    fs::write(store.election().join(OsStr::from_bytes(b"entry-\xff\xfe")), "foreign").unwrap();
    store.assert_electable().await;
    assert_eq!(
        fs::read_dir(store.election()).unwrap().count(),
        5000 + 3 + 6 + 1,
        "nothing foreign was deleted"
    );
    assert_peak_memory_mib(64);
}

/// A live entry that another program has overwritten is listed and waited for, however large it is.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_overwritten_entry_keeps_leading() {
    let store = TestStore::new();
    let (a, b) = (store.elector().await, store.elector().await);
    let first = promptly("leading", a.campaign("e")).await.unwrap();
    let entry = fs::read_dir(store.election()).unwrap().next().unwrap().unwrap().path();
    let file = fs::File::options().write(true).open(&entry).unwrap();
    file.write_all_at(&[b'x'; 1 << 20], 0).unwrap();
    file.set_len(1 << 30).unwrap();
    drop(file);
    let shown = promptly("asking", b.leader("e")).await.unwrap().unwrap();
    assert_eq!((shown.id.as_str(), shown.value.len()), (entry.file_name().unwrap().to_str().unwrap(), 0));
    assert!(promptly("trying", b.try_campaign("e")).await.unwrap().is_none());
    assert!(first.is_leader());
    promptly("resigning", first.resign()).await.unwrap();
    let next = promptly("leading", b.campaign("e")).await.unwrap();
    promptly("resigning", next.resign()).await.unwrap();
    promptly("closing", async {
        a.close().await;
        b.close().await
    })
    .await;
    assert_peak_memory_mib(64);
}
