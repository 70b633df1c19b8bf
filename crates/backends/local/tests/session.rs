//! The SPI's contract, within one process.
#![allow(missing_docs)]

mod common;

use std::{path::Path, time::Duration};

use common::{election, files, fresh, request, session, soon, until};
use futures::{FutureExt, StreamExt};
use tenure_core::{
    Error, Level,
    spi::{Backend, BackendErrorKind, Capabilities, Entry, HeartbeatProof},
};
use tenure_local::LocalBackend;

const CROWD: usize = 8;

#[tokio::test]
async fn a_session_lives_as_long_as_the_process() {
    let (_dir, backend) = fresh();
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
    let (dir, backend) = fresh();
    // Two backends on one directory, as two libraries in one process may have.
    let other = LocalBackend::open(dir.path()).unwrap();
    let sessions = [session(&backend).await, session(&other).await, session(&backend).await];
    let mut entries = Vec::new();
    for (n, s) in sessions.iter().enumerate() {
        let request = request("e", &format!("c{n}"));
        let entered = s.enter(&request).await.unwrap();
        assert_eq!(entered.leads.is_some(), n == 0);
        entries.push((request, entered));
    }
    let shown = backend.candidates(&election("e")).await.unwrap();
    assert_eq!(shown.iter().map(|c| c.id.as_str()).collect::<Vec<_>>(), ["c0", "c1", "c2"]);
    assert_eq!(shown[1].value, b"value of c1");
    assert_eq!(shown[1].session, sessions[1].id());
    assert_eq!(shown[1].token.unwrap().get(), entries[1].1.entry.version);
    assert!(shown[1].age.unwrap() < Duration::from_secs(60));
    assert_eq!(backend.leader(&election("e")).await.unwrap().unwrap().id, "c0");

    let mut last = entries[0].1.leads.unwrap();
    for n in 1..3 {
        let turn = sessions[n].wait_turn(&entries[n].1.entry);
        tokio::pin!(turn);
        assert!(tokio::time::timeout(Duration::from_millis(30), &mut turn).await.is_err());
        sessions[n - 1].leave(&entries[n - 1].0, None).await.unwrap();
        let token = soon("the next one's turn", turn).await.unwrap();
        assert!(token > last);
        last = token;
    }
    sessions[2].leave(&entries[2].0, Some(&entries[2].1.entry)).await.unwrap();
    assert_eq!(backend.leader(&election("e")).await.unwrap(), None);
    assert!(files(dir.path(), "e").is_empty());
}

#[tokio::test]
async fn the_middle_candidate_leaves_and_its_neighbour_is_not_promoted() {
    let (_dir, backend) = fresh();
    let s = session(&backend).await;
    let [a, b, c] = ["a", "b", "c"].map(|id| request("e", id));
    s.enter(&a).await.unwrap();
    s.enter(&b).await.unwrap();
    let entered = s.enter(&c).await.unwrap();
    let turn = s.wait_turn(&entered.entry);
    tokio::pin!(turn);
    assert!(turn.as_mut().now_or_never().is_none());
    s.leave(&b, None).await.unwrap();
    assert!(tokio::time::timeout(Duration::from_millis(100), &mut turn).await.is_err());
    s.leave(&a, None).await.unwrap();
    soon("the last one's turn", turn).await.unwrap();
}

#[tokio::test]
async fn entering_twice_makes_one_entry_and_leaving_twice_is_fine() {
    let (dir, backend) = fresh();
    let s = session(&backend).await;
    let request = request("e", "a");
    s.leave(&request, None).await.unwrap();
    let first = s.enter(&request).await.unwrap();
    assert_eq!(s.enter(&request).await.unwrap(), first);
    assert_eq!(files(dir.path(), "e").len(), 1);
    s.leave(&request, Some(&first.entry)).await.unwrap();
    s.leave(&request, Some(&first.entry)).await.unwrap();
    assert!(files(dir.path(), "e").is_empty());
    let gone = s.wait_turn(&first.entry).await.unwrap_err();
    assert_eq!(gone.kind(), BackendErrorKind::EntryGone);
    soon("gone", s.wait_deleted(&first.entry)).await.unwrap();
}

