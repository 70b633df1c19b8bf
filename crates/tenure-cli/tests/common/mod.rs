//! Runs the `tenure` command, and programs that write files.

#![allow(dead_code, reason = "each test binary uses a part of it")]

pub(crate) mod sidecar;

use std::{
    fs,
    io::{self, Read as _},
    os::unix::process::CommandExt as _,
    path::{Path, PathBuf},
    process::{Child, ChildStderr, ChildStdout, Command, ExitStatus, Output, Stdio},
    thread,
    time::{Duration, Instant},
};

use serde_json::json;
use tempfile::TempDir;

/// The longest wait for anything, on a busy machine.
const TIMEOUT: Duration = Duration::from_secs(30);

/// A program that ignores the signals that can be ignored. It starts a child and a daemon, and writes the process ids
/// of all three to `pids`. They run while the test's directory exists, so that a failing test leaves nothing running.
pub(crate) const STUBBORN_PROGRAM: &str = "trap '' TERM INT HUP
    sh -c 'trap \"\" TERM; while test -d \"$PWD\"; do sleep 1; done' & child=$!
    setsid sh -c 'trap \"\" TERM; echo $$ > daemon; while test -d \"$PWD\"; do sleep 1; done' &
    while ! test -s daemon; do sleep 0.01; done
    echo $$ $child $(cat daemon) > pids.new; mv pids.new pids
    while test -d \"$PWD\"; do sleep 1; done";

/// A program that succeeds if no thread of the stubborn program runs, and exits with 9 otherwise.
pub(crate) const CHECK_ALONE: &str = "for pid in $(cat pids); do
        for thread in /proc/$pid/task/*/stat; do
            case $(sed 's/.*) //; s/ .*//' $thread 2>/dev/null) in ''|Z|X) ;; *) echo $pid still runs; exit 9;; esac
        done
    done";

/// A store, and a temporary directory that programs write to.
pub(crate) struct Sandbox {
    directory: TempDir,
    pub(crate) url: String,
}

impl Sandbox {
    /// Uses a store of lock files.
    pub(crate) fn local() -> Self {
        let directory = TempDir::new().unwrap();
        let url = format!("local:{}", directory.path().join("store").display());
        Self { directory, url }
    }

    /// Uses the store with this URL.
    pub(crate) fn on(url: impl Into<String>) -> Self {
        Self { directory: TempDir::new().unwrap(), url: url.into() }
    }

    /// Uses the store on this server, with elections below `root`: on Kubernetes in a namespace of that name.
    pub(crate) fn on_server(scheme: &str, endpoint: &str, root: &str, settings: &str) -> Self {
        match scheme {
            "kubernetes" => Self::on_kubernetes(endpoint, "admin-token", root, settings),
            _ => Self::on(store_url(scheme, endpoint, root, settings)),
        }
    }

    /// Uses a namespace of the API server at this address, as the user with this token.
    pub(crate) fn on_kubernetes(endpoint: &str, token: &str, namespace: &str, settings: &str) -> Self {
        let cluster = json!({ "server": format!("https://{endpoint}"), "insecure-skip-tls-verify": true });
        let kubeconfig = json!({
            "apiVersion": "v1", "kind": "Config", "current-context": "test",
            "clusters": [{ "name": "test", "cluster": cluster }],
            "users": [{ "name": "test", "user": { "token": token } }],
            "contexts": [{ "name": "test", "context": { "cluster": "test", "user": "test" } }],
        });
        let directory = TempDir::new().unwrap();
        let file = directory.path().join("kubeconfig");
        fs::write(&file, kubeconfig.to_string()).unwrap();
        let url = format!("kubernetes:///{namespace}?kubeconfig={}&{settings}", file.display());
        Self { directory, url }
    }

    /// The path of a file that programs write to.
    pub(crate) fn file(&self, name: &str) -> PathBuf {
        self.directory.path().join(name)
    }

    /// `tenure` with these arguments, on this store.
    pub(crate) fn tenure(&self, arguments: &[&str]) -> Command {
        let mut command = tenure_command(arguments);
        command.env("TENURE_STORE", &self.url).env("TENURE_ELECTION", "e").current_dir(self.directory.path());
        command
    }

    /// `tenure run` of a shell script.
    pub(crate) fn run(&self, options: &[&str], script: &str) -> Command {
        let arguments = [&["run"], options, &["--", "sh", "-c", script]].concat();
        self.tenure(&arguments)
    }

    /// Starts `tenure run` of a shell script. It is killed when the result is dropped.
    pub(crate) fn start(&self, options: &[&str], script: &str) -> RunningCommand {
        RunningCommand::start(self.run(options, script).stdout(Stdio::piped()).stderr(Stdio::piped()))
    }

    /// The ids of all candidates, in queue order.
    pub(crate) fn candidates(&self) -> Vec<String> {
        let lines = stdout(&succeed(&mut self.tenure(&["candidates"])));
        lines.lines().map(|line| line.split('\t').next().unwrap_or_default().to_owned()).collect()
    }

    /// Waits until a program has written a line to a file, and returns it.
    pub(crate) fn wait_for_line(&self, name: &str) -> String {
        let path = self.file(name);
        eventually(&format!("a line in {name}"), || {
            let text = fs::read_to_string(&path).ok()?;
            text.split_once('\n').map(|(line, _)| line.to_owned())
        })
    }
}

