//! Messages for users and log lines, on the standard error.

use std::{
    collections::VecDeque,
    io::{self, IsTerminal as _, Write, stderr},
    sync::{
        Mutex, MutexGuard, OnceLock, PoisonError, TryLockError,
        atomic::{AtomicBool, Ordering},
    },
    thread,
    time::{Duration, Instant, SystemTime},
};

use rustix::{
    event::{PollFd, PollFlags, Timespec, poll},
    io::Errno,
};
use serde_json::json;
use tracing::Level;

use crate::args::LogFormat;

static FORMAT: OnceLock<LogFormat> = OnceLock::new();
/// The line at the bottom of the terminal, which is updated in place. Empty if there is none.
static STATUS_LINE: Mutex<String> = Mutex::new(String::new());
/// Lines that wait until a full-screen display is gone.
static HELD: Mutex<Option<HeldLines>> = Mutex::new(None);
/// How many lines wait at most.
const MAX_HELD_LINES: usize = 100;
/// How long a message waits for another thread's write: less than any margin before a deadline.
const LOCK_TIMEOUT: Duration = Duration::from_millis(10);
/// How long the last message of a command waits for another thread's write, and then for a full standard error to be read. No deadline follows.
const LAST_TIMEOUT: Duration = Duration::from_secs(1);
/// Begins the current row of a terminal again.
const ERASE_ROW: &str = "\r\x1b[K";

/// Sets the format of messages. Until then it is text.
pub(crate) fn set_format(format: LogFormat) {
    let _ = FORMAT.set(format);
}

pub(crate) fn is_json() -> bool {
    FORMAT.get() == Some(&LogFormat::Json)
}

/// The option that gives another `tenure` the same format.
pub(crate) fn format_option() -> &'static str {
    if is_json() { "--log-format=json" } else { "--log-format=text" }
}

/// Whether the standard error is a terminal that shows text with colors and updates in place.
pub(crate) fn on_terminal() -> bool {
    !is_json() && stderr().is_terminal()
}

/// Whether colors are wanted on the standard error (`NO_COLOR` and the like). Never in a pipe.
pub(crate) fn has_colors() -> bool {
    on_terminal() && anstream::AutoStream::choice(&stderr()) != anstream::ColorChoice::Never
}

/// Prints `tenure: TEXT`, or a JSON object like those of the log. An error in writing is ignored: a closed standard error must
/// not stop a command.
pub(crate) fn print(text: &str) {
    print_at(Level::WARN, text);
}

/// Prints like [`print`], for what is no problem.
pub(crate) fn inform(text: &str) {
    print_at(Level::INFO, text);
}

/// Prints like [`print`], but only if that does not block: it waits for other threads for at most [`LOCK_TIMEOUT`]. Returns whether it was
/// printed.
pub(crate) fn try_print(text: &str) -> bool {
    try_print_at(Level::WARN, text)
}

/// Prints like [`try_print`], for what is no problem.
pub(crate) fn try_inform(text: &str) -> bool {
    try_print_at(Level::INFO, text)
}

/// Prints like [`print`], just before the command ends. Waits at most twice [`LAST_TIMEOUT`] when it cannot write.
pub(crate) fn print_last(text: &str) {
    if let Some(status_line) = lock_within(&STATUS_LINE, LAST_TIMEOUT)
        && has_room_within(LAST_TIMEOUT)
    {
        let _ = write_above_status_line(&status_line, line(Level::WARN, text).as_bytes());
    }
}

fn print_at(level: Level, text: &str) {
    let _ = write_above_status_line(&lock(), line(level, text).as_bytes());
}

fn try_print_at(level: Level, text: &str) -> bool {
    // Another thread's write ends at once, unless standard error is full.
    let Some(status_line) = lock_within(&STATUS_LINE, LOCK_TIMEOUT) else { return false };
    let has_room = has_room();
    if has_room {
        let _ = write_above_status_line(&status_line, line(level, text).as_bytes());
    }
    has_room
}

/// A message on one line, in the format of the log.
fn line(level: Level, text: &str) -> String {
    if !is_json() {
        return format!("tenure: {text}\n");
    }
    let timestamp = humantime::format_rfc3339_micros(SystemTime::now()).to_string();
    let level = level.as_str();
    let object =
        json!({ "timestamp": timestamp, "level": level, "fields": { "message": text }, "target": "tenure" });
    format!("{object}\n")
}

