//! Messages for users, on the standard error.

use std::io::{Write as _, stderr};

use rustix::event::{PollFd, PollFlags, Timespec, poll};

/// Prints `tenure: TEXT`. An error in writing is ignored: a closed standard error must not stop a command.
pub(crate) fn print(text: &str) {
    let _ = writeln!(stderr(), "tenure: {text}");
}

/// Prints like [`print`], but only if that does not block on a full pipe. Returns whether it was printed.
pub(crate) fn try_print(text: &str) -> bool {
    let stderr = stderr();
    let mut polled = [PollFd::new(&stderr, PollFlags::OUT)];
    let ready = poll(&mut polled, Some(&Timespec { tv_sec: 0, tv_nsec: 0 }));
    let has_room = ready.is_ok() && polled[0].revents().contains(PollFlags::OUT);
    if has_room {
        print(text);
    }
    has_room
}
