//! The contract of the backend traits, within one process.
#![allow(missing_docs)]

mod common;

use std::{future::poll_fn, path::Path, time::Duration};

use common::{election, files, new_backend, request, session, until, wait_turn, within};
use futures::{FutureExt, StreamExt};
use tenure_core::{
    Error, Level,
    spi::{
        Backend, BackendError, BackendErrorKind, BackendSession, Capabilities, Entry, EntryEvent,
        HeartbeatProof,
    },
};
use tenure_local::LocalBackend;

const CANDIDATES: usize = 8;

#[tokio::test]
async fn a_session_lives_as_long_as_the_process() {
    let (_dir, backend) = new_backend();
    assert_eq!(backend.capabilities(), Capabilities::QUEUE.expiring(false));
    let (one, two) = (session(&backend).await, session(&backend).await);
    assert_ne!(one.id(), two.id());
    assert_eq!((one.proof(), one.granted_ttl()), (HeartbeatProof::Process, Duration::from_secs(5)));
    one.heartbeat().await.unwrap();
    one.close().await.unwrap();
    assert_eq!(one.heartbeat().await.unwrap_err().kind(), BackendErrorKind::SessionGone);
    let refused = one.enter(&request("e", "a")).await.unwrap_err();
    assert_eq!(refused.kind(), BackendErrorKind::SessionGone);
    two.heartbeat().await.unwrap();
}

#[tokio::test]
async fn candidates_lead_in_the_order_of_arrival_with_increasing_tokens() {
    let (dir, backend) = new_backend();
    // Two backends on one directory, as two libraries in one process may have.
    let other = LocalBackend::open(dir.path()).unwrap();
    let sessions = [session(&backend).await, session(&other).await, session(&backend).await];
    let mut entries = Vec::new();
    for (n, s) in sessions.iter().enumerate() {
        let request = request("e", &format!("c{n}"));
        let entered = s.enter(&request).await.unwrap();
        assert_eq!(entered.token().is_some(), n == 0);
        entries.push((request, entered));
    }
    let candidates = backend.candidates(&election("e")).await.unwrap();
    assert_eq!(candidates.iter().map(|c| c.id.as_str()).collect::<Vec<_>>(), ["c0", "c1", "c2"]);
    assert_eq!(candidates[1].value, b"value of c1");
    assert_eq!(candidates[1].session, sessions[1].id());
    assert_eq!(candidates[1].token.unwrap().get(), entries[1].1.entry().unwrap().version);
    assert!(candidates[1].age.unwrap() < Duration::from_secs(60));
    assert_eq!(backend.leader(&election("e")).await.unwrap().unwrap().id, "c0");

    let mut last = entries[0].1.token().unwrap();
    for n in 1..3 {
        let turn = wait_turn(&*sessions[n], entries[n].1.entry().unwrap());
        tokio::pin!(turn);
        assert!(tokio::time::timeout(Duration::from_millis(30), &mut turn).await.is_err());
        sessions[n - 1].leave(&entries[n - 1].0, None).await.unwrap();
        let token = within("the next one's turn", turn).await.unwrap();
        assert!(token > last);
        last = token;
    }
    sessions[2].leave(&entries[2].0, entries[2].1.entry()).await.unwrap();
    assert_eq!(backend.leader(&election("e")).await.unwrap(), None);
    assert!(files(dir.path(), "e").is_empty());
}

#[tokio::test]
async fn the_middle_candidate_leaves_and_its_neighbour_is_not_promoted() {
    let (_dir, backend) = new_backend();
    let s = session(&backend).await;
    let [a, b, c] = ["a", "b", "c"].map(|id| request("e", id));
    s.enter(&a).await.unwrap();
    s.enter(&b).await.unwrap();
    let entered = s.enter(&c).await.unwrap();
    let turn = wait_turn(&*s, entered.entry().unwrap());
    tokio::pin!(turn);
    assert!(turn.as_mut().now_or_never().is_none());
    s.leave(&b, None).await.unwrap();
    assert!(tokio::time::timeout(Duration::from_millis(100), &mut turn).await.is_err());
    s.leave(&a, None).await.unwrap();
    within("the last one's turn", turn).await.unwrap();
}

