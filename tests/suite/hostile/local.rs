//! Strangers' files where the local store has its own.

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

use crate::{is_fit_to_be_printed, never_held_more_than, soon};

/// A store's directory, and the files of the election `e` in it.
struct Ground {
    dir: tempfile::TempDir,
}

impl Ground {
    fn new() -> Self {
        let ground = Self { dir: tempfile::tempdir().unwrap() };
        fs::create_dir_all(ground.dir.path().join("elections")).unwrap();
        fs::create_dir_all(ground.dir.path().join("tokens")).unwrap();
        ground
    }

    /// The election's directory.
    fn election(&self) -> PathBuf {
        self.dir.path().join("elections/e")
    }

    /// The file with the last token, which is locked to enter.
    fn counter(&self) -> PathBuf {
        self.dir.path().join("tokens/e")
    }

    async fn elector(&self) -> std::sync::Arc<dyn tenure::Elector> {
        let config = Config::new().with_ttl(Duration::from_secs(2));
        tenure::connect_with(&format!("local:{}", self.dir.path().display()), config).await.unwrap()
    }

    /// Leads all the same.
    async fn leads(&self) {
        let elector = self.elector().await;
        let leadership = soon("leading", elector.campaign("e")).await.unwrap();
        assert_eq!(
            soon("asking", elector.leader("e")).await.unwrap().unwrap().id,
            elector.candidate().to_string()
        );
        soon("resigning", leadership.resign()).await.unwrap();
        soon("closing", elector.close()).await;
    }

    /// Is refused, for good and in words that name the file.
    async fn is_refused(&self, file: &Path) {
        let elector = self.elector().await;
        let refused = soon("the refusal", elector.campaign("e")).await.unwrap_err();
        assert!(matches!(refused, Error::Refused(_)), "{refused:?}");
        let said = refused.to_string();
        assert!(said.contains(&file.display().to_string()) && is_fit_to_be_printed(&said), "{said}");
        soon("closing", elector.close()).await;
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

/// A counter that is garbage is begun anew, above what it can have been.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn garbage_in_the_counter_stops_nobody() {
    let mut random = vec![0; 1 << 20];
    fastrand::fill(&mut random);
    for garbage in
        [&b""[..], b"garbage", b"tenure-record/1 00000000000000000001 9999999999 0000000000000000\n", &random]
    {
        let ground = Ground::new();
        fs::write(ground.counter(), garbage).unwrap();
        ground.leads().await;
    }
    let ground = Ground::new();
    sparse(&ground.counter());
    ground.leads().await;
    never_held_more_than(64);
}

/// What is no file is refused at once, and left as it is.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_is_no_file_in_the_counters_place_is_refused() {
    for put in [directory, pipe, link_loop] {
        let ground = Ground::new();
        put(&ground.counter());
        let before = fs::symlink_metadata(ground.counter()).unwrap().file_type();
        ground.is_refused(&ground.counter()).await;
        assert_eq!(fs::symlink_metadata(ground.counter()).unwrap().file_type(), before);
    }
}

/// What is no directory is refused at once, and left as it is.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_is_no_directory_in_the_elections_place_is_refused() {
    for put in [|path: &Path| fs::write(path, "not ours").unwrap(), pipe, link_loop] {
        let ground = Ground::new();
        put(&ground.election());
        let before = fs::symlink_metadata(ground.election()).unwrap().file_type();
        ground.is_refused(&ground.election()).await;
        assert_eq!(fs::symlink_metadata(ground.election()).unwrap().file_type(), before);
    }
}

/// Files of strangers among the entries: thousands, huge ones, and what is no file under an entry's name.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn strangers_files_among_the_entries_stop_nobody() {
    let ground = Ground::new();
    directory(&ground.election());
    let file = |name: &str| ground.election().join(name);
    for n in 0..5000 {
        fs::write(file(&format!("stranger-{n}")), "not ours").unwrap();
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
    fs::write(ground.election().join(OsStr::from_bytes(b"entry-\xff\xfe")), "not ours").unwrap();
    ground.leads().await;
    assert_eq!(
        fs::read_dir(ground.election()).unwrap().count(),
        5000 + 3 + 6 + 1,
        "nothing of theirs was deleted"
    );
    never_held_more_than(64);
}

/// A live entry that somebody has written over is shown and waited for, however large it has become.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_entry_that_was_written_over_leads_on() {
    let ground = Ground::new();
    let (a, b) = (ground.elector().await, ground.elector().await);
    let first = soon("leading", a.campaign("e")).await.unwrap();
    let entry = fs::read_dir(ground.election()).unwrap().next().unwrap().unwrap().path();
    let file = fs::File::options().write(true).open(&entry).unwrap();
    file.write_all_at(&[b'x'; 1 << 20], 0).unwrap();
    file.set_len(1 << 30).unwrap();
    drop(file);
    let shown = soon("asking", b.leader("e")).await.unwrap().unwrap();
    assert_eq!((shown.id.as_str(), shown.value.len()), (entry.file_name().unwrap().to_str().unwrap(), 0));
    assert!(soon("trying", b.try_campaign("e")).await.unwrap().is_none());
    assert!(first.is_leader());
    soon("resigning", first.resign()).await.unwrap();
    let next = soon("leading", b.campaign("e")).await.unwrap();
    soon("resigning", next.resign()).await.unwrap();
    soon("closing", async {
        a.close().await;
        b.close().await
    })
    .await;
    never_held_more_than(64);
}