/// The URL of a store on this server, with elections below `root`: on PostgreSQL in a schema with that name; on S3 in the bucket of the tests; on MySQL in a database.
pub(crate) fn store_url(scheme: &str, endpoint: &str, root: &str, settings: &str) -> String {
    match scheme {
        "postgres" => format!("postgres://postgres@{endpoint}/postgres?schema={root}&{settings}"),
        "s3" => format!("s3://admin:admin-secret@suite/{root}?endpoint=http://{endpoint}&{settings}"),
        "mysql" => format!("mysql://root@{endpoint}/{root}?{settings}"),
        "redis" => format!("redis://{endpoint}/0?prefix={root}&{settings}"),
        _ => format!("{scheme}://{endpoint}/{root}?{settings}"),
    }
}

/// The name of the store of [`Sandbox::on_server`] in messages.
pub(crate) fn store_name(scheme: &str, endpoint: &str, root: &str) -> String {
    match scheme {
        "kubernetes" => format!("kubernetes:/{root}"),
        "s3" => "s3 suite".to_owned(),
        _ => format!("{scheme} {endpoint}"),
    }
}

/// `tenure` with these arguments, without its variables in the environment.
pub(crate) fn tenure_command(arguments: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_tenure"));
    command.args(arguments).stdin(Stdio::null()).env_remove("TENURE_STORE").env_remove("TENURE_ELECTION");
    command
}

/// A command that runs in the background. It is killed when this is dropped.
pub(crate) struct RunningCommand(Child);

impl RunningCommand {
    pub(crate) fn start(command: &mut Command) -> Self {
        Self(command.process_group(0).spawn().unwrap())
    }

    pub(crate) fn pid(&self) -> u32 {
        self.0.id()
    }

    pub(crate) fn signal(&self, name: &str) {
        kill(name, self.pid());
    }

    /// Sends a signal to its whole process group.
    pub(crate) fn signal_group(&self, name: &str) {
        let sent =
            Command::new("kill").args([&format!("-{name}"), "--", &format!("-{}", self.pid())]).status();
        assert!(sent.unwrap().success());
    }

    /// Waits until it has ended.
    pub(crate) fn wait(&mut self) -> ExitStatus {
        eventually("the command ends", || self.0.try_wait().unwrap())
    }

    /// Its standard error, which was piped.
    pub(crate) fn stderr(&mut self) -> ChildStderr {
        self.0.stderr.take().unwrap()
    }

    /// Its standard output, which was piped.
    pub(crate) fn stdout(&mut self) -> ChildStdout {
        self.0.stdout.take().unwrap()
    }

    /// Waits until it has ended. Returns its exit code and its standard error.
    pub(crate) fn code_and_stderr(&mut self) -> (Option<i32>, String) {
        let code = self.wait().code();
        let mut stderr = String::new();
        self.0.stderr.take().unwrap().read_to_string(&mut stderr).unwrap();
        (code, stderr)
    }
}

impl Drop for RunningCommand {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// Sends a signal, as the shell's `kill` does.
pub(crate) fn kill(name: &str, pid: impl ToString) {
    let sent = Command::new("kill").args([format!("-{name}"), pid.to_string()]).status().unwrap();
    assert!(sent.success());
}

/// Whether any thread of a process runs. Its main thread may have exited before the others.
pub(crate) fn is_running(pid: &str) -> bool {
    let is_gone = |error: &io::Error| matches!(error.raw_os_error(), Some(2 | 3));
    let threads = match fs::read_dir(Path::new("/proc").join(pid).join("task")) {
        Err(error) if is_gone(&error) => return false,
        threads => threads.unwrap(),
    };
    threads.filter_map(Result::ok).any(|thread| match fs::read(thread.path().join("stat")) {
        Err(error) if is_gone(&error) => false,
        stat => {
            let stat = String::from_utf8_lossy(&stat.unwrap()).into_owned();
            stat.rsplit_once(')').is_some_and(|(_, rest)| !rest.trim_start().starts_with(['Z', 'X']))
        }
    })
}

/// The ids of a process's children.
pub(crate) fn children(pid: u32) -> Vec<String> {
    let pids =
        fs::read_dir("/proc").unwrap().filter_map(|entry| entry.unwrap().file_name().into_string().ok());
    let is_child = |other: &String| {
        let stat = fs::read_to_string(format!("/proc/{other}/stat")).unwrap_or_default();
        stat.rsplit_once(')').and_then(|(_, rest)| rest.split_whitespace().nth(1)) == Some(&pid.to_string())
    };
    pids.filter(|pid| pid.bytes().all(|byte| byte.is_ascii_digit())).filter(is_child).collect()
}

/// Runs a command, which must succeed.
pub(crate) fn succeed(command: &mut Command) -> Output {
    let output = command.output().unwrap();
    assert!(output.status.success(), "{command:?}: {}", String::from_utf8_lossy(&output.stderr));
    output
}

/// Runs a command. Returns its exit code and its standard error.
pub(crate) fn code_and_stderr(command: &mut Command) -> (Option<i32>, String) {
    let output = command.output().unwrap();
    (output.status.code(), String::from_utf8_lossy(&output.stderr).into_owned())
}

/// A command's standard output.
pub(crate) fn stdout(output: &Output) -> String {
    String::from_utf8(output.stdout.clone()).unwrap()
}

/// Calls `poll` until it returns a value.
pub(crate) fn eventually<T>(what: &str, mut poll: impl FnMut() -> Option<T>) -> T {
    let start = Instant::now();
    loop {
        if let Some(value) = poll() {
            return value;
        }
        assert!(start.elapsed() < TIMEOUT, "{what}: not within {TIMEOUT:?}");
        thread::sleep(Duration::from_millis(5));
    }
}