#[tokio::test]
async fn entering_twice_makes_one_entry_and_leaving_twice_is_fine() {
    let (dir, backend) = new_backend();
    let s = session(&backend).await;
    let request = request("e", "a");
    s.leave(&request, None).await.unwrap();
    let first = s.enter(&request).await.unwrap();
    assert_eq!(s.enter(&request).await.unwrap(), first);
    assert_eq!(files(dir.path(), "e").len(), 1);
    s.leave(&request, first.entry()).await.unwrap();
    s.leave(&request, first.entry()).await.unwrap();
    assert!(files(dir.path(), "e").is_empty());
    let gone = wait_turn(&*s, first.entry().unwrap()).await.unwrap_err();
    assert_eq!(gone.kind(), BackendErrorKind::EntryGone);
    within("gone", deleted(&*s, first.entry().unwrap())).await.unwrap();
}

/// Waits until the entry is deleted.
async fn deleted(session: &dyn BackendSession, entry: &Entry) -> Result<(), BackendError> {
    let mut watcher = session.entry_watcher();
    watcher.add(0, entry);
    while poll_fn(|context| watcher.poll_next(context)).await?.1 != EntryEvent::Deleted {}
    Ok(())
}

/// G10: if a campaign is dropped at any point, its entry is removed.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_dropped_enter_leaves_nothing_behind() {
    let (dir, backend) = new_backend();
    let s = session(&backend).await;
    for n in 0..200_u64 {
        let request = request("e", "a");
        let bound = Duration::from_micros(n * 15);
        let entered = tokio::time::timeout(bound, s.enter(&request)).await;
        s.leave(&request, None).await.unwrap();
        assert!(files(dir.path(), "e").is_empty(), "round {n}, {entered:?}");
    }
    // Dropped after the first poll, while the file operation runs.
    for _ in 0..50 {
        let request = request("e", "a");
        assert!(s.enter(&request).now_or_never().is_none());
        s.leave(&request, None).await.unwrap();
        assert!(files(dir.path(), "e").is_empty());
    }
    assert!(backend.candidates(&election("e")).await.unwrap().is_empty());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn closing_during_enter_leaves_nothing_behind() {
    let (dir, backend) = new_backend();
    for n in 0..50_u64 {
        let s = session(&backend).await;
        let request = request("e", "a");
        let _ = tokio::time::timeout(Duration::from_micros(n * 30), s.enter(&request)).await;
        s.close().await.unwrap();
        assert!(files(dir.path(), "e").is_empty(), "round {n}");
    }
}

#[tokio::test]
async fn entries_of_a_dropped_session_are_dead_and_removed() {
    let (dir, backend) = new_backend();
    let one = session(&backend).await;
    one.enter(&request("e", "a")).await.unwrap();
    one.enter(&request("e", "b")).await.unwrap();
    let two = session(&backend).await;
    let waiting = two.enter(&request("e", "c")).await.unwrap();
    let turn = wait_turn(&*two, waiting.entry().unwrap());
    tokio::pin!(turn);
    assert!(turn.as_mut().now_or_never().is_none());
    drop(one);
    assert_eq!(within("its turn", turn).await.unwrap().get(), waiting.entry().unwrap().version);
    assert_eq!(files(dir.path(), "e").len(), 1);
}

/// G12, G13: a leader and a waiting candidate notice that an operator has deleted their entry.
#[tokio::test]
async fn a_deleted_entry_is_noticed_by_its_owner_at_once() {
    let (dir, backend) = new_backend();
    let s = session(&backend).await;
    let leader = s.enter(&request("e", "a")).await.unwrap().entry().unwrap().clone();
    let waiter = s.enter(&request("e", "b")).await.unwrap().entry().unwrap().clone();
    let (gone, turn) = (deleted(&*s, &leader), wait_turn(&*s, &waiter));
    tokio::pin!(gone, turn);
    assert!(tokio::time::timeout(Duration::from_millis(50), &mut gone).await.is_err());
    assert!(tokio::time::timeout(Duration::from_millis(50), &mut turn).await.is_err());
    let path = |e: &Entry| dir.path().join("elections").join(&*e.key);
    std::fs::remove_file(path(&waiter)).unwrap();
    assert_eq!(within("noticed", &mut turn).await.unwrap_err().kind(), BackendErrorKind::EntryGone);
    std::fs::remove_file(path(&leader)).unwrap();
    within("noticed", gone).await.unwrap();
    assert_eq!(wait_turn(&*s, &leader).await.unwrap_err().kind(), BackendErrorKind::EntryGone);
    let update = s.update(&leader, &request("e", "a")).await.unwrap_err();
    assert_eq!(update.kind(), BackendErrorKind::EntryGone);
}

