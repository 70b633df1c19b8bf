//! Commands under limits on processes and open files.

mod common;

use std::{
    fs,
    os::unix::fs::PermissionsExt as _,
    process::Command,
    sync::atomic::{AtomicU32, Ordering},
};

use common::{RunningCommand, Sandbox};

/// A user of its own, since processes are counted by user.
fn unused_user() -> u32 {
    static COUNT: AtomicU32 = AtomicU32::new(0);
    2_000_000 + 128 * std::process::id() + COUNT.fetch_add(1, Ordering::Relaxed)
}

/// A copy of the command in a directory that other users can read.
fn readable_by_all(sandbox: &Sandbox) -> String {
    let copy = sandbox.file("tenure");
    fs::copy(env!("CARGO_BIN_EXE_tenure"), &copy).unwrap();
    fs::set_permissions(&copy, fs::Permissions::from_mode(0o755)).unwrap();
    fs::set_permissions(sandbox.file(""), fs::Permissions::from_mode(0o777)).unwrap();
    copy.display().to_string()
}

/// Runs `tenure run -- true` below a limit. Returns its exit code and its standard error.
fn run_below(limit: &str, store: Option<&str>) -> (Option<i32>, String) {
    let sandbox = Sandbox::local();
    let tenure = readable_by_all(&sandbox);
    let mut command = Command::new("prlimit");
    command.arg(limit).arg("setpriv").arg(format!("--reuid={}", unused_user())).arg("--clear-groups");
    command.args([&tenure, "run", "--timeout", "2s", "--", "true"]).current_dir(sandbox.file(""));
    command.env("TENURE_STORE", store.unwrap_or(&sandbox.url)).env("TENURE_ELECTION", "e");
    let stderr = fs::File::create(sandbox.file("stderr")).unwrap();
    let code = RunningCommand::start(command.stderr(stderr)).wait().code();
    (code, fs::read_to_string(sandbox.file("stderr")).unwrap())
}

/// Case 42. The command neither panics nor hangs, and says which limit is too low.
#[test]
fn a_limit_ends_it_with_a_code_and_a_reason() {
    let limits = (1..=16).map(|count| format!("--nproc={count}:{count}"));
    for limit in limits.chain((4..=68).step_by(4).map(|count| format!("--nofile={count}:{count}"))) {
        let (code, stderr) = run_below(&limit, None);
        assert!(!stderr.contains("panicked"), "{limit}: {stderr}");
        match code {
            Some(0) => assert!(!stderr.contains("ulimit"), "{limit}: {stderr}"),
            Some(70) => {
                let option = if limit.contains("nproc") { "ulimit -u" } else { "ulimit -n" };
                assert_eq!(stderr.lines().count(), 1, "{limit}: {stderr}");
                assert!(stderr.contains(option), "{limit}: {stderr}");
            }
            _ => panic!("{limit}: {code:?} {stderr}"),
        }
    }
    let (code, stderr) = run_below("--nproc=64:64", None);
    assert!(code == Some(0) && stderr.starts_with("tenure: leads e with token "), "{code:?} {stderr}");
}

#[cfg(feature = "zookeeper")]
#[test]
fn a_limit_is_the_reason_also_when_the_store_is_down() {
    for limit in ["--nproc=2:2", "--nproc=7:7", "--nproc=13:13", "--nofile=20:20", "--nofile=64:64"] {
        let (code, stderr) = run_below(limit, Some("zookeeper://127.0.0.1:1/"));
        assert!(matches!(code, Some(70 | 75)), "{limit}: {code:?} {stderr}");
        assert_eq!(code == Some(70), stderr.contains("ulimit"), "{limit}: {stderr}");
        assert!(!stderr.contains("panicked"), "{limit}: {stderr}");
    }
}
