//! Case 46: what `tenure run` sends to a service manager, and which of the manager's variables the program gets. The manager is
//! a socket of the test; tests/packages.rs runs a real systemd.

mod common;

use std::{
    fs,
    io::ErrorKind,
    os::{
        linux::net::SocketAddrExt as _,
        unix::net::{SocketAddr, UnixDatagram},
    },
    process::{Command, Stdio},
    time::{Duration, Instant},
};

use common::{RunningCommand, Sandbox, code_and_stderr, eventually, kill};
use tenure_containers::{SharedEtcd, Version};
use tenure_testkit::proxy::{Direction, Proxy};

/// The longest wait for a message, on a busy machine.
const TIMEOUT: Duration = Duration::from_secs(30);

/// A service manager: its socket, as `NOTIFY_SOCKET` names it, and all lines that it has received.
struct Manager {
    name: String,
    socket: UnixDatagram,
    lines: Vec<String>,
}

impl Manager {
    fn at_path(sandbox: &Sandbox, name: &str) -> Self {
        let path = sandbox.file(name);
        Self {
            socket: UnixDatagram::bind(&path).unwrap(),
            name: path.display().to_string(),
            lines: Vec::new(),
        }
    }

    /// In the abstract namespace, which systemd uses in some places.
    fn abstract_name() -> Self {
        let name = format!("tenure-test-{:016x}", fastrand::u64(..));
        let address = SocketAddr::from_abstract_name(&name).unwrap();
        Self {
            socket: UnixDatagram::bind_addr(&address).unwrap(),
            name: format!("@{name}"),
            lines: Vec::new(),
        }
    }

    /// Receives a message within `limit`.
    fn receive(&mut self, limit: Duration) -> bool {
        let mut buffer = [0; 8192];
        self.socket.set_read_timeout(Some(limit.max(Duration::from_millis(1)))).unwrap();
        match self.socket.recv(&mut buffer) {
            Ok(length) => {
                let message = std::str::from_utf8(&buffer[..length]).unwrap();
                self.lines.extend(message.lines().map(str::to_owned));
                true
            }
            Err(error) => {
                assert!(matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::TimedOut), "{error}");
                false
            }
        }
    }

    /// Waits for a line that begins so, and removes it from those received.
    fn wait_for(&mut self, prefix: &str) -> String {
        let deadline = Instant::now() + TIMEOUT;
        loop {
            if let Some(index) = self.lines.iter().position(|line| line.starts_with(prefix)) {
                return self.lines.remove(index);
            }
            let left = deadline.saturating_duration_since(Instant::now());
            assert!(self.receive(left) || !left.is_zero(), "no {prefix} in {:?}", self.lines);
        }
    }

    /// All lines that were not waited for.
    fn rest(&mut self) -> &[String] {
        while self.receive(Duration::ZERO) {}
        &self.lines
    }
}

/// Starts `tenure run` of a shell script below a manager.
fn start(sandbox: &Sandbox, manager: &Manager, options: &[&str], script: &str) -> RunningCommand {
    let mut command = sandbox.run(options, script);
    command.env("NOTIFY_SOCKET", &manager.name).stdout(Stdio::null()).stderr(Stdio::piped());
    RunningCommand::start(&mut command)
}

#[test]
fn leader_and_standby_are_ready_and_the_status_follows() {
    let sandbox = Sandbox::local();
    let mut first_manager = Manager::at_path(&sandbox, "first-manager");
    let mut first = start(&sandbox, &first_manager, &["--id", "first"], "echo $$ > first; sleep 1000");
    first_manager.wait_for("READY=1");
    let status = first_manager.wait_for("STATUS=leader since ");
    assert!(status.contains(", token "), "{status}");
    let pid = sandbox.wait_for_line("first");

    let mut second_manager = Manager::abstract_name();
    let script = "trap 'exit 7' TERM; echo > second; while :; do sleep 0.05; done";
    let options = ["--id", "second", "--shutdown-timeout", "20s"];
    let mut second = start(&sandbox, &second_manager, &options, script);
    second_manager.wait_for("STATUS=standby; leader is first");
    second_manager.wait_for("READY=1");
    assert!(!sandbox.file("second").exists(), "it does not lead");

    kill("KILL", pid);
    first_manager.wait_for("STOPPING=1");
    assert_eq!(first.wait().code(), Some(137));
    second_manager.wait_for("STATUS=leader since ");
    sandbox.wait_for_line("second");
    second.signal("TERM");
    second_manager.wait_for("STOPPING=1");
    // Longer than the shutdown may take.
    second_manager.wait_for("EXTEND_TIMEOUT_USEC=22000000");
    assert_eq!(second.wait().code(), Some(7));
    assert!(!second_manager.rest().iter().any(|line| line.contains("STOPPING")), "once");
}