#[tokio::test]
async fn a_deleted_election_or_store_is_noticed_and_tokens_go_on() {
    let (dir, backend) = new_backend();
    let s = session(&backend).await;
    let elections = dir.path().join("elections");
    let wipes: [&dyn Fn(); 4] = [
        &|| std::fs::remove_dir_all(elections.join("e")).unwrap(),
        &|| std::fs::rename(elections.join("e"), dir.path().join("moved")).unwrap(),
        &|| std::fs::remove_dir_all(&elections).unwrap(),
        &|| std::fs::remove_dir_all(dir.path()).unwrap(),
    ];
    let mut last = 0;
    for wipe in wipes {
        let [a, b] = ["a", "b"].map(|id| request("e", id));
        let leader = s.enter(&a).await.unwrap();
        assert!(leader.token().is_some());
        let leader = leader.entry().unwrap().clone();
        assert!(leader.version > last, "{} after {last}", leader.version);
        let waiter = s.enter(&b).await.unwrap().entry().unwrap().clone();
        last = waiter.version;
        let (gone, turn) = (deleted(&*s, &leader), wait_turn(&*s, &waiter));
        tokio::pin!(gone, turn);
        assert!(gone.as_mut().now_or_never().is_none());
        assert!(tokio::time::timeout(Duration::from_millis(20), &mut turn).await.is_err());
        wipe();
        within("noticed", gone).await.unwrap();
        assert_eq!(within("noticed", turn).await.unwrap_err().kind(), BackendErrorKind::EntryGone);
        s.leave(&a, Some(&leader)).await.unwrap();
        s.leave(&b, Some(&waiter)).await.unwrap();
        assert_eq!(backend.leader(&election("e")).await.unwrap(), None);
    }
}

/// G19: an observer sees every leader and every vacancy.
#[tokio::test]
async fn an_observer_sees_vacancy_leaders_and_new_values() {
    let (dir, backend) = new_backend();
    let mut leaders = backend.observe(&election("e")).await.unwrap();
    assert_eq!(within("vacant", leaders.next()).await.unwrap().unwrap(), None);
    assert!(!dir.path().join("elections/e").exists(), "observing creates no files");
    let (s, other) = (session(&backend).await, session(&backend).await);
    let (mut a, b) = (request("e", "a"), request("e", "b"));
    let entry = s.enter(&a).await.unwrap().entry().unwrap().clone();
    other.enter(&b).await.unwrap();
    assert_eq!(within("a", leaders.next()).await.unwrap().unwrap().unwrap().id, "a");
    a.value = b"new".as_slice().into();
    s.update(&entry, &a).await.unwrap();
    assert_eq!(within("new value", leaders.next()).await.unwrap().unwrap().unwrap().value, b"new");
    s.leave(&a, Some(&entry)).await.unwrap();
    assert_eq!(within("b", leaders.next()).await.unwrap().unwrap().unwrap().id, "b");
    drop(other);
    assert_eq!(within("vacant", leaders.next()).await.unwrap().unwrap(), None);
    backend.close().await;
    assert!(within("its end", leaders.next()).await.unwrap().is_err());
    assert!(leaders.next().await.is_none());
}

#[tokio::test]
async fn an_overwritten_entry_still_leads_and_foreign_files_do_not() {
    let (dir, backend) = new_backend();
    let s = session(&backend).await;
    let entry = s.enter(&request("e", "a")).await.unwrap().entry().unwrap().clone();
    let elections = dir.path().join("elections");
    std::fs::write(elections.join("e/README"), "foreign").unwrap();
    std::fs::write(elections.join(&*entry.key), "overwritten").unwrap();
    let candidates = backend.candidates(&election("e")).await.unwrap();
    assert_eq!(candidates.len(), 1);
    assert!(entry.key.ends_with(&candidates[0].id), "{candidates:?}");
    s.close().await.unwrap();
    assert_eq!(files(dir.path(), "e"), ["README"]);
}

/// G18: no election name leads to the entries of another election, or to the store's own files.
#[tokio::test]
async fn elections_with_similar_names_are_separate() {
    let (_dir, backend) = new_backend();
    let long = "x".repeat(255);
    let s = session(&backend).await;
    for name in ["a", "ab", "a.b", ".a", "...", "elections", "tokens", "-", &long] {
        let entered = s.enter(&request(name, "c")).await.unwrap();
        assert!(entered.token().is_some(), "{name}");
        assert_eq!(backend.candidates(&election(name)).await.unwrap().len(), 1);
    }
}