/// G10: whenever a campaign is dropped, its entry goes.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_dropped_enter_leaves_nothing_behind() {
    let (dir, backend) = fresh();
    let s = session(&backend).await;
    for n in 0..200_u64 {
        let request = request("e", "a");
        let bound = Duration::from_micros(n * 15);
        let entered = tokio::time::timeout(bound, s.enter(&request)).await;
        s.leave(&request, None).await.unwrap();
        assert!(files(dir.path(), "e").is_empty(), "round {n}, {entered:?}");
    }
    // Dropped after its first poll, with the job on its way.
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
    let (dir, backend) = fresh();
    for n in 0..50_u64 {
        let s = session(&backend).await;
        let request = request("e", "a");
        let _ = tokio::time::timeout(Duration::from_micros(n * 30), s.enter(&request)).await;
        s.close().await.unwrap();
        assert!(files(dir.path(), "e").is_empty(), "round {n}");
    }
}

#[tokio::test]
async fn a_dropped_sessions_entries_are_dead_and_swept() {
    let (dir, backend) = fresh();
    let one = session(&backend).await;
    one.enter(&request("e", "a")).await.unwrap();
    one.enter(&request("e", "b")).await.unwrap();
    let two = session(&backend).await;
    let waiting = two.enter(&request("e", "c")).await.unwrap();
    let turn = two.wait_turn(&waiting.entry);
    tokio::pin!(turn);
    assert!(turn.as_mut().now_or_never().is_none());
    drop(one);
    assert_eq!(soon("its turn", turn).await.unwrap().get(), waiting.entry.version);
    assert_eq!(files(dir.path(), "e").len(), 1);
}

/// G12, G13: an entry deleted by an operator is noticed, leading or waiting.
#[tokio::test]
async fn a_deleted_entry_is_noticed_by_its_owner_at_once() {
    let (dir, backend) = fresh();
    let s = session(&backend).await;
    let leader = s.enter(&request("e", "a")).await.unwrap().entry;
    let waiter = s.enter(&request("e", "b")).await.unwrap().entry;
    let (gone, turn) = (s.wait_deleted(&leader), s.wait_turn(&waiter));
    tokio::pin!(gone, turn);
    assert!(tokio::time::timeout(Duration::from_millis(50), &mut gone).await.is_err());
    assert!(tokio::time::timeout(Duration::from_millis(50), &mut turn).await.is_err());
    let path = |e: &Entry| dir.path().join("elections").join(&*e.key);
    std::fs::remove_file(path(&waiter)).unwrap();
    assert_eq!(soon("noticed", &mut turn).await.unwrap_err().kind(), BackendErrorKind::EntryGone);
    std::fs::remove_file(path(&leader)).unwrap();
    soon("noticed", gone).await.unwrap();
    assert_eq!(s.wait_turn(&leader).await.unwrap_err().kind(), BackendErrorKind::EntryGone);
    let update = s.update(&leader, &request("e", "a")).await.unwrap_err();
    assert_eq!(update.kind(), BackendErrorKind::EntryGone);
}

#[tokio::test]
async fn a_deleted_election_or_store_is_noticed_and_tokens_go_on() {
    let (dir, backend) = fresh();
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
        assert!(leader.leads.is_some());
        let leader = leader.entry;
        assert!(leader.version > last, "{} after {last}", leader.version);
        let waiter = s.enter(&b).await.unwrap().entry;
        last = waiter.version;
        let (gone, turn) = (s.wait_deleted(&leader), s.wait_turn(&waiter));
        tokio::pin!(gone, turn);
        assert!(gone.as_mut().now_or_never().is_none());
        assert!(tokio::time::timeout(Duration::from_millis(20), &mut turn).await.is_err());
        wipe();
        soon("noticed", gone).await.unwrap();
        assert_eq!(soon("noticed", turn).await.unwrap_err().kind(), BackendErrorKind::EntryGone);
        s.leave(&a, Some(&leader)).await.unwrap();
        s.leave(&b, Some(&waiter)).await.unwrap();
        assert_eq!(backend.leader(&election("e")).await.unwrap(), None);
    }
}

/// G19: whoever watches hears of every leader and of vacancies.
#[tokio::test]
async fn an_observer_sees_vacancy_leaders_and_new_values() {
    let (dir, backend) = fresh();
    let mut seen = backend.observe(&election("e")).await.unwrap();
    assert_eq!(soon("vacant", seen.next()).await.unwrap().unwrap(), None);
    assert!(!dir.path().join("elections/e").exists(), "observing makes nothing");
    let (s, other) = (session(&backend).await, session(&backend).await);
    let (mut a, b) = (request("e", "a"), request("e", "b"));
    let entry = s.enter(&a).await.unwrap().entry;
    other.enter(&b).await.unwrap();
    assert_eq!(soon("a", seen.next()).await.unwrap().unwrap().unwrap().id, "a");
    a.value = b"new".as_slice().into();
    s.update(&entry, &a).await.unwrap();
    assert_eq!(soon("new value", seen.next()).await.unwrap().unwrap().unwrap().value, b"new");
    s.leave(&a, Some(&entry)).await.unwrap();
    assert_eq!(soon("b", seen.next()).await.unwrap().unwrap().unwrap().id, "b");
    drop(other);
    assert_eq!(soon("vacant", seen.next()).await.unwrap().unwrap(), None);
    backend.close().await;
    assert!(soon("its end", seen.next()).await.unwrap().is_err());
    assert!(seen.next().await.is_none());
}

