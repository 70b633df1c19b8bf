//! The packages of `cargo xtask package`: the Debian package under a real systemd (case 46), and the image as process 1. Each
//! test packages the command that was built for the tests.

mod common;

use std::{
    fs,
    path::{Path, PathBuf},
    process::{self, Command, Output, Stdio},
    time::{Duration, Instant},
};

use common::{eventually, stdout, succeed};
use tempfile::TempDir;

/// The program of the services: it says what it got, and runs until it is killed.
const PROGRAM: &str = r#"#!/bin/sh
echo "$$ token=$TENURE_FENCING_TOKEN arguments=$* notify=${NOTIFY_SOCKET-none} watchdog=${WATCHDOG_USEC-none}" >> /root/log
exec sleep 1000
"#;

/// A program that serves the socket which systemd has passed to it, as sd_listen_fds(3) finds it.
const SOCKET_PROGRAM: &str = r#"
import os, socket
assert os.environ["LISTEN_PID"] == str(os.getpid()) and os.environ["LISTEN_FDS"] == "1", os.environ
server = socket.socket(fileno=3)
while True:
    connection, _ = server.accept()
    connection.sendall(b"token " + os.environ["TENURE_FENCING_TOKEN"].encode())
    connection.close()
"#;

fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR")).ancestors().nth(2).unwrap()
}

/// Makes a package of the command under test.
fn package(kind: &str, folder: &Path, options: &[&str]) {
    let mut xtask = Command::new(env!("CARGO"));
    xtask.args(["run", "--quiet", "--package=xtask", "--", "package", kind, "--output"]).arg(folder);
    xtask.args(["--binary", env!("CARGO_BIN_EXE_tenure")]).args(options).current_dir(root());
    succeed(&mut xtask);
}

fn docker(arguments: &[&str]) -> Command {
    let mut docker = Command::new("docker");
    docker.args(arguments).stdin(Stdio::null());
    docker
}

/// The image with systemd, which `cargo xtask test` makes.
fn systemd_image() -> String {
    std::env::var("TENURE_TEST_IMAGE_SYSTEMD").unwrap_or_else(|_| "tenure-test/systemd".to_owned())
}

/// A container. It is removed when this is dropped.
struct Container(String);

impl Container {
    fn start(options: &[&str], image: &str, arguments: &[&str]) -> Self {
        let name = format!("tenure-test-package-{}-{:08x}", process::id(), fastrand::u32(..));
        let label = format!("--label=tenure-test={}", process::id());
        let own = ["run", "--detach", "--pull=never", "--name", &name, &label];
        let container = Self(name.clone());
        succeed(&mut docker(&[&own, options, &[image], arguments].concat()));
        container
    }

    /// Runs a shell script in the container.
    fn try_sh(&self, script: &str) -> Output {
        docker(&["exec", &self.0, "sh", "-euc", script]).output().unwrap()
    }

    /// Runs a shell script in the container, which must succeed. Returns its output.
    fn sh(&self, script: &str) -> String {
        let output = self.try_sh(script);
        assert!(output.status.success(), "{script}: {output:?}\n{}", self.journal());
        stdout(&output).trim().to_owned()
    }

    fn journal(&self) -> String {
        let output = docker(&["exec", &self.0, "journalctl", "--no-pager", "--lines=60"]).output().unwrap();
        String::from_utf8_lossy(&output.stdout).into_owned()
    }

    fn write(&self, path: &str, text: &str) {
        let file = tempfile::NamedTempFile::new().unwrap();
        fs::write(file.path(), text).unwrap();
        self.copy(file.path(), path);
    }

    fn copy(&self, from: &Path, to: &str) {
        succeed(&mut docker(&["cp", &from.display().to_string(), &format!("{}:{to}", self.0)]));
    }

    /// A property of a unit, as systemd shows it.
    fn property(&self, unit: &str, name: &str) -> String {
        self.sh(&format!("systemctl show {unit} --property={name} --value"))
    }