#[tokio::test]
async fn the_largest_value_can_be_read_back() {
    let (_dir, backend) = new_backend();
    let s = session(&backend).await;
    let mut request = request("e", &"i".repeat(255));
    request.value = vec![0xff; tenure_core::MAX_VALUE_BYTES].into();
    let entry = s.enter(&request).await.unwrap().entry().unwrap().clone();
    assert_eq!(backend.leader(&election("e")).await.unwrap().unwrap().value, *request.value);
    request.value = vec![0x0a; tenure_core::MAX_VALUE_BYTES].into();
    s.update(&entry, &request).await.unwrap();
    assert_eq!(backend.leader(&election("e")).await.unwrap().unwrap().value, *request.value);
}

#[test]
fn a_directory_that_cannot_be_used_is_refused_with_the_reason() {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("file");
    std::fs::write(&file, "").unwrap();
    for path in [&file, &file.join("below")] {
        let error = LocalBackend::open(path).unwrap_err();
        assert!(matches!(error, Error::Refused(_)), "{error:?}");
        assert!(!error.is_retryable() && error.to_string().contains("file"), "{error}");
    }
    if cfg!(target_os = "linux") {
        // The kernel refuses this to every user, including root.
        let error = LocalBackend::open("/sys/kernel/tenure").unwrap_err();
        assert!(matches!(error, Error::Unauthorized(_)), "{error:?}");
        assert!(error.to_string().contains("/sys/kernel/tenure"), "{error}");
    }
}

#[test]
fn a_created_directory_is_accessible_to_its_owner_only() {
    use std::os::unix::fs::PermissionsExt;
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("a/b");
    let backend = LocalBackend::open(&path).unwrap();
    assert_eq!(backend.dir(), path);
    assert_eq!(path.metadata().unwrap().permissions().mode() & 0o777, 0o700);
}

/// Many concurrent candidates of several backends: one leads at a time, tokens increase, and all get to lead.
#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn many_candidates_lead_one_at_a_time() {
    use std::sync::{Arc, Mutex};
    let dir = tempfile::tempdir().unwrap();
    let last = Arc::new(Mutex::new(0_u64));
    let candidates = (0..CANDIDATES).map(|n| {
        let backend = LocalBackend::open(dir.path()).unwrap();
        let last = Arc::clone(&last);
        tokio::spawn(async move {
            for round in 0..15 {
                let s = session(&backend).await;
                let request = request("e", &format!("c{n}-{round}"));
                let entered = within("entering", s.enter(&request)).await.unwrap();
                let token = match entered.token() {
                    Some(token) => token,
                    None => within("its turn", wait_turn(&*s, entered.entry().unwrap())).await.unwrap(),
                };
                {
                    let mut last = last.try_lock().expect("two leaders");
                    assert!(token.get() > *last);
                    *last = token.get();
                    std::thread::yield_now();
                }
                // Half of the sessions leave. The others are dropped, which releases their locks as a crash does.
                if fastrand::bool() {
                    s.leave(&request, entered.entry()).await.unwrap();
                }
            }
            backend.close().await;
        })
    });
    for outcome in futures::future::join_all(candidates).await {
        outcome.unwrap();
    }
}

/// After closing, no file descriptor, watch or thread remains.
#[cfg(target_os = "linux")]
#[test]
fn nothing_leaks() {
    fn count(of: &str) -> usize {
        Path::new("/proc/self").join(of).read_dir().unwrap().count()
    }
    let dir = tempfile::tempdir().unwrap();
    let runtime =
        || tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap();
    // The first runtime of a process can open descriptors that tokio never closes (its signal pipe).
    drop(runtime());
    let before = (count("task"), count("fd"));
    let runtime = runtime();
    runtime.block_on(async {
        let during = count("fd");
        let backend = LocalBackend::open(dir.path()).unwrap();
        let s = session(&backend).await;
        for n in 0..20 {
            let leads = s.enter(&request(&format!("e{n}"), "a")).await.unwrap().entry().unwrap().clone();
            let waits = s.enter(&request(&format!("e{n}"), "b")).await.unwrap().entry().unwrap().clone();
            let short = Duration::from_millis(5);
            assert!(tokio::time::timeout(short, wait_turn(&*s, &waits)).await.is_err());
            assert!(tokio::time::timeout(short, deleted(&*s, &leads)).await.is_err());
        }
        let mut leaders = backend.observe(&election("e1")).await.unwrap();
        leaders.next().await.unwrap().unwrap();
        drop(leaders);
        s.close().await.unwrap();
        backend.close().await;
        until("descriptors are closed", async || count("fd") == during).await;
    });
    drop(runtime);
    assert_eq!((count("task"), count("fd")), before);
}

