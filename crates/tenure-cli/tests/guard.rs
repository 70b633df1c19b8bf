//! `tenure run` and its guard when they cannot read `/proc`, and with processes that only look dead: nobody else leads
//! before everything that the program has started is known to be dead.

mod common;

use std::{
    fs,
    process::{Command, Stdio},
};

use common::{ALONE, Running, STUBBORN, Stage, children, eventually, kill, runs};
use rustix::process::{Pid, Resource, Rlimit, getrlimit, prlimit};

/// Starts a daemon in a session of its own. The kernel cuts its name after 15 bytes, within a character.
const CUT_NAME: &str = "printf '#!/bin/sh\nwhile test -d \"$PWD\"; do sleep 1; done\n' > ööööööööö
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

/// Sets how many files a process may have open; how many it could have before.
fn limit_files(pid: impl ToString, current: u64) -> Rlimit {
    let new = Rlimit { current: Some(current), maximum: getrlimit(Resource::Nofile).maximum };
    set_limit(pid, new)
}

fn set_limit(pid: impl ToString, limit: Rlimit) -> Rlimit {
    let pid = Pid::from_raw(pid.to_string().parse().unwrap());
    prlimit(Some(pid.unwrap()), Resource::Nofile, limit).unwrap()
}

/// Starts a candidate that succeeds when it leads alone, and waits until it waits.
fn next_in_line(stage: &Stage) -> Running {
    let next = stage.start(&["--quiet"], &format!("echo leads > next; {ALONE}"));
    eventually("a second candidate", || (stage.candidates().len() == 2).then_some(()));
    next
}

/// G37: a guard that cannot open any file still kills everything, and holds the lock until it has.
#[test]
fn a_guard_that_can_open_nothing_leaves_nothing_running() {
    for limit in [3, 0] {
        let stage = Stage::local();
        let mut first = stage.start(&[], STUBBORN);
        let pids = stage.line("pids");
        let mut next = next_in_line(&stage);
        limit_files(&children(first.pid())[0], limit);
        first.signal("KILL");
        assert_eq!(next.code(), (Some(0), String::new()), "{limit} files");
        assert!(pids.split(' ').all(|pid| !runs(pid)), "{pids}");
        first.end();
    }
}

/// G37: tenure takes over from a guard that was killed. It must not kill processes that are older than itself, and cannot
/// tell those from later ones with the same id while it cannot read `/proc`. It keeps the lock until it can.
#[test]
fn tenure_releases_nothing_while_it_cannot_tell_what_is_left() {
    let stage = Stage::local();
    let tenure = env!("CARGO_BIN_EXE_tenure");
    let script = format!(
        "while test -d \"$PWD\"; do sleep 1; done & echo $! > sidecar
        exec {tenure} run --quiet -- sh -c \"$STUBBORN\" 2> said"
    );
    let mut command = Command::new("sh");
    command.args(["-c", &script]).current_dir(stage.file(""));
    command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
    let mut first = Running::start(
        command.env("TENURE_STORE", &stage.url).env("TENURE_ELECTION", "e").env("STUBBORN", STUBBORN),
    );
    let pids = stage.line("pids");
    let sidecar = stage.line("sidecar");
    let guard = children(first.pid()).into_iter().find(|pid| *pid != sidecar).unwrap();
    let mut next = next_in_line(&stage);

    let before = limit_files(first.pid(), 3);
    kill("KILL", guard);
    let said = || fs::read_to_string(stage.file("said")).unwrap();
    eventually("a message that tenure cannot read /proc, or a next leader", || {
        (said().contains("cannot tell which of the program's") || stage.file("next").exists()).then_some(())
    });
    eventually("the end of what the program has started, or a next leader", || {
        (pids.split(' ').all(|pid| !runs(pid)) || stage.file("next").exists()).then_some(())
    });
    assert_eq!(stage.candidates().len(), 2, "{}", said());
    assert!(!stage.file("next").exists(), "{}", said());

    set_limit(first.pid(), before);
    assert_eq!(next.code(), (Some(0), String::new()));
    assert_eq!(first.end().code(), Some(137), "{}", said());
    assert_eq!(said().matches("cannot tell which of the program's").count(), 1, "{}", said());
    assert!(said().contains("Too many open files") && said().contains("can tell again"), "{}", said());
    assert!(runs(&sidecar));
    kill("KILL", sidecar);
}

/// G37: a process is found although its name, which is not UTF-8, does not parse.
#[test]
fn a_process_is_killed_whatever_its_name() {
    let stage = Stage::local();
    let mut first = stage.start(&[], CUT_NAME);
    let daemon = stage.line("pids");
    eventually("a name that is cut", || {
        let name = fs::read(format!("/proc/{daemon}/comm")).unwrap();
        String::from_utf8(name).is_err().then_some(())
    });
    let mut next = next_in_line(&stage);
    first.signal("KILL");
    assert_eq!(next.code(), (Some(0), String::new()));
    assert!(!runs(&daemon));
    first.end();
}

/// G38: a process whose main thread has exited is shown as a zombie while its other threads work.
#[test]
fn a_process_without_its_main_thread_is_killed() {
    let stage = Stage::local();
    let mut first = stage.start(&[], WITHOUT_MAIN_THREAD);
    let daemon = stage.line("pids");
    assert!(runs(&daemon));
    let mut next = next_in_line(&stage);
    first.signal("KILL");
    assert_eq!(next.code(), (Some(0), String::new()));
    assert!(!stage.file("finished").exists(), "it was not killed, but waited for");
    assert!(!runs(&daemon));
    first.end();
}
