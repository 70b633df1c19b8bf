//! `tenure run` and its guard when they cannot read `/proc`, and with processes that only appear dead: no other node
//! becomes leader before every process that the program has started is known to be dead.

mod common;

use std::{
    fs,
    process::{Command, Stdio},
};

use common::{
    CHECK_ALONE, RunningCommand, STUBBORN_PROGRAM, Sandbox, children, eventually, is_running, kill,
};
use rustix::process::{Pid, Resource, Rlimit, getrlimit, prlimit};

/// Starts a daemon in a session of its own. The kernel truncates its name to 15 bytes, within a character.
const TRUNCATED_NAME: &str = "printf '#!/bin/sh\nwhile test -d \"$PWD\"; do sleep 1; done\n' > ööööööööö
    chmod +x ööööööööö
    setsid ./ööööööööö & echo $! > pids.new; mv pids.new pids
    while test -d \"$PWD\"; do sleep 1; done";

/// Starts a daemon in a session of its own whose main thread exits while another one works for 15 s.
const WITHOUT_MAIN_THREAD: &str = "setsid python3 -c '
import ctypes, os, threading, time
def work():
    while open(\"/proc/self/stat\").read().rsplit(\")\")[-1].split()[0] != \"Z\":
        time.sleep(0.01)
    with open(\"pids.new\", \"w\") as file:
        print(os.getpid(), file=file)
    os.rename(\"pids.new\", \"pids\")
    time.sleep(15)
    open(\"finished\", \"w\").close()
threading.Thread(target=work).start()
ctypes.CDLL(None).pthread_exit(None)
' &
    while test -d \"$PWD\"; do sleep 1; done";

/// Sets how many files a process may have open. Returns the limit before.
fn limit_files(pid: impl ToString, current: u64) -> Rlimit {
    let new = Rlimit { current: Some(current), maximum: getrlimit(Resource::Nofile).maximum };
    set_limit(pid, new)
}

fn set_limit(pid: impl ToString, limit: Rlimit) -> Rlimit {
    let pid = Pid::from_raw(pid.to_string().parse().unwrap());
    prlimit(Some(pid.unwrap()), Resource::Nofile, limit).unwrap()
}

/// Starts a candidate that succeeds if it leads alone. Returns when it is in the queue.
fn start_successor(sandbox: &Sandbox) -> RunningCommand {
    let next = sandbox.start(&["--quiet"], &format!("echo leads > next; {CHECK_ALONE}"));
    eventually("a second candidate", || (sandbox.candidates().len() == 2).then_some(()));
    next
}

/// G37: a guard that cannot open any file still kills every process, and holds the lock until they are dead.
#[test]
fn a_guard_that_can_open_nothing_leaves_nothing_running() {
    for limit in [3, 0] {
        let sandbox = Sandbox::local();
        let mut first = sandbox.start(&[], STUBBORN_PROGRAM);
        let pids = sandbox.wait_for_line("pids");
        let mut successor = start_successor(&sandbox);
        limit_files(&children(first.pid())[0], limit);
        first.signal("KILL");
        assert_eq!(successor.code_and_stderr(), (Some(0), String::new()), "{limit} files");
        assert!(pids.split(' ').all(|pid| !is_running(pid)), "{pids}");
        first.wait();
    }
}

/// G37: tenure takes over from a guard that was killed. It must not kill processes that are older than itself, and
/// cannot tell those from later ones with the same id while it cannot read `/proc`. It keeps the lock until it can.
#[test]
fn tenure_releases_nothing_while_it_cannot_tell_what_is_left() {
    let sandbox = Sandbox::local();
    let tenure = env!("CARGO_BIN_EXE_tenure");
    let script = format!(
        "while test -d \"$PWD\"; do sleep 1; done & echo $! > sidecar
        exec {tenure} run --quiet -- sh -c \"$STUBBORN_PROGRAM\" 2> stderr"
    );
    let mut command = Command::new("sh");
    command.args(["-c", &script]).current_dir(sandbox.file(""));
    command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
    let mut first = RunningCommand::start(
        command
            .env("TENURE_STORE", &sandbox.url)
            .env("TENURE_ELECTION", "e")
            .env("STUBBORN_PROGRAM", STUBBORN_PROGRAM),
    );
    let pids = sandbox.wait_for_line("pids");
    let sidecar = sandbox.wait_for_line("sidecar");
    let guard = children(first.pid()).into_iter().find(|pid| *pid != sidecar).unwrap();
    let mut successor = start_successor(&sandbox);

    let before = limit_files(first.pid(), 3);
    kill("KILL", guard);
    let stderr = || fs::read_to_string(sandbox.file("stderr")).unwrap();
    eventually("a message that tenure cannot read /proc, or another leader", || {
        (stderr().contains("cannot tell which of the program's") || sandbox.file("next").exists())
            .then_some(())
    });
    eventually("the end of the program's processes, or another leader", || {
        (pids.split(' ').all(|pid| !is_running(pid)) || sandbox.file("next").exists()).then_some(())
    });
    assert_eq!(sandbox.candidates().len(), 2, "{}", stderr());
    assert!(!sandbox.file("next").exists(), "{}", stderr());

    set_limit(first.pid(), before);
    assert_eq!(successor.code_and_stderr(), (Some(0), String::new()));
    assert_eq!(first.wait().code(), Some(137), "{}", stderr());
    assert_eq!(stderr().matches("cannot tell which of the program's").count(), 1, "{}", stderr());
    assert!(stderr().contains("Too many open files") && stderr().contains("can tell again"), "{}", stderr());
    assert!(is_running(&sidecar));
    kill("KILL", sidecar);
}

/// G37: a process is found although its name, which is not UTF-8, does not parse.
#[test]
fn a_process_is_killed_whatever_its_name() {
    let sandbox = Sandbox::local();
    let mut first = sandbox.start(&[], TRUNCATED_NAME);
    let daemon = sandbox.wait_for_line("pids");
    eventually("a truncated name", || {
        let name = fs::read(format!("/proc/{daemon}/comm")).unwrap();
        String::from_utf8(name).is_err().then_some(())
    });
    let mut successor = start_successor(&sandbox);
    first.signal("KILL");
    assert_eq!(successor.code_and_stderr(), (Some(0), String::new()));
    assert!(!is_running(&daemon));
    first.wait();
}

/// G38: a process whose main thread has exited is shown as a zombie while its other threads work.
#[test]
fn a_process_without_its_main_thread_is_killed() {
    let sandbox = Sandbox::local();
    let mut first = sandbox.start(&[], WITHOUT_MAIN_THREAD);
    let daemon = sandbox.wait_for_line("pids");
    assert!(is_running(&daemon));
    let mut successor = start_successor(&sandbox);
    first.signal("KILL");
    assert_eq!(successor.code_and_stderr(), (Some(0), String::new()));
    assert!(!sandbox.file("finished").exists(), "it must be killed, not waited for");
    assert!(!is_running(&daemon));
    first.wait();
}
