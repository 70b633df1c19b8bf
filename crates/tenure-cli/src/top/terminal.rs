//! The terminal of `tenure top`: single keys without echo, an alternate screen, and everything as it was at the end.
//!
//! The terminal is restored when [`Terminal`] is left or dropped, before the process is stopped, and when its thread panics.
//! A thread of its own writes to it, so that a terminal that takes nothing more does not keep the command from ending.

use std::{
    cell::Cell,
    env,
    io::{self, IsTerminal as _, Write as _, stdin, stdout},
    panic,
    sync::{
        Mutex, MutexGuard, Once, PoisonError,
        mpsc::{Receiver, SyncSender, TrySendError, sync_channel},
    },
    thread::{self, ThreadId},
    time::Duration,
};

use rustix::{
    event::{PollFd, PollFlags, Timespec, poll},
    io::Errno,
    process::getpid,
    termios::{InputModes, LocalModes, OptionalActions, SpecialCodeIndex, Termios, tcgetattr, tcsetattr},
};
use signal_hook::{consts::signal::SIGTSTP, low_level::emulate_default_handler};
use tokio::sync::mpsc;

use super::keys::{self, Key};
use crate::{
    exit::UsageError,
    messages,
    processes::proc::{Job, job_of},
};

/// Alternate screen, no cursor, no wrapping of long lines, an empty screen.
const ENTER: &[u8] = b"\x1b[?1049h\x1b[?25l\x1b[?7l\x1b[2J";
/// The same, where the alternate screen is shown already.
const CLEAR: &[u8] = b"\x1b[?25l\x1b[?7l\x1b[2J";
const LEAVE: &[u8] = b"\x1b[0m\x1b[?7h\x1b[?25h\x1b[?1049l";
/// How long the terminal may take to show the screen as it was.
const LEAVE_TIMEOUT: Duration = Duration::from_millis(500);
/// How long the bytes of one key may be apart, over a slow connection.
const KEY_TIMEOUT: Timespec = Timespec { tv_sec: 0, tv_nsec: 50_000_000 };

/// The settings to restore, and the thread that shows the screen; `None` while the terminal is as it was.
static IN_USE: Mutex<Option<(Termios, ThreadId)>> = Mutex::new(None);

/// What the writing thread is to do.
enum Output {
    /// The rows of the screen, after one of [`ENTER`], [`CLEAR`] and nothing. After nothing, only rows that have changed are
    /// written.
    Frame {
        start: &'static [u8],
        rows: Vec<String>,
    },
    Leave,
}

/// A terminal that shows a full screen.
#[derive(Debug)]
pub(crate) struct Terminal {
    output: SyncSender<Output>,
    /// One value for each [`Output::Leave`] that was written.
    left: Receiver<()>,
    /// What comes before the next rows.
    start: Cell<&'static [u8]>,
}

/// Checks that keys can be read from a terminal, and a screen be shown.
///
/// # Errors
/// Says what is missing, and what to use instead.
pub(crate) fn check() -> Result<(), UsageError> {
    let missing = if !stdout().is_terminal() {
        "the standard output is not one"
    } else if !stdin().is_terminal() {
        "the standard input is not one"
    } else if env::var_os("TERM").is_none_or(|term| term.is_empty() || term == "dumb") {
        "TERM names none that can show a full screen"
    } else {
        return Ok(());
    };
    Err(UsageError(format!(
        "`tenure top` needs a terminal: {missing}; use `tenure elections` for all elections, or `tenure observe` to \
         follow one"
    )))
}

impl Terminal {
    /// Takes the terminal. It belongs to the current thread.
    pub(crate) fn enter() -> io::Result<Self> {
        restore_at_panic();
        let (output, outputs) = sync_channel(2);
        let (written, left) = sync_channel(2);
        thread::Builder::new().name("screen".to_owned()).spawn(move || write_all(&outputs, &written))?;
        let terminal = Self { output, left, start: Cell::new(ENTER) };
        terminal.take()?;
        Ok(terminal)
    }

    fn take(&self) -> io::Result<()> {
        let mut in_use = in_use();
        if in_use.is_none() {
            *in_use = Some((tcgetattr(stdin())?, thread::current().id()));
            self.start.set(ENTER);
        }
        let Some((original, _)) = &*in_use else { return Ok(()) };
        let mut settings = original.clone();
        // The keys for signals stay. Ctrl-S does not stop the output.
        settings.local_modes -= LocalModes::ICANON | LocalModes::ECHO | LocalModes::IEXTEN;
        settings.input_modes -= InputModes::IXON;
        settings.special_codes[SpecialCodeIndex::VMIN] = 1;
        settings.special_codes[SpecialCodeIndex::VTIME] = 0;
        // Until this process is in the foreground.
        while let Err(error) = tcsetattr(stdin(), OptionalActions::Now, &settings) {
            if error != Errno::INTR {
                *in_use = None;
                return Err(error.into());
            }
        }
        messages::hold();
        self.clear();
        Ok(())
    }

