//! Processes that fork without `exec`.
#![allow(missing_docs)]

use std::{path::Path, process::Command};

use rustix::{
    fs::{FlockOperation, flock},
    process::{Pid, Signal, kill_process},
};
use tenure_testkit::program::Program;

fn start(arguments: &[&str]) -> Program {
    Program::start(Command::new(env!("CARGO_BIN_EXE_tenure-processes")).args(arguments)).unwrap()
}

/// A forked child is no leader, in whatever it asks, and can drop all that it has a copy of. The parent goes on.
#[test]
fn a_forked_child_does_not_lead() {
    let directory = tempfile::tempdir().unwrap();
    for store in ["memory:".to_owned(), format!("local:{}", directory.path().display())] {
        let mut leader = start(&["fork", &store]);
        leader.wait_for("checked");
        assert!(leader.wait().unwrap().success());
    }
}

/// What a process prints that locks a file in this way; then it is killed, while a forked child lives on. Returns whether the
/// lock was free after each.
fn freed_by(kind: &str, directory: &Path) -> [bool; 4] {
    let path = directory.join(kind);
    let mut holder = start(&["lock", kind, path.to_str().unwrap()]);
    let mut is_held = |when: &str| holder.wait_for(when).ends_with("true");
    let [locked, unlocked, closed] = ["locked", "unlocked", "closed"].map(&mut is_held);
    let child = holder.wait_for("child");
    let child = Pid::from_raw(child.rsplit(' ').next().unwrap().parse().unwrap()).unwrap();
    let is_free = || {
        let file = std::fs::File::open(&path).unwrap();
        flock(&file, FlockOperation::NonBlockingLockExclusive).is_ok()
    };
    let before = is_free();
    holder.kill();
    let after = is_free();
    kill_process(child, Signal::KILL).expect("the child has lived on");
    assert_eq!(before, !closed);
    [!locked, !unlocked, !closed, after]
}

/// Hazard G39: a plain lock of a live process is freed by a child that unlocks it, or when all files are closed. A pinned one
/// is held through both. It is free once the process is dead, also while a forked child is alive.
#[test]
fn a_pinned_lock_lasts_as_long_as_its_process() {
    let disk = tempfile::tempdir().unwrap();
    let memory = tempfile::tempdir_in("/dev/shm").unwrap();
    for directory in [disk.path(), memory.path()] {
        assert_eq!(freed_by("plain", directory), [false, true, true, true]);
        assert_eq!(freed_by("pinned", directory), [false, false, false, true]);
    }
}