    fn wait_for_property(&self, unit: &str, name: &str, prefix: &str) -> String {
        eventually(&format!("{name} of {unit} that begins with {prefix:?}"), || {
            let value = self.property(unit, name);
            value.starts_with(prefix).then_some(value)
        })
    }

    /// What the program has written in its `term`th term, counted from 1.
    fn term(&self, term: usize) -> Vec<String> {
        let line = eventually(&format!("term {term}"), || {
            let log = self.sh("touch /root/log; cat /root/log");
            log.lines().nth(term - 1).map(str::to_owned)
        });
        line.split(' ').map(str::to_owned).collect()
    }
}

impl Drop for Container {
    fn drop(&mut self) {
        let _ = docker(&["rm", "--force", "--volumes", &self.0]).output();
    }
}

/// Starts a system with systemd as its process 1, and waits until it has booted.
fn boot() -> Container {
    let options = [
        "--cap-add=SYS_ADMIN",
        "--security-opt=seccomp=unconfined",
        "--security-opt=apparmor=unconfined",
        "--tmpfs=/run",
        "--tmpfs=/run/lock",
        // Docker's own file system can be FUSE, which has no safe locks.
        "--volume=/var/lib/tenure",
        "--env=container=docker",
    ];
    // On cgroup v2, Docker mounts them without write access. With v1, newer versions of systemd want to be asked.
    let start = "mount -o remount,rw /sys/fs/cgroup || true
        exec /lib/systemd/systemd SYSTEMD_CGROUP_ENABLE_LEGACY_FORCE=1";
    let system = Container::start(&options, &systemd_image(), &["sh", "-c", start]);
    eventually("a booted system", || {
        let state = system.try_sh("systemctl is-system-running || true");
        matches!(stdout(&state).trim(), "running" | "degraded").then_some(())
    });
    system
}

fn deb(folder: &Path) -> PathBuf {
    let files = fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path());
    let debs: Vec<_> = files.filter(|path| path.extension().is_some_and(|ending| ending == "deb")).collect();
    let [deb] = <[PathBuf; 1]>::try_from(debs).unwrap();
    deb
}

/// Case 46: the unit and the drop-in, as they are in the package.
#[test]
fn the_debian_package_serves_under_systemd() {
    let folder = TempDir::new().unwrap();
    package("deb", folder.path(), &["--fast"]);
    let system = boot();
    system.copy(&deb(folder.path()), "/root/tenure.deb");
    system.sh("dpkg --install /root/tenure.deb");
    what_the_package_contains(&system);
    system.write("/usr/local/bin/program", PROGRAM);
    system.sh("chmod +x /usr/local/bin/program; mkdir -p /etc/tenure");
    // `billing` by the unit, and an existing service, `bills`, by the drop-in: two candidates of one election.
    let variables = "TENURE_STORE=local:/var/lib/tenure\nTENURE_PROGRAM=/usr/local/bin/program --quick now\n";
    system.write("/etc/tenure/billing.env", variables);
    system.write(
        "/etc/systemd/system/bills.service",
        "[Service]\nExecStart=/usr/local/bin/program as-before\nExecReload=kill -HUP $MAINPID\n",
    );
    system.sh(
        "mkdir /etc/systemd/system/bills.service.d
        sed -e 's,etcd://.*,local:/var/lib/tenure,' -e 's,/usr/bin/billing --quick,/usr/local/bin/program as-before,' \
            /usr/share/doc/tenure/examples/tenure.conf > /etc/systemd/system/bills.service.d/tenure.conf
        systemctl daemon-reload
        systemd-analyze verify --man=no tenure@billing.service bills.service",
    );
    a_leader_and_a_standby(&system);
    a_stopped_service_gives_leadership_back(&system);
    a_tenure_that_hangs_is_killed(&system);
    a_socket_of_the_service_is_the_programs(&system);
    system.sh("systemctl stop bills tenure@billing; dpkg --purge tenure");
    assert!(!system.try_sh("test -e /usr/bin/tenure").status.success());
}

