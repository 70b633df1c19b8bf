//! The command as it was built, and what its programs leave behind in files.

#![allow(dead_code, reason = "each test binary uses some of it")]

use std::{
    fs,
    io::{self, Read as _},
    os::unix::process::CommandExt as _,
    path::{Path, PathBuf},
    process::{Child, Command, ExitStatus, Output, Stdio},
    thread,
    time::{Duration, Instant},
};

use tempfile::TempDir;

/// How long anything may take on a busy machine.
const PATIENCE: Duration = Duration::from_secs(30);

/// Ignores all that can be ignored, tells its number and those of what it starts, and goes on for as long as its
/// directory exists: a failing test leaves nothing running.
pub(crate) const STUBBORN: &str = "trap '' TERM INT HUP
    sh -c 'trap \"\" TERM; while test -d \"$PWD\"; do sleep 1; done' & child=$!
    setsid sh -c 'trap \"\" TERM; echo $$ > daemon; while test -d \"$PWD\"; do sleep 1; done' &
    while ! test -s daemon; do sleep 0.01; done
    echo $$ $child $(cat daemon) > pids.new; mv pids.new pids
    while test -d \"$PWD\"; do sleep 1; done";

/// Succeeds when no thread of the stubborn program runs.
pub(crate) const ALONE: &str = "for pid in $(cat pids); do
        for thread in /proc/$pid/task/*/stat; do
            case $(sed 's/.*) //; s/ .*//' $thread 2>/dev/null) in ''|Z|X) ;; *) echo $pid runs beside; exit 9;; esac
        done
    done";

/// A store, and a directory that programs write to.
pub(crate) struct Stage {
    directory: TempDir,
    pub(crate) url: String,
}

impl Stage {
    /// On a lock file.
    pub(crate) fn local() -> Self {
        let directory = TempDir::new().unwrap();
        let url = format!("local:{}", directory.path().join("store").display());
        Self { directory, url }
    }

    /// On another store.
    pub(crate) fn on(url: impl Into<String>) -> Self {
        Self { directory: TempDir::new().unwrap(), url: url.into() }
    }

    /// A file that programs write to.
    pub(crate) fn file(&self, name: &str) -> PathBuf {
        self.directory.path().join(name)
    }

    /// `tenure` with these arguments, on this store.
    pub(crate) fn tenure(&self, arguments: &[&str]) -> Command {
        let mut command = bare(arguments);
        command.env("TENURE_STORE", &self.url).env("TENURE_ELECTION", "e").current_dir(self.directory.path());
        command
    }

    /// `tenure run` of a shell's script.
    pub(crate) fn run(&self, options: &[&str], script: &str) -> Command {
        let arguments = [&["run"], options, &["--", "sh", "-c", script]].concat();
        self.tenure(&arguments)
    }

    /// Runs it in the background until this is dropped.
    pub(crate) fn start(&self, options: &[&str], script: &str) -> Running {
        Running::start(self.run(options, script).stdout(Stdio::piped()).stderr(Stdio::piped()))
    }

    /// The ids of all candidates.
    pub(crate) fn candidates(&self) -> Vec<String> {
        let lines = text(&succeed(&mut self.tenure(&["candidates"])));
        lines.lines().map(|line| line.split('\t').next().unwrap_or_default().to_owned()).collect()
    }

    /// Waits until a program has written a whole line to a file.
    pub(crate) fn line(&self, name: &str) -> String {
        let path = self.file(name);
        eventually(&format!("a line in {name}"), || {
            let text = fs::read_to_string(&path).ok()?;
            text.split_once('\n').map(|(line, _)| line.to_owned())
        })
    }
}

/// `tenure` with these arguments, and nothing in its environment that concerns it.
pub(crate) fn bare(arguments: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_tenure"));
    command.args(arguments).stdin(Stdio::null()).env_remove("TENURE_STORE").env_remove("TENURE_ELECTION");
    command
}

/// A command that runs beside the test.
pub(crate) struct Running(Child);

impl Running {
    pub(crate) fn start(command: &mut Command) -> Self {
        Self(command.process_group(0).spawn().unwrap())
    }

    pub(crate) fn pid(&self) -> u32 {
        self.0.id()
    }

    pub(crate) fn signal(&self, name: &str) {
        kill(name, self.pid());
    }

    /// Sends a signal to all of its process group.
    pub(crate) fn signal_group(&self, name: &str) {
        let sent =
            Command::new("kill").args([&format!("-{name}"), "--", &format!("-{}", self.pid())]).status();
        assert!(sent.unwrap().success());
    }

    /// Waits until it has ended.
    pub(crate) fn end(&mut self) -> ExitStatus {
        eventually("the end of a command", || self.0.try_wait().unwrap())
    }

    /// Waits until it has ended; its exit code, and what it wrote to its standard error.
    pub(crate) fn code(&mut self) -> (Option<i32>, String) {
        let code = self.end().code();
        let mut said = String::new();
        self.0.stderr.take().unwrap().read_to_string(&mut said).unwrap();
        (code, said)
    }
}

impl Drop for Running {
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

/// Whether a thread of a process runs: the main thread of one that runs may have exited.
pub(crate) fn runs(pid: &str) -> bool {
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

/// The processes whose parent this is.
pub(crate) fn children(pid: u32) -> Vec<String> {
    let pids =
        fs::read_dir("/proc").unwrap().filter_map(|entry| entry.unwrap().file_name().into_string().ok());
    let is_child = |other: &String| {
        let stat = fs::read_to_string(format!("/proc/{other}/stat")).unwrap_or_default();
        stat.rsplit_once(')').and_then(|(_, rest)| rest.split_whitespace().nth(1)) == Some(&pid.to_string())
    };
    pids.filter(|pid| pid.bytes().all(|byte| byte.is_ascii_digit())).filter(is_child).collect()
}

/// Runs a command to its end, which has to be a success.
pub(crate) fn succeed(command: &mut Command) -> Output {
    let output = command.output().unwrap();
    assert!(output.status.success(), "{command:?}: {}", String::from_utf8_lossy(&output.stderr));
    output
}

/// Runs a command to its end; its exit code, and what it wrote to its standard error.
pub(crate) fn code(command: &mut Command) -> (Option<i32>, String) {
    let output = command.output().unwrap();
    (output.status.code(), String::from_utf8_lossy(&output.stderr).into_owned())
}

/// What a command wrote.
pub(crate) fn text(output: &Output) -> String {
    String::from_utf8(output.stdout.clone()).unwrap()
}

/// Asks until there is an answer.
pub(crate) fn eventually<T>(what: &str, mut ask: impl FnMut() -> Option<T>) -> T {
    let start = Instant::now();
    loop {
        if let Some(answer) = ask() {
            return answer;
        }
        assert!(start.elapsed() < PATIENCE, "{what}: not within {PATIENCE:?}");
        thread::sleep(Duration::from_millis(5));
    }
}