/// Shows this text at the bottom of the terminal, in place of the one before, unless it `is_over`.
pub(crate) fn set_status_line(text: &str, is_over: &AtomicBool) {
    let mut status_line = lock();
    if !is_over.load(Ordering::SeqCst) {
        text.clone_into(&mut status_line);
        let _ = stderr().write_all(format!("{ERASE_ROW}{text}").as_bytes());
    }
}

/// Removes the status line, but only if that does not block.
pub(crate) fn try_remove_status_line() {
    if let Some(mut status_line) = lock_within(&STATUS_LINE, LOCK_TIMEOUT)
        && !status_line.is_empty()
        && has_room()
    {
        status_line.clear();
        let _ = stderr().write_all(ERASE_ROW.as_bytes());
    }
}

/// What was to be written while a full-screen display had the terminal: the last lines.
#[derive(Debug, Default)]
struct HeldLines {
    lines: VecDeque<Vec<u8>>,
    dropped: usize,
}

/// Holds messages and log lines back, because a full-screen display has the terminal. Lines that go elsewhere are written.
pub(crate) fn hold() {
    if stderr().is_terminal() {
        held().get_or_insert_default();
    }
}

/// Writes what was held back, as long as that does not block, and all that follows.
pub(crate) fn release() {
    let Some(HeldLines { lines, dropped }) = held().take() else { return };
    if dropped > 0 {
        try_print(&format!("{dropped} earlier messages were dropped while the terminal was in use"));
    }
    for line in lines {
        if has_room() {
            let _ = write_above_status_line(&lock(), &line);
        }
    }
}

fn held() -> MutexGuard<'static, Option<HeldLines>> {
    HELD.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Whether a line can be written without blocking on a full pipe.
fn has_room() -> bool {
    has_room_within(Duration::ZERO)
}

/// Whether a line can be written without blocking, now or at some time within `limit`.
fn has_room_within(limit: Duration) -> bool {
    let start = Instant::now();
    let stderr = stderr();
    loop {
        let mut polled = [PollFd::new(&stderr, PollFlags::OUT)];
        let left = Timespec::try_from(limit.saturating_sub(start.elapsed())).ok();
        match poll(&mut polled, left.as_ref()) {
            Err(Errno::INTR) if start.elapsed() < limit => {}
            ready => return ready.is_ok() && polled[0].revents().contains(PollFlags::OUT),
        }
    }
}

/// Writes whole lines, so that a status line stays below them.
fn write_above_status_line(status_line: &str, lines: &[u8]) -> io::Result<()> {
    if let Some(held) = &mut *held() {
        if held.lines.len() == MAX_HELD_LINES {
            held.lines.pop_front();
            held.dropped += 1;
        }
        held.lines.push_back(lines.to_vec());
        return Ok(());
    }
    if status_line.is_empty() {
        return stderr().write_all(lines);
    }
    stderr().write_all(&[ERASE_ROW.as_bytes(), lines, status_line.as_bytes()].concat())
}

fn lock() -> MutexGuard<'static, String> {
    STATUS_LINE.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Takes the lock. Returns `None` if it is not free within `limit`.
fn lock_within<T>(mutex: &Mutex<T>, limit: Duration) -> Option<MutexGuard<'_, T>> {
    let start = Instant::now();
    loop {
        match mutex.try_lock() {
            Ok(guard) => return Some(guard),
            Err(TryLockError::Poisoned(poisoned)) => return Some(poisoned.into_inner()),
            Err(TryLockError::WouldBlock) if start.elapsed() >= limit => return None,
            Err(TryLockError::WouldBlock) => thread::sleep(Duration::from_millis(1)),
        }
    }
}

/// Where the log is written. Each write has whole lines.
#[derive(Debug)]
pub(crate) struct LogWriter;

impl Write for LogWriter {
    fn write(&mut self, lines: &[u8]) -> io::Result<usize> {
        write_above_status_line(&lock(), lines)?;
        Ok(lines.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use std::sync::mpsc;

    use super::*;

    #[test]
    fn a_message_waits_for_another_thread_and_not_forever() {
        let mutex = Mutex::new(());
        let writing = mutex.lock().unwrap();
        assert!(lock_within(&mutex, Duration::ZERO).is_none());
        let (began, waits) = mpsc::channel();
        thread::scope(|scope| {
            let message = scope.spawn(|| {
                assert!(lock_within(&mutex, LOCK_TIMEOUT).is_none());
                began.send(()).unwrap();
                lock_within(&mutex, Duration::from_secs(60)).is_some()
            });
            waits.recv().unwrap();
            drop(writing);
            assert!(message.join().unwrap());
        });
    }
}
