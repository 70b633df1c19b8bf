//! `tenure run` that is killed with `kill -9`: its guard kills the program and ends the session, so that the next node leads long
//! before the TTL. In no other case is the session ended by the guard.

mod common;

use std::{
    fs::{self, File},
    io::{IoSlice, Seek as _, Write as _},
    mem::MaybeUninit,
    os::{
        fd::{AsFd as _, OwnedFd},
        unix::net::UnixStream,
    },
    process::{Child, Command, Stdio},
    sync::Arc,
    time::{Duration, Instant},
};

use common::{
    CHECK_ALONE, RunningCommand, STUBBORN_PROGRAM, Sandbox, children, eventually, is_running, kill,
    store_url, succeed, tenure_command,
};
use rustix::{
    net::{SendAncillaryBuffer, SendAncillaryMessage, SendFlags, sendmsg},
    process::{Pid, PidfdFlags, getpid, pidfd_open},
};
use serde_json::json;
use tenure::{Elector, Leadership, spi::SessionRecord};
use tenure_containers::{SharedConsul, SharedEtcd, SharedPostgres, SharedZookeeper, Version};

/// A handover that does not wait for the TTL takes less time, also on a busy machine.
const SOON: Duration = Duration::from_secs(10);

/// Leaves a daemon behind that has left its session and whose parents are dead.
const DOUBLE_FORK: &str = "(setsid sh -c 'trap \"\" TERM INT HUP; echo $$ > daemon.new; mv daemon.new daemon
        while test -d \"$PWD\"; do sleep 1; done' &)
    while ! test -s daemon; do sleep 0.01; done
    echo $$ $(cat daemon) > pids.new; mv pids.new pids
    while test -d \"$PWD\"; do sleep 1; done";

/// Traces a process until a file exists. When it is killed meanwhile, nobody else can reap it: like a process in an uninterruptible
/// call, it exists although it was killed.
const TRACE: &str = "
import ctypes, os, sys, time
libc = ctypes.CDLL(None, use_errno=True)
libc.ptrace.argtypes = [ctypes.c_long] * 4
PTRACE_SEIZE = 0x4206
if libc.ptrace(PTRACE_SEIZE, int(sys.argv[1]), 0, 0) != 0:
    sys.exit('ptrace: ' + os.strerror(ctypes.get_errno()))
open('traced', 'w').write('yes\\n')
while not os.path.exists('release'):
    time.sleep(0.01)
";

/// A store of its own on each server, with a TTL of 30 s, which is as long as any wait of these tests.
struct Stores {
    urls: [String; 4],
    _servers: (SharedEtcd, SharedZookeeper, SharedPostgres, SharedConsul),
}

impl Stores {
    async fn start() -> Self {
        let etcd = SharedEtcd::get(Version::Etcd35).await.unwrap();
        let zookeeper = SharedZookeeper::get(Version::Zookeeper39).await.unwrap();
        let postgres = SharedPostgres::get(Version::Postgres17).await.unwrap();
        let consul = SharedConsul::get(Version::Consul18).await.unwrap();
        let root = format!("killed-{:016x}", fastrand::u64(..));
        let urls = [
            store_url("etcd", &etcd.endpoint(), &root, "ttl=30s"),
            store_url("zookeeper", &zookeeper.endpoint(), &root, "ttl=30s"),
            store_url("postgres", &postgres.endpoint(), &root, "ttl=30s"),
            store_url("consul", &consul.endpoint(), &root, "ttl=30s"),
        ];
        Self { urls, _servers: (etcd, zookeeper, postgres, consul) }
    }
}

/// Starts a candidate that succeeds if nothing of the first one's program runs when it leads. Returns when it is in the queue.
fn start_successor(sandbox: &Sandbox) -> RunningCommand {
    let next = sandbox.start(&["--quiet"], &format!("echo leads > next; {CHECK_ALONE}"));
    eventually("a second candidate", || (sandbox.candidates().len() == 2).then_some(()));
    next
}

/// The guard's process id.
fn guard_of(run: &RunningCommand) -> String {
    let [guard] = &children(run.pid())[..] else { panic!("tenure has one child, its guard") };
    guard.clone()
}

/// Hazard G40: stubborn programs, children, daemons and orphans are dead before the next candidate leads, which is long before the TTL.
#[tokio::test(flavor = "multi_thread")]
async fn the_next_leads_long_before_the_ttl_when_tenure_is_killed() {
    for url in Stores::start().await.urls {
        for program in [STUBBORN_PROGRAM, DOUBLE_FORK] {
            let sandbox = Sandbox::on(&*url);
            let mut first = sandbox.start(&[], program);
            let pids = sandbox.wait_for_line("pids");
            let mut successor = start_successor(&sandbox);
            let killed_at = Instant::now();
            first.signal("KILL");
            assert_eq!(successor.code_and_stderr(), (Some(0), String::new()), "{url}");
            assert!(killed_at.elapsed() < SOON, "{url}: {:?}", killed_at.elapsed());
            assert!(pids.split(' ').all(|pid| !is_running(pid)), "{url}: {pids}");
            let (_, stderr) = first.code_and_stderr();
            let lines: Vec<_> = stderr.lines().filter(|line| line.contains("killed")).collect();
            assert!(lines.len() == 1 && lines[0].contains("leadership of e was given back"), "{stderr}");
        }
    }
}

