//! Leaders that replace their program by `exec`.
#![allow(missing_docs)]

use std::{
    fs::{self, File},
    os::unix::process::ExitStatusExt as _,
    path::{Path, PathBuf},
    process::Command,
};

use rustix::{
    fs::{FlockOperation, flock},
    process::Signal,
};
use tenure_testkit::program::Program;

/// A leader that has become a program which only waits.
struct Replaced {
    program: Program,
    pid: String,
}

impl Replaced {
    /// Leads on the store of `url`, and calls `exec` then, in the way that `role` says.
    fn leader(role: &str, url: &str) -> Self {
        let mut command = Command::new(env!("CARGO_BIN_EXE_tenure-processes"));
        let mut program = Program::start(command.args([role, url, "wait"])).unwrap();
        let [leader, waits] = ["process", "waits"].map(|line| program.wait_for(line));
        let pid = leader.strip_prefix("process ").unwrap().to_owned();
        assert_eq!(waits, format!("waits as {pid}"));
        Self { program, pid }
    }

    /// The files below `directory` that it has open.
    fn open_files(&self, directory: &Path) -> Vec<PathBuf> {
        let descriptors = fs::read_dir(format!("/proc/{}/fd", self.pid)).unwrap().flatten();
        let files = descriptors.filter_map(|descriptor| fs::read_link(descriptor.path()).ok());
        files.filter(|file| file.starts_with(directory)).collect()
    }

    /// Ends it, and checks that it has lived until now.
    fn end(mut self) {
        self.program.terminate();
        assert_eq!(self.program.wait().unwrap().signal(), Some(Signal::TERM.as_raw()));
    }
}

/// On the local store the kernel releases the lock at `exec`, although the process lives on. A descriptor that is inherited
/// on purpose keeps the lock, which shows that this test would notice one.
#[tokio::test]
async fn a_leader_that_calls_exec_gives_up_its_lock() {
    let directory = tempfile::tempdir().unwrap();
    let url = format!("local:{}", directory.path().display());
    let elector = tenure::connect(&url).await.unwrap();

    let replaced = Replaced::leader("exec", &url);
    assert_eq!(replaced.open_files(directory.path()), Vec::<PathBuf>::new());
    let leadership = elector.try_campaign("e").await.unwrap().expect("the lock is held after exec");
    replaced.end();
    leadership.resign().await.unwrap();

    let replaced = Replaced::leader("exec-with-lock-file", &url);
    assert_eq!(replaced.open_files(directory.path()).len(), 1);
    assert!(elector.try_campaign("e").await.unwrap().is_none(), "the lock was not inherited");
    replaced.end();
    assert!(elector.try_campaign("e").await.unwrap().is_some());
}

/// Hazard G39: the lock of a resume file is free after `exec`, although the process lives on. The file still names the session.
#[test]
fn a_leader_that_calls_exec_frees_its_resume_file() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("resume");
    let replaced = Replaced::leader("exec", &format!("memory:?resume={}", path.display()));
    assert_eq!(replaced.open_files(directory.path()), Vec::<PathBuf>::new());
    flock(File::open(&path).unwrap(), FlockOperation::NonBlockingLockExclusive).unwrap();
    assert!(fs::metadata(&path).unwrap().len() > 0);
    replaced.end();
}