#[tokio::test]
async fn an_entry_written_over_still_leads_and_garbage_does_not() {
    let (dir, backend) = fresh();
    let s = session(&backend).await;
    let entry = s.enter(&request("e", "a")).await.unwrap().entry;
    let elections = dir.path().join("elections");
    std::fs::write(elections.join("e/README"), "not ours").unwrap();
    std::fs::write(elections.join(&*entry.key), "over").unwrap();
    let shown = backend.candidates(&election("e")).await.unwrap();
    assert_eq!(shown.len(), 1);
    assert!(entry.key.ends_with(&shown[0].id), "{shown:?}");
    s.close().await.unwrap();
    assert_eq!(files(dir.path(), "e"), ["README"]);
}

/// G18: no name of an election reaches into another's entries, or the store's own files.
#[tokio::test]
async fn names_that_look_like_each_other_are_separate_elections() {
    let (_dir, backend) = fresh();
    let long = "x".repeat(255);
    let s = session(&backend).await;
    for name in ["a", "ab", "a.b", ".a", "...", "elections", "tokens", "-", &long] {
        let entered = s.enter(&request(name, "c")).await.unwrap();
        assert!(entered.leads.is_some(), "{name}");
        assert_eq!(backend.candidates(&election(name)).await.unwrap().len(), 1);
    }
}

#[tokio::test]
async fn the_largest_value_can_be_read_back() {
    let (_dir, backend) = fresh();
    let s = session(&backend).await;
    let mut request = request("e", &"i".repeat(255));
    request.value = vec![0xff; tenure_core::MAX_VALUE_BYTES].into();
    let entry = s.enter(&request).await.unwrap().entry;
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
        // Refused to everybody, root included.
        let error = LocalBackend::open("/sys/kernel/tenure").unwrap_err();
        assert!(matches!(error, Error::Unauthorized(_)), "{error:?}");
        assert!(error.to_string().contains("/sys/kernel/tenure"), "{error}");
    }
}

#[test]
fn a_directory_that_was_missing_is_its_owners_alone() {
    use std::os::unix::fs::PermissionsExt;
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("a/b");
    let backend = LocalBackend::open(&path).unwrap();
    assert_eq!(backend.dir(), path);
    assert_eq!(path.metadata().unwrap().permissions().mode() & 0o777, 0o700);
}

/// Many candidates of several backends at once: one leader at a time, tokens increase, all lead.
#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn a_crowd_leads_one_at_a_time() {
    use std::sync::{Arc, Mutex};
    let dir = tempfile::tempdir().unwrap();
    let last = Arc::new(Mutex::new(0_u64));
    let crowd = (0..CROWD).map(|n| {
        let backend = LocalBackend::open(dir.path()).unwrap();
        let last = Arc::clone(&last);
        tokio::spawn(async move {
            for round in 0..15 {
                let s = session(&backend).await;
                let request = request("e", &format!("c{n}-{round}"));
                let entered = soon("entering", s.enter(&request)).await.unwrap();
                let token = match entered.leads {
                    Some(token) => token,
                    None => soon("its turn", s.wait_turn(&entered.entry)).await.unwrap(),
                };
                {
                    let mut last = last.try_lock().expect("two leaders");
                    assert!(token.get() > *last);
                    *last = token.get();
                    std::thread::yield_now();
                }
                // Half leave; the others' locks go with them, as in a crash.
                if fastrand::bool() {
                    s.leave(&request, Some(&entered.entry)).await.unwrap();
                }
            }
            backend.close().await;
        })
    });
    for one in futures::future::join_all(crowd).await {
        one.unwrap();
    }
}