    /// Shows these rows, unless the terminal has not taken the last ones yet.
    pub(crate) fn show(&self, rows: Vec<String>) {
        // Rows that are dropped are followed by others within a second.
        if self.output.try_send(Output::Frame { start: self.start.get(), rows }).is_ok() {
            self.start.set(b"");
        }
    }

    /// Shows all of the next rows, for example after the size has changed.
    pub(crate) fn clear(&self) {
        if self.start.get().is_empty() {
            self.start.set(CLEAR);
        }
    }

    /// Takes the terminal again, after another program may have had it.
    pub(crate) fn resume(&self) -> io::Result<()> {
        self.take()
    }

    /// Restores the terminal and stops the process, until somebody continues it. Returns `false` if nobody would.
    pub(crate) fn suspend(&self) -> io::Result<bool> {
        if is_orphaned(getpid().as_raw_pid(), job_of) {
            return Ok(false);
        }
        self.leave();
        emulate_default_handler(SIGTSTP)?;
        self.take()?;
        Ok(true)
    }

    /// Restores the terminal.
    fn leave(&self) {
        if restore_settings() {
            // Of an earlier one that took too long.
            while self.left.try_recv().is_ok() {}
            self.send_leave();
            let _ = self.left.recv_timeout(LEAVE_TIMEOUT);
            messages::release();
        }
    }

    fn send_leave(&self) {
        let steps = 50;
        for _ in 0..steps {
            // The last rows may not be written yet.
            if !matches!(self.output.try_send(Output::Leave), Err(TrySendError::Full(_))) {
                return;
            }
            thread::sleep(LEAVE_TIMEOUT / steps);
        }
    }
}

impl Drop for Terminal {
    fn drop(&mut self) {
        self.leave();
    }
}

fn write_all(outputs: &Receiver<Output>, written: &SyncSender<()>) {
    let mut shown: Vec<String> = Vec::new();
    for output in outputs {
        let bytes = match output {
            Output::Leave => LEAVE.to_vec(),
            Output::Frame { start, rows } => {
                if !start.is_empty() {
                    shown.clear();
                }
                let changes = changes(&shown, &rows);
                shown = rows;
                [start, &changes].concat()
            }
        };
        // In one piece, so that nothing is shown by halves. If the terminal is gone, a signal says so.
        let mut stdout = stdout().lock();
        let _ = stdout.write_all(&bytes).and_then(|()| stdout.flush());
        if bytes == LEAVE {
            let _ = written.try_send(());
        }
    }
}

/// What has to be written to turn the rows that are shown into others.
fn changes(shown: &[String], rows: &[String]) -> Vec<u8> {
    let mut bytes = Vec::new();
    for (number, row) in rows.iter().enumerate() {
        if shown.get(number) != Some(row) {
            // The old row is erased first: after a row that fills the terminal, the cursor is on its last character.
            bytes.extend_from_slice(format!("\x1b[{};1H\x1b[2K{row}", number + 1).as_bytes());
        }
    }
    if rows.len() < shown.len() {
        bytes.extend_from_slice(format!("\x1b[{};1H\x1b[J", rows.len() + 1).as_bytes());
    }
    bytes
}

fn in_use() -> MutexGuard<'static, Option<(Termios, ThreadId)>> {
    IN_USE.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Restores the settings of the terminal. Returns whether it was in use.
fn restore_settings() -> bool {
    let Some((original, _)) = in_use().take() else { return false };
    let _ = tcsetattr(stdin(), OptionalActions::Now, &original);
    true
}

/// Restores the terminal before a panic of the thread that shows the screen is printed, and prints those of others when the
/// screen is gone.
fn restore_at_panic() {
    static ONCE: Once = Once::new();
    ONCE.call_once(|| {
        let print = panic::take_hook();
        panic::set_hook(Box::new(move |panicked| {
            let owner = in_use().as_ref().map(|(_, owner)| *owner);
            match owner {
                Some(owner) if owner != thread::current().id() => messages::print(&panicked.to_string()),
                Some(_) => {
                    restore_settings();
                    let mut stdout = stdout();
                    let _ = stdout.write_all(LEAVE).and_then(|()| stdout.flush());
                    messages::release();
                    print(panicked);
                }
                None => print(panicked),
            }
        }));
    });
}

/// Whether no shell would continue this process after a stop: no ancestor of this session is in another process group. This
/// is so in a container whose first process is `tenure top`, for example.
fn is_orphaned(this: i32, job_of: impl Fn(i32) -> Option<Job>) -> bool {
    let Some(job) = job_of(this) else { return true };
    let mut parent = job.parent;
    while let Some(ancestor) = job_of(parent) {
        if ancestor.session != job.session {
            return true;
        }
        if ancestor.group != job.group {
            return false;
        }
        parent = ancestor.parent;
    }
    true
}