fn what_the_package_contains(system: &Container) {
    assert!(system.sh("tenure --version").starts_with("tenure "));
    let page = system.sh("gzip --decompress --stdout /usr/share/man/man1/tenure-run.1.gz");
    assert!(page.contains("TENURE_FENCING_TOKEN") && page.contains(".TH "), "{page}");
    system.sh("test -s /usr/share/man/man1/tenure.1.gz; test -s /usr/share/doc/tenure/copyright");
    system.sh("bash -c '. /usr/share/bash-completion/completions/tenure; complete -p tenure'");
    for file in ["zsh/vendor-completions/_tenure", "fish/vendor_completions.d/tenure.fish"] {
        system.sh(&format!("grep --quiet candidates /usr/share/{file}"));
    }
    let depends = system.sh("dpkg-query --show --showformat='${Depends} ${Maintainer}' tenure");
    assert!(depends.contains("libc6") && depends.ends_with("The tenure authors"), "{depends}");
    assert_eq!(system.sh("dpkg --verify tenure"), "");
}

fn a_leader_and_a_standby(system: &Container) {
    // Returns once the service is ready.
    system.sh("systemctl start tenure@billing");
    assert_eq!(system.sh("systemctl is-active tenure@billing"), "active");
    system.wait_for_property("tenure@billing", "StatusText", "leader since ");
    let words = system.term(1);
    let got = "arguments=--quick now notify=none watchdog=none";
    assert!(words[1].starts_with("token=") && words[2..].join(" ") == got, "{words:?}");

    system.sh("systemctl start bills");
    assert_eq!(system.sh("systemctl is-active bills"), "active");
    system.wait_for_property("bills", "StatusText", "standby; leader is ");
    assert_eq!(system.property("bills", "NRestarts"), "0");
    assert_eq!(system.sh("wc --lines < /root/log"), "1");

    // The program dies: the standby leads, and the former leader stands by, restarted by systemd.
    system.sh(&format!("kill -KILL {}", words[0]));
    system.wait_for_property("bills", "StatusText", "leader since ");
    let words = system.term(2);
    assert_eq!(words[2], "arguments=as-before", "{words:?}");
    system.wait_for_property("tenure@billing", "StatusText", "standby; leader is ");
    assert_eq!(system.property("tenure@billing", "NRestarts"), "1");
    assert_eq!(system.property("tenure@billing", "ActiveState"), "active");
}

fn a_stopped_service_gives_leadership_back(system: &Container) {
    let began = Instant::now();
    system.sh("systemctl stop bills");
    assert!(began.elapsed() < Duration::from_secs(10), "{:?}", began.elapsed());
    // Not failed, although the program was ended by a signal.
    assert_eq!(system.property("bills", "ActiveState"), "inactive", "{}", system.journal());
    assert_eq!(system.property("bills", "Result"), "success");
    system.wait_for_property("tenure@billing", "StatusText", "leader since ");
    let candidates = system.sh("tenure candidates --store local:/var/lib/tenure --election billing");
    assert_eq!(candidates.lines().count(), 1, "{candidates}");
    // A standby, too, is stopped without a failure.
    system.sh("systemctl start bills");
    system.wait_for_property("bills", "StatusText", "standby; leader is ");
    system.sh("systemctl stop bills");
    assert_eq!(system.property("bills", "ActiveState"), "inactive", "{}", system.journal());
}