/// Under `Type=notify`, `systemctl start` waits for this.
#[test]
fn a_standby_is_ready_while_another_node_leads() {
    let sandbox = Sandbox::local();
    let _leader = sandbox.start(&[], "echo > leads; sleep 1000");
    sandbox.wait_for_line("leads");
    let mut manager = Manager::at_path(&sandbox, "manager");
    let mut standby = start(&sandbox, &manager, &["--quiet"], "touch ran");
    manager.wait_for("READY=1");
    assert_eq!(sandbox.candidates().len(), 2);
    standby.signal("TERM");
    manager.wait_for("STOPPING=1");
    assert_eq!(standby.wait().code(), Some(143));
    assert!(!sandbox.file("ran").exists());
    // A try is never a standby.
    let mut manager = Manager::at_path(&sandbox, "another-manager");
    let mut attempt = start(&sandbox, &manager, &["--try"], "touch ran");
    assert_eq!(attempt.wait().code(), Some(75));
    let lines = manager.rest();
    assert!(!lines.iter().any(|line| line == "READY=1"), "{lines:?}");
    assert!(lines.iter().any(|line| line == "STOPPING=1"), "{lines:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn the_service_is_ready_only_once_the_store_answers() {
    let etcd = SharedEtcd::get(Version::Etcd35).await.unwrap();
    let proxy = Proxy::start(&etcd.endpoint()).await.unwrap();
    proxy.blackhole(Direction::Both);
    let root = format!("cli-{:016x}", fastrand::u64(..));
    let sandbox = Sandbox::on(format!("etcd://{}/{root}", proxy.endpoint()));
    let mut manager = Manager::at_path(&sandbox, "manager");
    let mut running = start(&sandbox, &manager, &["--ttl", "20s"], "echo > leads; sleep 1000");
    let outage = format!("etcd {} does not answer", proxy.endpoint());
    manager.wait_for(&format!("STATUS=waiting for leadership; {outage}"));
    assert!(!manager.rest().contains(&"READY=1".to_owned()), "{:?}", manager.lines);
    proxy.heal();
    manager.wait_for("READY=1");
    sandbox.wait_for_line("leads");
    proxy.hold(Direction::Both);
    let both = eventually("a status with the outage", || {
        let status = manager.wait_for("STATUS=");
        status.contains(&outage).then_some(status)
    });
    assert!(both.starts_with("STATUS=leader since "), "{both}");
    proxy.heal();
    let recovered = manager.wait_for("STATUS=leader since ");
    assert!(!recovered.contains("does not answer"), "{recovered}");
    running.signal("TERM");
    assert_eq!(running.wait().code(), Some(143));
}

#[test]
fn signs_of_life_come_while_tenure_runs_and_not_while_it_is_stopped() {
    let sandbox = Sandbox::local();
    let mut manager = Manager::at_path(&sandbox, "manager");
    let mut command = sandbox.run(&[], "echo > leads; sleep 1000");
    command.env("NOTIFY_SOCKET", &manager.name).env("WATCHDOG_USEC", "400000").stderr(Stdio::null());
    let mut running = RunningCommand::start(&mut command);
    sandbox.wait_for_line("leads");
    manager.rest();
    manager.lines.clear();
    let began = Instant::now();
    for _ in 0..5 {
        manager.wait_for("WATCHDOG=1");
    }
    // Every 200 ms, so that a manager that waits for 400 ms is satisfied.
    assert!(began.elapsed() >= Duration::from_millis(500), "{:?}", began.elapsed());
    running.signal("STOP");
    eventually("a stopped tenure", || {
        let stat = fs::read_to_string(format!("/proc/{}/stat", running.pid())).unwrap();
        stat.contains(") T ").then_some(())
    });
    manager.rest();
    assert!(!manager.receive(Duration::from_secs(1)), "{:?}", manager.lines);
    running.signal("CONT");
    manager.lines.clear();
    manager.wait_for("WATCHDOG=1");
    running.signal("TERM");
    running.wait();
}

#[test]
fn the_watchdog_of_another_process_is_left_alone_and_a_wrong_one_refused() {
    let sandbox = Sandbox::local();
    let mut manager = Manager::at_path(&sandbox, "manager");
    let mut command = sandbox.run(&[], "echo > leads; sleep 1000");
    command.env("NOTIFY_SOCKET", &manager.name).env("WATCHDOG_USEC", "1000").env("WATCHDOG_PID", "1");
    let mut running = RunningCommand::start(command.stderr(Stdio::null()));
    manager.wait_for("READY=1");
    sandbox.wait_for_line("leads");
    running.signal("TERM");
    manager.wait_for("STOPPING=1");
    running.wait();
    assert!(!manager.rest().contains(&"WATCHDOG=1".to_owned()), "{:?}", manager.lines);

    let (code, stderr) = code_and_stderr(sandbox.run(&[], "touch ran").env("WATCHDOG_USEC", "30s"));
    assert_eq!(code, Some(2), "{stderr}");
    assert!(stderr.contains("WATCHDOG_USEC is 30s: it must be a positive number"), "{stderr}");
    assert!(!sandbox.file("ran").exists());
}

#[test]
fn the_program_runs_without_a_manager_that_can_be_reached() {
    let sandbox = Sandbox::local();
    for (name, said) in [
        ("/nonexistent/notify", "cannot send to the service manager"),
        ("vsock:2:1234", "must begin with / or @"),
    ] {
        let (code, stderr) = code_and_stderr(sandbox.run(&[], "exit 7").env("NOTIFY_SOCKET", name));
        assert_eq!(code, Some(7), "{stderr}");
        assert_eq!(stderr.matches(said).count(), 1, "once: {stderr}");
    }
}

/// A program that calls sd_notify(3) or sd_watchdog_enabled(3) must not believe that it is the service's main process.
#[test]
fn the_program_gets_none_of_the_variables_for_messages() {
    let sandbox = Sandbox::local();
    let manager = Manager::at_path(&sandbox, "manager");
    let mut command = sandbox.run(&[], "env > variables");
    command.env("NOTIFY_SOCKET", &manager.name).env("WATCHDOG_USEC", "1000000").env("WATCHDOG_PID", "1");
    assert_eq!(code_and_stderr(command.env("ANOTHER", "1")).0, Some(0));
    let variables = fs::read_to_string(sandbox.file("variables")).unwrap();
    assert!(variables.contains("\nANOTHER=1\n"), "{variables}");
    for name in ["NOTIFY_SOCKET", "WATCHDOG_USEC", "WATCHDOG_PID"] {
        assert!(!variables.contains(name), "{variables}");
    }
}

/// As sd_listen_fds(3) reads it: `LISTEN_PID` is the program, and file 3 the first of its sockets.
#[test]
fn the_program_gets_the_services_sockets_in_every_term() {
    let sandbox = Sandbox::local();
    fs::write(sandbox.file("file"), "first line\nsecond line\n").unwrap();
    let program = "read line <&3
        test \"$LISTEN_PID\" = $$ && echo \"$LISTEN_FDS $LISTEN_FDNAMES ${LISTEN_PIDFDID-unset} $line\" >> got
        test \"$line\" = 'second line'";
    fs::write(sandbox.file("program"), program).unwrap();
    let script = format!(
        "export LISTEN_PID=$$ LISTEN_FDS=1 LISTEN_FDNAMES=web LISTEN_PIDFDID=7
        exec {} run --restart on-failure --backoff 1ms -- sh program 3<file",
        env!("CARGO_BIN_EXE_tenure")
    );
    let mut command = Command::new("sh");
    command.args(["-c", &script]).current_dir(sandbox.file("")).stdin(Stdio::null());
    let output = command.env("TENURE_STORE", &sandbox.url).env("TENURE_ELECTION", "e").output().unwrap();
    assert!(output.status.success(), "{output:?}");
    // The shell reads a file no further than to the end of the line.
    let got = fs::read_to_string(sandbox.file("got")).unwrap();
    assert_eq!(got, "1 web unset first line\n1 web unset second line\n");
}

#[test]
fn the_sockets_of_another_process_stay_its_own() {
    let sandbox = Sandbox::local();
    let mut command = sandbox.run(&[], "echo $LISTEN_PID > got");
    assert_eq!(code_and_stderr(command.env("LISTEN_PID", "1").env("LISTEN_FDS", "1")).0, Some(0));
    assert_eq!(sandbox.wait_for_line("got"), "1");
}