/// Hazard G40: a program and its `tenure run` that are killed at the same time.
#[tokio::test(flavor = "multi_thread")]
async fn the_next_leads_long_before_the_ttl_when_tenure_and_its_program_are_killed() {
    for url in Stores::start().await.urls {
        let sandbox = Sandbox::on(&*url);
        let mut first = sandbox.start(&[], STUBBORN_PROGRAM);
        let pids = sandbox.wait_for_line("pids");
        let mut successor = start_successor(&sandbox);
        // While tenure is stopped, it cannot learn that the program has ended.
        first.signal("STOP");
        let killed_at = Instant::now();
        let tenure = first.pid().to_string();
        succeed(Command::new("kill").args(["-KILL", pids.split(' ').next().unwrap(), &tenure]));
        assert_eq!(successor.code_and_stderr(), (Some(0), String::new()), "{url}");
        assert!(killed_at.elapsed() < SOON, "{url}: {:?}", killed_at.elapsed());
        first.wait();
    }
}

/// Hazard G40: a tenure that is stopped continues later, so its session is not ended, although its program is dead.
#[tokio::test(flavor = "multi_thread")]
async fn a_session_is_not_ended_while_tenure_is_stopped() {
    for url in Stores::start().await.urls {
        let sandbox = Sandbox::on(&*url);
        let mut first = sandbox.start(&[], STUBBORN_PROGRAM);
        let pids = sandbox.wait_for_line("pids");
        let guard = guard_of(&first);
        let mut successor = start_successor(&sandbox);
        first.signal("STOP");
        kill("KILL", pids.split(' ').next().unwrap());
        eventually("the end of the guard", || (!is_running(&guard)).then_some(()));
        assert!(pids.split(' ').all(|pid| !is_running(pid)), "{pids}");
        assert_eq!(sandbox.candidates().len(), 2, "{url}");
        assert!(!sandbox.file("next").exists(), "{url}");
        // It gives leadership back itself.
        first.signal("CONT");
        assert_eq!(successor.code_and_stderr(), (Some(0), String::new()), "{url}");
        assert_eq!(first.wait().code(), Some(137), "{url}");
    }
}

/// Hazard G40: a process that was killed and does not end, as in an uninterruptible call, is waited for.
#[tokio::test(flavor = "multi_thread")]
async fn a_session_is_not_ended_while_a_process_of_the_program_does_not_die() {
    let stores = Stores::start().await;
    let sandbox = Sandbox::on(&*stores.urls[0]);
    let mut command = sandbox.run(&[], STUBBORN_PROGRAM);
    command.stdout(Stdio::null()).stderr(File::create(sandbox.file("stderr")).unwrap());
    let mut first = RunningCommand::start(&mut command);
    let pids = sandbox.wait_for_line("pids");
    let daemon = pids.split(' ').next_back().unwrap();
    let mut successor = start_successor(&sandbox);
    let mut tracer = Command::new("python3");
    tracer.args(["-c", TRACE, daemon]).current_dir(sandbox.file(""));
    let mut tracer = RunningCommand::start(&mut tracer);
    sandbox.wait_for_line("traced");

    first.signal("KILL");
    let stderr = || fs::read_to_string(sandbox.file("stderr")).unwrap();
    eventually("a message about the process", || {
        stderr().contains(&format!("process {daemon} does not die")).then_some(())
    });
    assert_eq!(sandbox.candidates().len(), 2, "{}", stderr());
    assert!(!sandbox.file("next").exists(), "{}", stderr());

    let released_at = Instant::now();
    fs::write(sandbox.file("release"), "").unwrap();
    assert_eq!(successor.code_and_stderr(), (Some(0), String::new()));
    assert!(released_at.elapsed() < SOON, "{:?}", released_at.elapsed());
    assert!(tracer.wait().success());
    first.wait();
}

/// A guard whose `tenure run` is this test. It leads itself, and can give the guard another process's pidfd as its own.
struct Guard {
    _sandbox: Sandbox,
    elector: Arc<dyn Elector>,
    leadership: Leadership,
    control: UnixStream,
    process: Child,
    program: String,
}