/// Without inotify, waiting candidates poll.
#[tokio::test]
async fn a_waiting_candidate_without_notifications_still_leads() {
    let (_dir, backend) = new_backend();
    backend.close().await;
    let s = session(&backend).await;
    let (a, b) = (request("e", "a"), request("e", "b"));
    let leader = s.enter(&a).await.unwrap().entry().unwrap().clone();
    let waiting = s.enter(&b).await.unwrap().entry().unwrap().clone();
    let (turn, gone) = (wait_turn(&*s, &waiting), deleted(&*s, &leader));
    tokio::pin!(turn, gone);
    assert!(tokio::time::timeout(Duration::from_millis(40), &mut turn).await.is_err());
    assert!(tokio::time::timeout(Duration::from_millis(40), &mut gone).await.is_err());
    s.leave(&a, None).await.unwrap();
    within("its turn", turn).await.unwrap();
    within("gone", gone).await.unwrap();
}

/// The watcher's task ends with the runtime that it was started on. The backend continues on another runtime.
#[test]
fn a_backend_outlives_a_runtime() {
    let (_dir, backend) = new_backend();
    for _ in 0..3 {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        runtime.block_on(async {
            let (s, other) = (session(&backend).await, session(&backend).await);
            let a = request("e", "a");
            s.enter(&a).await.unwrap();
            let waiting = other.enter(&request("e", "b")).await.unwrap().entry().unwrap().clone();
            let turn = wait_turn(&*other, &waiting);
            tokio::pin!(turn);
            assert!(tokio::time::timeout(Duration::from_millis(20), &mut turn).await.is_err());
            s.leave(&a, None).await.unwrap();
            within("its turn", turn).await.unwrap();
        });
    }
}

/// A process that is stopped while it enters blocks other candidates that enter, and nothing else.
#[tokio::test]
async fn a_process_stopped_while_entering_blocks_only_entering() {
    let (dir, backend) = new_backend();
    let s = session(&backend).await;
    let (a, b) = (request("e", "a"), request("e", "b"));
    s.enter(&a).await.unwrap();
    let waiting = s.enter(&b).await.unwrap().entry().unwrap().clone();
    let stuck = std::fs::File::open(dir.path().join("tokens/e")).unwrap();
    stuck.lock().unwrap();
    let late = request("e", "c");
    let error = s.enter(&late).await.unwrap_err();
    assert_eq!(error.kind(), BackendErrorKind::Unavailable);
    assert!(error.to_string().contains("election e"), "{error}");
    s.leave(&late, None).await.unwrap();
    s.leave(&a, None).await.unwrap();
    within("its turn", wait_turn(&*s, &waiting)).await.unwrap();
    drop(stuck);
    s.enter(&request("e", "c")).await.unwrap();
}

/// An existing directory that every user can write to is reported. The sticky bit of the root directory protects its subdirectories.
#[tokio::test]
async fn a_world_writable_directory_is_reported() {
    use std::{fs, os::unix::fs::PermissionsExt};
    for (dir, mode, reported) in [
        ("", 0o777, true),
        ("", 0o1777, false),
        ("", 0o770, false),
        ("elections", 0o777, true),
        ("elections", 0o1777, true),
        ("tokens", 0o703, true),
        ("tokens", 0o755, false),
    ] {
        let root = tempfile::tempdir().unwrap();
        let path = root.path().join(dir);
        fs::create_dir_all(&path).unwrap();
        fs::set_permissions(&path, fs::Permissions::from_mode(mode)).unwrap();
        let diagnoses = LocalBackend::open(root.path()).unwrap().diagnose().await;
        let found: Vec<_> =
            diagnoses.iter().filter(|diagnosis| diagnosis.text.contains("every user")).collect();
        assert_eq!(!found.is_empty(), reported, "{dir} {mode:o}: {diagnoses:?}");
        assert!(
            found.iter().all(|diagnosis| diagnosis.level == Level::Warning && diagnosis.text.contains(dir))
        );
    }
}
