//! Ends a child process when its parent ends.

use std::{io::Read, process, thread};

/// The exit status of a child whose parent has ended.
const PARENT_EXITED: i32 = 3;

/// Ends this process when the other end of its standard input, which the parent holds, is closed.
///
/// The kernel closes a pipe however its owner ends, also with `kill -9`. A stopped child cannot read, but it has its
/// own process group, which becomes orphaned when the parent ends: the kernel then sends it SIGHUP and SIGCONT.
pub(crate) fn exit_with_parent() {
    // On a thread of its own, because a pending read of tokio's stdin delays the runtime's shutdown.
    thread::spawn(|| {
        let mut buffer = [0; 64];
        let mut stdin = std::io::stdin().lock();
        while matches!(stdin.read(&mut buffer), Ok(1..)) {}
        process::exit(PARENT_EXITED);
    });
}