impl Guard {
    /// Starts a guard and its program. `change` changes the record of the session.
    async fn start(url: &str, tenure: OwnedFd, change: impl FnOnce(&mut SessionRecord)) -> Self {
        let sandbox = Sandbox::on(url);
        let elector = tenure::connect(url).await.unwrap();
        let leadership = elector.campaign("e").await.unwrap();
        let mut record = leadership.session_record().await.unwrap().unwrap();
        change(&mut record);
        let session = json!({ "url": url, "election": "e", "record": record });
        let mut file = tempfile::tempfile().unwrap();
        file.write_all(session.to_string().as_bytes()).unwrap();
        file.rewind().unwrap();
        let (mut control, other) = UnixStream::pair().unwrap();
        let mut command =
            tenure_command(&["__guard", "--stop-signal=TERM", "--", "sh", "-c", STUBBORN_PROGRAM]);
        command.current_dir(sandbox.file("")).stdin(Stdio::from(OwnedFd::from(other)));
        let process = command.stderr(Stdio::null()).spawn().unwrap();
        drop(command);
        let input = File::open("/dev/null").unwrap();
        let files = [input.as_fd(), tenure.as_fd(), file.as_fd()];
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(3))];
        let mut ancillary = SendAncillaryBuffer::new(&mut space);
        assert!(ancillary.push(SendAncillaryMessage::ScmRights(&files)));
        // No lock, but a session.
        sendmsg(&control, &[IoSlice::new(&[0, 1])], &mut ancillary, SendFlags::empty()).unwrap();
        let window = json!({ "window": { "stop_at": u64::MAX, "kill_at": u64::MAX } });
        writeln!(control, "{window}").unwrap();
        let program = sandbox.wait_for_line("pids");
        Self { _sandbox: sandbox, elector, leadership, control, process, program }
    }

    /// Closes the socket, after these messages. Returns the guard's exit code, once it and the program have ended.
    fn close(&mut self, messages: &str) -> Option<i32> {
        self.control.write_all(messages.as_bytes()).unwrap();
        self.control.shutdown(std::net::Shutdown::Both).unwrap();
        let status = eventually("the end of the guard", || self.process.try_wait().unwrap());
        assert!(self.program.split(' ').all(|pid| !is_running(pid)), "{}", self.program);
        status.code()
    }

    /// Whether the session has not been ended.
    async fn has_session(&self) -> bool {
        let candidates = self.elector.candidates("e").await.unwrap();
        assert!(candidates.len() <= 1, "{candidates:?}");
        candidates.len() == 1
    }
}

/// The pidfd of this test's process, which is alive.
fn alive() -> OwnedFd {
    pidfd_open(getpid(), PidfdFlags::empty()).unwrap()
}

/// The pidfd of a process that is dead.
fn dead() -> OwnedFd {
    let mut process = Command::new("true").spawn().unwrap();
    let pidfd = pidfd_open(Pid::from_child(&process), PidfdFlags::empty()).unwrap();
    process.wait().unwrap();
    pidfd
}

/// Hazard G40: a socket that is closed is no proof that tenure is dead. That its pidfd is readable is one.
#[tokio::test(flavor = "multi_thread")]
async fn an_end_of_file_alone_does_not_end_the_session() {
    for url in Stores::start().await.urls {
        let mut guard = Guard::start(&url, alive(), |_| {}).await;
        assert_eq!(guard.close(""), Some(0), "{url}");
        assert!(guard.has_session().await && guard.leadership.is_leader(), "{url}");
        guard.leadership.resign().await.unwrap();

        // The same with a process that is dead: this is what makes the difference.
        let mut guard = Guard::start(&url, dead(), |_| {}).await;
        assert_eq!(guard.close(""), Some(0), "{url}");
        assert!(!guard.has_session().await, "{url}");
        guard.leadership.lost().await;
    }
}

/// Hazard G40: a tenure that says that it goes on ends its session itself.
#[tokio::test(flavor = "multi_thread")]
async fn an_orderly_end_does_not_end_the_session() {
    for url in Stores::start().await.urls {
        let mut guard = Guard::start(&url, dead(), |_| {}).await;
        assert_eq!(guard.close("\"finish\"\n"), Some(0), "{url}");
        assert!(guard.has_session().await, "{url}");
    }
}

/// Hazard G40: the store is asked for the session with this nonce only, whatever its id is.
#[tokio::test(flavor = "multi_thread")]
async fn a_session_of_another_process_is_not_ended() {
    for url in Stores::start().await.urls {
        let mut guard = Guard::start(&url, dead(), |record| record.nonce += 1).await;
        // ZooKeeper finds no entry with that nonce, and the others one with another.
        let expected = if url.starts_with("zookeeper") { 0 } else { 69 };
        assert_eq!(guard.close(""), Some(expected), "{url}");
        assert!(guard.has_session().await && guard.leadership.is_leader(), "{url}");
        guard.leadership.resign().await.unwrap();
        let mut guard = Guard::start(&url, dead(), |record| record.cluster.push('1')).await;
        assert_eq!(guard.close(""), Some(69), "{url}");
        assert!(guard.has_session().await && guard.leadership.is_leader(), "{url}");
    }
}
