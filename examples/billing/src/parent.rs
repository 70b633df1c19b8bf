//! Children that end with the process that started them.

use std::{io::Read, process, thread};

/// The exit status of a child whose parent went.
const PARENT_GONE: i32 = 3;

/// Ends this process when the other end of its standard input is closed.
///
/// The kernel closes a pipe however its owner ends, `kill -9` included. A child that is stopped
/// just then cannot read; the kernel wakes it and hangs it up, because it has a process group of
/// its own, which the parent's end orphans.
pub(crate) fn die_with_parent() {
    // A thread, because tokio's stdin would hold up the runtime's shutdown.
    thread::spawn(|| {
        let mut buffer = [0; 64];
        let mut stdin = std::io::stdin().lock();
        while matches!(stdin.read(&mut buffer), Ok(1..)) {}
        process::exit(PARENT_GONE);
    });
}