fn a_tenure_that_hangs_is_killed(system: &Container) {
    system.sh("mkdir /etc/systemd/system/tenure@billing.service.d
        printf '[Service]\\nWatchdogSec=2s\\n' > /etc/systemd/system/tenure@billing.service.d/watchdog.conf
        systemctl daemon-reload
        systemctl restart tenure@billing");
    system.wait_for_property("tenure@billing", "StatusText", "leader since ");
    let term = system.sh("wc --lines < /root/log").parse::<usize>().unwrap();
    let program = system.term(term)[0].clone();
    let tenure = system.property("tenure@billing", "MainPID");
    // It is satisfied for longer than the time that a watchdog waits.
    let began = Instant::now();
    eventually("three times the watchdog's time", || {
        assert_eq!(system.property("tenure@billing", "MainPID"), tenure, "{}", system.journal());
        (began.elapsed() > Duration::from_secs(6)).then_some(())
    });
    system.sh(&format!("kill -STOP {tenure}"));
    eventually("another tenure", || {
        let now = system.property("tenure@billing", "MainPID");
        (now != tenure && now != "0").then_some(())
    });
    assert!(!system.try_sh(&format!("test -e /proc/{program}")).status.success(), "{}", system.journal());
    assert!(system.journal().contains("Watchdog timeout"), "{}", system.journal());
    system.wait_for_property("tenure@billing", "StatusText", "leader since ");
    assert_ne!(system.term(term + 1)[0], program);
}

fn a_socket_of_the_service_is_the_programs(system: &Container) {
    system.write("/usr/local/bin/serve.py", SOCKET_PROGRAM);
    system.write(
        "/etc/systemd/system/web.socket",
        "[Socket]\nListenStream=/run/web.sock\n[Install]\nWantedBy=sockets.target\n",
    );
    system.write(
        "/etc/systemd/system/web.service",
        "[Service]\nType=notify\nKillMode=mixed\nSuccessExitStatus=143\n\
         ExecStart=/usr/bin/tenure run --store local:/var/lib/tenure --election web -- python3 /usr/local/bin/serve.py\n",
    );
    let ask = "python3 -c 'import socket; s = socket.socket(socket.AF_UNIX); s.connect(\"/run/web.sock\"); \
               s.settimeout(30); print(s.recv(100).decode())'";
    // The first connection starts the service.
    let answer = system.sh(&format!("systemctl daemon-reload; systemctl start web.socket; {ask}"));
    assert!(answer.starts_with("token "), "{answer}");
    system.sh("systemctl stop web.socket web.service");
    assert_eq!(system.property("web", "Result"), "success", "{}", system.journal());
}

/// Stops a container as `docker stop` does. Returns its exit code, and how long that took.
fn stop(container: &Container) -> (String, Duration) {
    let began = Instant::now();
    succeed(&mut docker(&["stop", "--time=30", &container.0]));
    let took = began.elapsed();
    let code = stdout(&succeed(&mut docker(&["inspect", "--format={{.State.ExitCode}}", &container.0])));
    (code.trim().to_owned(), took)
}

/// An image of this test, which is removed when this is dropped.
struct TestImage(String);

impl Drop for TestImage {
    fn drop(&mut self) {
        let _ = docker(&["rmi", "--force", &self.0]).output();
    }
}

#[test]
fn the_image_works_as_process_1() {
    let folder = TempDir::new().unwrap();
    let image = TestImage(format!("tenure-test/package:{:016x}", fastrand::u64(..)));
    package("image", folder.path(), &["--tag", &image.0]);
    let archive = fs::read_dir(folder.path()).unwrap().find_map(|entry| {
        let path = entry.unwrap().path();
        path.extension().is_some_and(|ending| ending == "tar").then_some(path)
    });
    // As on another machine.
    succeed(&mut docker(&["rmi", "--force", &image.0]));
    succeed(&mut docker(&["load", "--input", &archive.unwrap().display().to_string()]));
    commands_run_in_the_image(&image.0);
    the_image_stops_at_sigterm(&image.0);
    another_image_takes_the_command(&image.0, folder.path());
}

fn commands_run_in_the_image(image: &str) {
    let run = |arguments: &[&str]| {
        let own = ["run", "--rm", "--pull=never", "--volume=/home/tenure", image];
        docker(&[&own[..], arguments].concat()).output().unwrap()
    };
    let version = run(&["--version"]);
    assert!(version.status.success() && stdout(&version).starts_with("tenure "), "{version:?}");
    // The default store, in the home of a user who is not root.
    let nobody = run(&["leader", "--election", "e"]);
    assert_eq!(nobody.status.code(), Some(1), "{nobody:?}");
    let doctor = run(&["doctor", "--store", "local:/home/tenure/store"]);
    assert!(doctor.status.success(), "{doctor:?}");
    let refused = run(&["leader", "--store", "local:/etc/store", "--election", "e"]);
    assert_eq!(refused.status.code(), Some(69), "a user who is not root: {refused:?}");
    let user = succeed(&mut docker(&["inspect", "--format={{.Config.User}}", image]));
    assert_eq!(stdout(&user).trim(), "65532:65532");
}

/// The image has one program that runs until it is stopped: `tenure observe`.
fn the_image_stops_at_sigterm(image: &str) {
    let store = ["--store", "local:/home/tenure/store", "--election", "e"];
    let program = ["--id", "node-1", "--", "/usr/bin/tenure", "observe"];
    // A volume, as Docker's own file system can be FUSE, which has no safe locks.
    let home = ["--volume=/home/tenure"];
    let running = Container::start(&home, image, &[&["run"], &store[..], &program, &store].concat());
    eventually("a program that runs", || {
        stdout(&docker(&["logs", &running.0]).output().unwrap()).contains("node-1\t").then_some(())
    });
    let (code, took) = stop(&running);
    assert_eq!(code, "143");
    assert!(took < Duration::from_secs(10), "{took:?}");
    // The kernel ignores signals to process 1 that it has no handler for.
    let observer = Container::start(&home, image, &[&["observe"], &store[..]].concat());
    eventually("an observer that runs", || {
        stdout(&docker(&["logs", &observer.0]).output().unwrap()).contains("-\n").then_some(())
    });
    let (code, took) = stop(&observer);
    assert_eq!(code, "143");
    assert!(took < Duration::from_secs(10), "{took:?}");
}

/// The documented use, in an image with a program.
fn another_image_takes_the_command(image: &str, folder: &Path) {
    let own = TestImage(format!("tenure-test/package-user:{:016x}", fastrand::u64(..)));
    let recipe = format!(
        "FROM {}\nCOPY --from={image} /usr/bin/tenure /usr/bin/tenure\n\
         ENTRYPOINT [\"/usr/bin/tenure\", \"run\", \"--store=local:/var/lib/tenure\", \"--election=e\", \"--\"]\n",
        systemd_image()
    );
    let context = folder.join("user");
    fs::create_dir(&context).unwrap();
    fs::write(context.join("Dockerfile"), recipe).unwrap();
    succeed(&mut docker(&["build", "--quiet", "--tag", &own.0, &context.display().to_string()]));
    // It leaves processes to process 1: each of these shells exits before what it has started.
    let program = "trap 'exit 7' TERM
        for number in 1 2 3 4 5; do sh -c 'sleep 0.2; echo > /tmp/orphan-$0' $number & done
        for number in 1 2 3 4 5; do sh -c '(sleep 0.2; echo > /tmp/orphan-$0) &' $number; done
        echo leads; while :; do sleep 0.05; done";
    let running = Container::start(&["--volume=/var/lib/tenure"], &own.0, &["sh", "-c", program]);
    eventually("the end of the orphans", || {
        running.try_sh("test -e /tmp/orphan-1 -a -e /tmp/orphan-5").status.success().then_some(())
    });
    assert_eq!(running.sh("tr '\\0' ' ' < /proc/1/cmdline | cut -d ' ' -f 1-2"), "/usr/bin/tenure run");
    eventually("no zombie", || {
        // The shell's own children are no orphans: it has waited for none of them yet.
        let zombies = running.sh("for stat in /proc/[0-9]*/stat; do cat $stat 2>/dev/null || true; done");
        let orphans = zombies.lines().filter(|stat| {
            let (_, rest) = stat.rsplit_once(") ").unwrap();
            let mut fields = rest.split(' ');
            let (state, parent) = (fields.next(), fields.next());
            state == Some("Z") && parent != Some("0")
        });
        (orphans.count() == 0).then_some(())
    });
    let (code, took) = stop(&running);
    assert_eq!(code, "7");
    assert!(took < Duration::from_secs(10), "{took:?}");
}
