//! Child processes, for tests of crashes: aborting a task does not have the effects of a killed process.

use std::{
    fmt,
    io::{self, BufRead as _, BufReader},
    process::{Child, Command, ExitStatus, Stdio},
    sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError},
    thread,
    time::{Duration, Instant},
};

use rustix::process::{Pid, Signal, kill_process};

/// How long a test waits for the output or the end of a program.
const TIMEOUT: Duration = Duration::from_secs(60);

/// A running child process. It is killed when this is dropped.
///
/// ```
/// # fn main() -> std::io::Result<()> {
/// use std::process::Command;
/// use tenure_testkit::program::Program;
///
/// let mut shell = Program::start(Command::new("sh").args(["-c", "echo ready; echo leads with token 7; exec sleep 60"]))?;
/// assert_eq!(shell.wait_for("leads"), "leads with token 7");
/// shell.kill();
/// # Ok(()) }
/// ```
pub struct Program {
    child: Child,
    output: Arc<Output>,
    /// How many lines `wait_for` has passed.
    lines_read: usize,
}

#[derive(Default)]
struct Output {
    state: Mutex<OutputState>,
    changed: Condvar,
}

#[derive(Default)]
struct OutputState {
    lines: Vec<String>,
    ended: bool,
}

impl Output {
    fn state(&self) -> MutexGuard<'_, OutputState> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Program {
    /// Starts `command` without standard input, and collects its standard output.
    ///
    /// # Errors
    /// If the program cannot be started.
    pub fn start(command: &mut Command) -> io::Result<Self> {
        let mut child = command.stdin(Stdio::null()).stdout(Stdio::piped()).spawn()?;
        let output = Arc::new(Output::default());
        if let Some(stdout) = child.stdout.take() {
            let output = Arc::clone(&output);
            thread::spawn(move || {
                for line in BufReader::new(stdout).lines().map_while(Result::ok) {
                    output.state().lines.push(line);
                    output.changed.notify_all();
                }
                output.state().ended = true;
                output.changed.notify_all();
            });
        }
        Ok(Self { child, output, lines_read: 0 })
    }

    /// Waits for the next line that contains `text`, starting after the line that the last call returned.
    ///
    /// # Panics
    /// If no such line is printed within 60 s, or before the program ends.
    pub fn wait_for(&mut self, text: &str) -> String {
        let deadline = Instant::now() + TIMEOUT;
        let mut state = self.output.state();
        loop {
            while self.lines_read < state.lines.len() {
                self.lines_read += 1;
                if state.lines[self.lines_read - 1].contains(text) {
                    return state.lines[self.lines_read - 1].clone();
                }
            }
            let left = deadline.saturating_duration_since(Instant::now());
            let output = state.lines.join("\n");
            assert!(
                !left.is_zero() && !state.ended,
                "the program did not print {text:?}; its output:\n{output}"
            );
            state = self.output.changed.wait_timeout(state, left).unwrap_or_else(PoisonError::into_inner).0;
        }
    }

    /// All lines that it has printed so far.
    pub fn lines(&self) -> Vec<String> {
        self.output.state().lines.clone()
    }

    /// Sends SIGKILL, and waits until the process is dead.
    pub fn kill(&mut self) {
        // The process may have ended by itself.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }

    /// Sends SIGTERM.
    pub fn terminate(&self) {
        if let Some(pid) = i32::try_from(self.child.id()).ok().and_then(Pid::from_raw) {
            let _ = kill_process(pid, Signal::TERM);
        }
    }

    /// Waits until the process and its output have ended.
    ///
    /// # Panics
    /// If the output has not ended within 60 s, because the process or a child of it is still alive.
    ///
    /// # Errors
    /// If the exit status cannot be read.
    pub fn wait(&mut self) -> io::Result<ExitStatus> {
        let state = self.output.state();
        let ended = self.output.changed.wait_timeout_while(state, TIMEOUT, |state| !state.ended);
        let (state, waited) = ended.unwrap_or_else(PoisonError::into_inner);
        let output = state.lines.join("\n");
        assert!(!waited.timed_out(), "the program did not end; its output:\n{output}");
        drop(state);
        self.child.wait()
    }
}

impl Drop for Program {
    fn drop(&mut self) {
        self.kill();
    }
}

impl fmt::Debug for Program {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Program")
            .field("pid", &self.child.id())
            .field("lines_read", &self.lines_read)
            .finish_non_exhaustive()
    }
}
