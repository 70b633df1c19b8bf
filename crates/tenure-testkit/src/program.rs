//! Programs as processes of their own: for tests of what a crash does, where a task that is aborted would prove nothing.

use std::{
    fmt,
    io::{self, BufRead as _, BufReader},
    process::{Child, Command, ExitStatus, Stdio},
    sync::{Arc, Condvar, Mutex, PoisonError},
    thread,
    time::{Duration, Instant},
};

use rustix::process::{Pid, Signal, kill_process};

/// Nothing that is waited for takes longer, unless it hangs.
const PATIENCE: Duration = Duration::from_secs(60);

/// A program that runs beside the test, and is killed when this is dropped.
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
    printed: Arc<Printed>,
    /// How many lines have been waited for.
    read: usize,
}

#[derive(Default)]
struct Printed {
    lines: Mutex<(Vec<String>, bool)>,
    more: Condvar,
}

impl Program {
    /// Starts `command`, without an input, and reads what it prints.
    ///
    /// # Errors
    /// When it cannot be started.
    pub fn start(command: &mut Command) -> io::Result<Self> {
        let mut child = command.stdin(Stdio::null()).stdout(Stdio::piped()).spawn()?;
        let printed = Arc::new(Printed::default());
        if let Some(stdout) = child.stdout.take() {
            let printed = Arc::clone(&printed);
            thread::spawn(move || {
                for line in BufReader::new(stdout).lines().map_while(Result::ok) {
                    printed.lines.lock().unwrap_or_else(PoisonError::into_inner).0.push(line);
                    printed.more.notify_all();
                }
                printed.lines.lock().unwrap_or_else(PoisonError::into_inner).1 = true;
                printed.more.notify_all();
            });
        }
        Ok(Self { child, printed, read: 0 })
    }

    /// The next line that has `text` in it, after the one that was waited for before.
    ///
    /// # Panics
    /// When there is none within a minute, or before the program has ended.
    pub fn wait_for(&mut self, text: &str) -> String {
        let until = Instant::now() + PATIENCE;
        let mut printed = self.printed.lines.lock().unwrap_or_else(PoisonError::into_inner);
        loop {
            while self.read < printed.0.len() {
                self.read += 1;
                if printed.0[self.read - 1].contains(text) {
                    return printed.0[self.read - 1].clone();
                }
            }
            let left = until.saturating_duration_since(Instant::now());
            assert!(!left.is_zero() && !printed.1, "{text:?} was not printed:\n{}", printed.0.join("\n"));
            printed = self.printed.more.wait_timeout(printed, left).unwrap_or_else(PoisonError::into_inner).0;
        }
    }

    /// All that it has printed so far.
    pub fn lines(&self) -> Vec<String> {
        self.printed.lines.lock().unwrap_or_else(PoisonError::into_inner).0.clone()
    }

    /// Kills it, as `kill -9` does, and waits until it is dead.
    pub fn kill(&mut self) {
        // It may have ended by itself.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }

    /// Asks it to end, as `kill` does.
    pub fn terminate(&self) {
        if let Some(pid) = i32::try_from(self.child.id()).ok().and_then(Pid::from_raw) {
            let _ = kill_process(pid, Signal::TERM);
        }
    }

    /// Waits until it has ended, and so has its output.
    ///
    /// # Panics
    /// When its output has not ended within a minute: it lives, or a process that it has started does.
    ///
    /// # Errors
    /// When the system cannot be asked.
    pub fn wait(&mut self) -> io::Result<ExitStatus> {
        let printed = self.printed.lines.lock().unwrap_or_else(PoisonError::into_inner);
        let ended = self.printed.more.wait_timeout_while(printed, PATIENCE, |(_, ended)| !*ended);
        let (printed, waited) = ended.unwrap_or_else(PoisonError::into_inner);
        assert!(!waited.timed_out(), "it does not end:\n{}", printed.0.join("\n"));
        drop(printed);
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
            .field("read", &self.read)
            .finish_non_exhaustive()
    }
}