/// Reads keys on a thread of its own. The channel is closed when the terminal is gone.
pub(crate) fn read_keys() -> io::Result<mpsc::UnboundedReceiver<Key>> {
    let (sender, receiver) = mpsc::unbounded_channel();
    thread::Builder::new().name("keys".to_owned()).spawn(move || {
        let mut buffer = [0; 256];
        let mut bytes: Vec<u8> = Vec::new();
        loop {
            let read = match rustix::io::read(stdin(), &mut buffer) {
                Ok(0) => return,
                Ok(read) => read,
                Err(Errno::INTR) => continue,
                Err(_) => return,
            };
            bytes.extend_from_slice(&buffer[..read]);
            let is_whole = !keys::is_incomplete(&bytes) || !has_more();
            if is_whole {
                for key in keys::decode(&bytes) {
                    if sender.send(key).is_err() {
                        return;
                    }
                }
                bytes.clear();
            }
        }
    })?;
    Ok(receiver)
}

/// Whether more bytes arrive at once.
fn has_more() -> bool {
    let stdin = stdin();
    let mut polled = [PollFd::new(&stdin, PollFlags::IN)];
    poll(&mut polled, Some(&KEY_TIMEOUT)).is_ok_and(|ready| ready > 0)
}

#[cfg(test)]
mod tests {
    use std::process::Command;

    use super::*;

    const NAME: &str = "top::terminal::tests::a_panic_restores_the_terminal_before_it_is_printed";
    const IN_TERMINAL: &str = "TENURE_TEST_IN_TERMINAL";

    /// The test runs itself on a terminal, which the program `script` emulates, and panics there.
    #[test]
    fn a_panic_restores_the_terminal_before_it_is_printed() {
        if env::var_os(IN_TERMINAL).is_some() {
            let terminal = Terminal::enter().unwrap();
            terminal.show(vec!["a row".to_owned()]);
            panic!("on purpose");
        }
        let this = env::current_exe().unwrap();
        let line = format!("stty echo icanon; {} --exact {NAME} --nocapture; stty -a", this.display());
        let mut command = Command::new("script");
        command.args(["--quiet", "--command", &line, "/dev/null"]).env(IN_TERMINAL, "1").env("TERM", "xterm");
        let output = command.stdin(std::process::Stdio::null()).output().unwrap();
        let shown = String::from_utf8_lossy(&output.stdout).into_owned();
        let left = shown.find("\u{1b}[?1049l").unwrap_or_else(|| panic!("{shown:?}"));
        let printed = shown.find("on purpose").unwrap_or_else(|| panic!("{shown:?}"));
        assert!(left < printed, "{shown:?}");
        let (_, settings) = shown.split_once("speed ").unwrap_or_else(|| panic!("{shown:?}"));
        let has = |setting: &str| settings.split([' ', ';', '\r', '\n']).any(|word| word == setting);
        assert!(has("icanon") && has("echo"), "{settings}");
    }

    #[test]
    fn a_shell_of_the_same_session_would_continue_it() {
        let job = |parent, group, session| Job { parent, group, session };
        let is_orphaned = |processes: &[(i32, Job)]| {
            is_orphaned(9, |pid| processes.iter().find(|(found, _)| *found == pid).map(|(_, job)| *job))
        };
        let this = (9, job(8, 8, 5));
        // A script (8) that the shell (5) has started.
        let script = (8, job(5, 8, 5));
        assert!(!is_orphaned(&[this, script, (5, job(1, 5, 5))]));
        assert!(is_orphaned(&[this, script, (5, job(1, 8, 5)), (1, job(0, 1, 1))]));
        assert!(is_orphaned(&[this, script]));
        assert!(is_orphaned(&[]));
        // The parent's session and group, and then also the process's own, are those of a process outside the PID namespace.
        assert!(is_orphaned(&[(9, job(1, 9, 9)), (1, job(0, 0, 0))]));
        assert!(is_orphaned(&[(9, job(1, 0, 0)), (1, job(0, 0, 0))]));
    }

    #[test]
    fn only_rows_that_have_changed_are_written() {
        let rows = |texts: &[&str]| texts.iter().map(|text| (*text).to_owned()).collect::<Vec<_>>();
        let text =
            |shown: &[&str], next: &[&str]| String::from_utf8(changes(&rows(shown), &rows(next))).unwrap();
        assert_eq!(text(&["a", "b"], &["a", "b"]), "");
        assert_eq!(text(&["a", "b"], &["a", "c"]), "\x1b[2;1H\x1b[2Kc");
        assert_eq!(text(&[], &["a"]), "\x1b[1;1H\x1b[2Ka");
        assert_eq!(text(&["a", "b", "c"], &["a"]), "\x1b[2;1H\x1b[J");
    }
}