/// Nothing is left once all is closed: no descriptor, no watch, no thread that waits.
#[cfg(target_os = "linux")]
#[test]
fn nothing_leaks() {
    fn count(of: &str) -> usize {
        Path::new("/proc/self").join(of).read_dir().unwrap().count()
    }
    let dir = tempfile::tempdir().unwrap();
    let runtime =
        || tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap();
    // The first runtime of a process may open what tokio keeps for good (its signal pipe).
    drop(runtime());
    let before = (count("task"), count("fd"));
    let runtime = runtime();
    runtime.block_on(async {
        let during = count("fd");
        let backend = LocalBackend::open(dir.path()).unwrap();
        let s = session(&backend).await;
        for n in 0..20 {
            let leads = s.enter(&request(&format!("e{n}"), "a")).await.unwrap().entry;
            let waits = s.enter(&request(&format!("e{n}"), "b")).await.unwrap().entry;
            let short = Duration::from_millis(5);
            assert!(tokio::time::timeout(short, s.wait_turn(&waits)).await.is_err());
            assert!(tokio::time::timeout(short, s.wait_deleted(&leads)).await.is_err());
        }
        let mut seen = backend.observe(&election("e1")).await.unwrap();
        seen.next().await.unwrap().unwrap();
        drop(seen);
        s.close().await.unwrap();
        backend.close().await;
        until("descriptors are closed", async || count("fd") == during).await;
    });
    drop(runtime);
    assert_eq!((count("task"), count("fd")), before);
}

/// Without the kernel's word, waiters look by themselves.
#[tokio::test]
async fn a_waiter_that_is_told_nothing_leads_all_the_same() {
    let (_dir, backend) = fresh();
    backend.close().await;
    let s = session(&backend).await;
    let (a, b) = (request("e", "a"), request("e", "b"));
    let leader = s.enter(&a).await.unwrap().entry;
    let waiting = s.enter(&b).await.unwrap().entry;
    let (turn, gone) = (s.wait_turn(&waiting), s.wait_deleted(&leader));
    tokio::pin!(turn, gone);
    assert!(tokio::time::timeout(Duration::from_millis(40), &mut turn).await.is_err());
    assert!(tokio::time::timeout(Duration::from_millis(40), &mut gone).await.is_err());
    s.leave(&a, None).await.unwrap();
    soon("its turn", turn).await.unwrap();
    soon("gone", gone).await.unwrap();
}

/// The watcher's task ends with the runtime that it was started on; the backend does not.
#[test]
fn a_backend_outlives_a_runtime() {
    let (_dir, backend) = fresh();
    for _ in 0..3 {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        runtime.block_on(async {
            let (s, other) = (session(&backend).await, session(&backend).await);
            let a = request("e", "a");
            s.enter(&a).await.unwrap();
            let waiting = other.enter(&request("e", "b")).await.unwrap().entry;
            let turn = other.wait_turn(&waiting);
            tokio::pin!(turn);
            assert!(tokio::time::timeout(Duration::from_millis(20), &mut turn).await.is_err());
            s.leave(&a, None).await.unwrap();
            soon("its turn", turn).await.unwrap();
        });
    }
}

/// A process stopped while it enters holds up those who enter, and nobody else.
#[tokio::test]
async fn a_process_stuck_while_entering_makes_the_store_unavailable_for_entering_only() {
    let (dir, backend) = fresh();
    let s = session(&backend).await;
    let (a, b) = (request("e", "a"), request("e", "b"));
    s.enter(&a).await.unwrap();
    let waiting = s.enter(&b).await.unwrap().entry;
    let stuck = std::fs::File::open(dir.path().join("tokens/e")).unwrap();
    stuck.lock().unwrap();
    let late = request("e", "c");
    let error = s.enter(&late).await.unwrap_err();
    assert_eq!(error.kind(), BackendErrorKind::Unavailable);
    assert!(error.to_string().contains("election e"), "{error}");
    s.leave(&late, None).await.unwrap();
    s.leave(&a, None).await.unwrap();
    soon("its turn", s.wait_turn(&waiting)).await.unwrap();
    drop(stuck);
    s.enter(&request("e", "c")).await.unwrap();
}

/// A directory that was there already and that everybody may write to is told of; the sticky bit of a root keeps what is in it.
#[tokio::test]
async fn a_directory_that_everybody_may_write_to_is_told_of() {
    use std::{fs, os::unix::fs::PermissionsExt};
    for (dir, mode, told) in [
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
            diagnoses.iter().filter(|diagnosis| diagnosis.text.contains("everybody")).collect();
        assert_eq!(!found.is_empty(), told, "{dir} {mode:o}: {diagnoses:?}");
        assert!(
            found.iter().all(|diagnosis| diagnosis.level == Level::Warning && diagnosis.text.contains(dir))
        );
    }
}
