//! A process that is killed and restarted: its successor ends its session, and nobody else's.

use std::{
    fs,
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

use tempfile::TempDir;
use tenure_core::{
    CandidateId, Config, Elector, Error, FencingToken, InvalidConfig, Leadership, SimClock, StoreElector,
    memory::{Delivery, Direction, Link, MemoryStore, Op},
    spi::{Backend as _, BackendErrorKind, SessionRecord},
};

use crate::{host::TTL, tokens::reported, tracing::CapturedLog};

/// Less than a TTL, which the session of a dead process lives on.
const SOON: Duration = Duration::from_secs(1);

/// A process on this machine, with simulated time. Dropping it kills it: its tasks end, its lock is freed, and nothing is
/// sent.
struct Process {
    runtime: tokio::runtime::Runtime,
    leadership: Option<Leadership>,
    elector: StoreElector,
    link: Link,
}

impl Process {
    fn start(store: &MemoryStore, resume_file: &Path) -> Result<Self, Error> {
        let runtime =
            tokio::runtime::Builder::new_current_thread().enable_all().start_paused(true).build().unwrap();
        let backend = store.backend();
        let link = backend.link().clone();
        let config =
            Config::new().with_ttl(TTL).with_id(CandidateId::new("a")?).with_resume_file(resume_file);
        let elector = {
            let _entered = runtime.enter();
            StoreElector::with_clock(Arc::new(backend), config, Arc::new(SimClock::new()))?
        };
        Ok(Self { runtime, leadership: None, elector, link })
    }

    /// The token, if it leads within `time`.
    fn leads_within(&mut self, time: Duration) -> Option<FencingToken> {
        let campaign = self.elector.campaign("e");
        let leading = self.runtime.block_on(async { tokio::time::timeout(time, campaign).await.ok() });
        let leadership = self.leadership.insert(leading?.unwrap());
        Some(leadership.fencing_token())
    }

    /// Whether it leads now, by its own clock, which has not advanced since it was used last.
    fn is_leader(&self) -> bool {
        let leadership = self.leadership.as_ref();
        self.runtime.block_on(async { leadership.is_some_and(|leadership| leadership.is_leader()) })
    }
}

fn resume_file() -> (TempDir, PathBuf) {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("resume");
    (directory, path)
}

/// Hazard G39: the successor of a killed process leads at once, with a higher token; without the file it waits for the TTL.
#[test]
fn a_restarted_process_leads_at_once() {
    let (directory, path) = resume_file();
    let store = MemoryStore::new();
    let mut last = None;
    for _ in 0..3 {
        let mut process = Process::start(&store, &path).unwrap();
        let token = process.leads_within(SOON).expect("the session of the killed process has ended");
        assert!(Some(token) > last);
        last = Some(token);
        assert_eq!((store.entries("e").len(), store.sessions().len()), (1, 1));
    }
    let mut other = Process::start(&store, &directory.path().join("other")).unwrap();
    assert_eq!(other.leads_within(SOON), None);
    assert!(other.leads_within(TTL * 2) > last);
}

/// Hazard G35: the next process notices that the store was wiped meanwhile, once.
#[test]
fn tokens_that_go_back_are_noticed_after_a_restart() {
    let log = CapturedLog::default();
    let _default = log.install();
    let (_directory, path) = resume_file();
    let store = MemoryStore::new();
    let mut token = None;
    for _ in 0..3 {
        let mut process = Process::start(&store, &path).unwrap();
        token = process.leads_within(SOON);
        process.runtime.block_on(async { tokio::time::sleep(SOON).await });
    }
    // It does not lead, and keeps what the others have seen.
    drop(Process::start(&store, &path).unwrap());
    assert_eq!(reported(&log), []);
    store.wipe_with_tokens();
    for _ in 0..2 {
        let mut process = Process::start(&store, &path).unwrap();
        assert!(process.leads_within(SOON) < token && process.is_leader());
        process.runtime.block_on(async { tokio::time::sleep(SOON).await });
        let highest = token.unwrap().get();
        assert_eq!(reported(&log), [("e".to_owned(), highest)]);
    }
}

/// Hazard G35: many wins cost one write of the file, some time later. It has the highest tokens.
#[test]
fn the_highest_tokens_are_saved_together() {
    let (_directory, path) = resume_file();
    let store = MemoryStore::new();
    let process = Process::start(&store, &path).unwrap();
    let tokens = || -> Vec<u64> {
        let saved = fs::read_to_string(&path).unwrap();
        let lines = saved.lines().filter_map(|line| line.strip_prefix("token "));
        let mut tokens: Vec<_> = lines.map(|line| line.split_once(' ').unwrap().1.parse().unwrap()).collect();
        tokens.sort_unstable();
        tokens
    };
    let mut held = Vec::new();
    process.runtime.block_on(async {
        for n in 0..300 {
            held.push(process.elector.campaign(&format!("e{n}")).await.unwrap());
        }
        assert!(tokens().is_empty(), "the wins were not written one by one");
        tokio::time::sleep(SOON).await;
    });
    let expected: Vec<_> = held[44..].iter().map(|leadership| leadership.fencing_token().get()).collect();
    assert_eq!(tokens(), expected);
}

/// Hazard G39: while a process lives, nobody gets its resume file.
#[test]
fn the_file_of_a_live_process_is_refused() {
    let (_directory, path) = resume_file();
    let store = MemoryStore::new();
    let mut process = Process::start(&store, &path).unwrap();
    process.leads_within(SOON).unwrap();
    let Err(Error::InvalidConfig(InvalidConfig::ResumeFile { problem, .. })) = Process::start(&store, &path)
    else {
        panic!("a second process has the file");
    };
    assert!(problem.contains("another live process"), "{problem}");
    assert!(process.is_leader());
    drop(process);
    Process::start(&store, &path).unwrap();
}

/// Hazard G39: a copy of the file of a live process, which can be locked, does not end its session.
#[test]
fn a_copied_file_ends_no_session() {
    assert_eq!(leads_by_a_copied_file(), None);
}

/// The token with which a process leads that has a copy of the resume file of a live leader.
pub(crate) fn leads_by_a_copied_file() -> Option<FencingToken> {
    let (directory, path) = resume_file();
    let store = MemoryStore::new();
    let mut process = Process::start(&store, &path).unwrap();
    process.leads_within(SOON).unwrap();
    let copy = directory.path().join("copy");
    fs::copy(&path, &copy).unwrap();
    let token = Process::start(&store, &copy).unwrap().leads_within(SOON);
    assert!(process.is_leader());
    token
}

/// The token with which a process leads that uses the resume file of a live leader; `None` when that is refused.
#[cfg(tenure_mutants)]
pub(crate) fn leads_by_the_file_of_a_live_process() -> Option<FencingToken> {
    let (_directory, path) = resume_file();
    let store = MemoryStore::new();
    let mut process = Process::start(&store, &path).unwrap();
    process.leads_within(SOON).unwrap();
    let token = Process::start(&store, &path).ok()?.leads_within(SOON);
    assert!(process.is_leader());
    token
}

/// Hazard G39: the file contains a session before it can have an entry.
#[test]
fn a_session_is_saved_before_it_has_an_entry() {
    let (_directory, path) = resume_file();
    let store = MemoryStore::new();
    let mut process = Process::start(&store, &path).unwrap();
    process.link.set(&[Op::Enter], Direction::Request, Delivery::Fail);
    assert_eq!(process.leads_within(SOON), None);
    let saved = fs::read_to_string(&path).unwrap();
    let session = store.sessions()[0];
    let is_of_session = |line: &str| line.split(' ').nth(2) == Some(&session.to_string());
    assert!(saved.lines().any(is_of_session), "{session} is not in {saved}");
    assert_eq!(store.entry_count(), 0);
}

/// Hazard G39: a session that was closed is not in the file any more.
#[test]
fn a_closed_session_is_removed() {
    let (_directory, path) = resume_file();
    let store = MemoryStore::new();
    let mut process = Process::start(&store, &path).unwrap();
    process.leads_within(SOON).unwrap();
    assert!(fs::read_to_string(&path).unwrap().contains("\nsession "));
    drop(process.leadership.take());
    process.runtime.block_on(process.elector.close());
    assert!(!fs::read_to_string(&path).unwrap().contains("\nsession "));
}

/// Hazard G39: a store that does not end the session delays the campaign by the request timeout at most; then the TTL is waited
/// for. The session stays in the file.
#[test]
fn a_session_that_cannot_be_ended_expires() {
    let (_directory, path) = resume_file();
    let store = MemoryStore::new();
    Process::start(&store, &path).unwrap().leads_within(SOON).unwrap();
    let mut second = Process::start(&store, &path).unwrap();
    second.link.set(&[Op::Close], Direction::Request, Delivery::Fail);
    assert_eq!(second.leads_within(SOON), None);
    assert!(second.leads_within(TTL * 2).is_some());
    assert_eq!(fs::read_to_string(&path).unwrap().matches("\nsession ").count(), 2);
}

/// Hazard G39: a session with the same id in another store is not ended.
#[test]
fn a_session_of_another_store_is_not_ended() {
    let (directory, path) = resume_file();
    let (store, other) = (MemoryStore::new(), MemoryStore::new());
    Process::start(&store, &path).unwrap().leads_within(SOON).unwrap();
    let mut other_process = Process::start(&other, &directory.path().join("other_process")).unwrap();
    other_process.leads_within(SOON).unwrap();
    assert_eq!(store.sessions(), other.sessions());
    let mut process = Process::start(&other, &path).unwrap();
    assert_eq!(process.leads_within(SOON), None);
    assert!(other_process.is_leader());
}

/// Hazard G39: an id is no proof: a session with entries of another process is not ended.
#[test]
fn a_session_with_entries_of_another_process_is_not_ended() {
    let (_directory, path) = resume_file();
    let store = MemoryStore::new();
    let mut process = Process::start(&store, &path).unwrap();
    process.leads_within(SOON).unwrap();
    let saved = fs::read_to_string(&path).unwrap();
    let words: Vec<&str> =
        saved.lines().find_map(|line| line.strip_prefix("session ")).unwrap().split(' ').collect();
    let nonce = u64::from_str_radix(words[0], 16).unwrap();
    let end = |nonce, cluster: &str| {
        let record = SessionRecord::new(words[1], cluster, nonce);
        let backend = store.backend();
        process.runtime.block_on(async move { backend.end_session(&record).await })
    };
    for (nonce, cluster) in [(nonce + 1, words[2]), (nonce, "another")] {
        assert_eq!(end(nonce, cluster).unwrap_err().kind(), BackendErrorKind::Invalid);
        assert_eq!(store.entry_count(), 1);
    }
    end(nonce, words[2]).unwrap();
    assert_eq!((store.entry_count(), store.sessions().len()), (0, 0));
    end(nonce, words[2]).unwrap();
}
