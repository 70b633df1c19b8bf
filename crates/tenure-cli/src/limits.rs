//! The limits on open files and processes (`ulimit`).

use std::{io, sync::mpsc, thread};

use anyhow::{Result, anyhow, ensure};
use rustix::{
    io::Errno,
    process::{Resource, getrlimit},
};

/// How many open files every command needs at least. With fewer, requests to the store would fail again and again.
const MIN_OPEN_FILES: u64 = 64;

/// How many threads and processes the commands need beside the first thread: signals, engine, name resolution, the
/// clients of the stores, the guard, the program.
const MIN_THREADS: usize = 12;

/// What to look at when the system refuses a file, a thread or a process.
const HINT: &str = "see the limits on processes (ulimit -u) and open files (ulimit -n)";

/// Checks that enough files can be opened and enough threads started. Libraries panic, or try for ever, if they cannot.
///
/// # Errors
/// If a limit is too low. It is not raised, because the program would inherit that.
pub(crate) fn check() -> Result<()> {
    if let Some(limit) = getrlimit(Resource::Nofile).current {
        ensure!(
            limit >= MIN_OPEN_FILES,
            "the limit on open files is {limit} (ulimit -n): tenure needs at least {MIN_OPEN_FILES}"
        );
    }
    startable_threads().map_err(|(count, error)| {
        anyhow!(
            "can start only {count} threads, and tenure needs {MIN_THREADS}: {error}; see the limits on processes \
             (ulimit -u, or pids of the cgroup) and memory (ulimit -v)"
        )
    })
}

/// Starts [`MIN_THREADS`] beside this one, for a moment.
///
/// # Errors
/// How many could be started, and why no more.
fn startable_threads() -> Result<(), (usize, io::Error)> {
    // Each thread runs until its sender is dropped.
    let mut senders = Vec::new();
    let mut threads = Vec::new();
    let mut outcome = Ok(());
    while threads.len() < MIN_THREADS && outcome.is_ok() {
        let (sender, end) = mpsc::channel::<()>();
        senders.push(sender);
        match thread::Builder::new().spawn(move || end.recv()) {
            Ok(thread) => threads.push(thread),
            Err(error) => outcome = Err((threads.len(), error)),
        }
    }
    drop(senders);
    for thread in threads {
        let _ = thread.join();
    }
    outcome
}

/// What to look at, if a limit is the reason for this error.
pub(crate) fn hint(error: &io::Error) -> Option<&'static str> {
    let limits = [Errno::AGAIN, Errno::MFILE, Errno::NFILE];
    Errno::from_io_error(error).is_some_and(|errno| limits.contains(&errno)).then_some(HINT)
}
