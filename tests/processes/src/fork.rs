//! The calls that test processes make and that are unsafe.

use std::{
    io,
    panic::{AssertUnwindSafe, catch_unwind},
};

use nix::{
    libc,
    sys::wait::{WaitStatus, waitpid},
    unistd::{ForkResult, Pid, fork as fork_process},
};

/// A child process that has a copy of this process's memory, and of its threads only the one that called [`fork`].
#[derive(Clone, Copy, Debug)]
pub struct ForkedChild(Pid);

/// Forks. The child runs `child`, and ends with the exit code that it returns, or with 101 when it panics.
///
/// # Errors
/// When the system refuses a process.
pub fn fork(child: impl FnOnce() -> u8) -> io::Result<ForkedChild> {
    // SAFETY: the child of a process with several threads may call async-signal-safe functions only, because another thread
    // may hold a lock. What the tests call there is meant to work all the same: that is what they check. A violation hangs.
    let forked = unsafe { fork_process() }?;
    match forked {
        ForkResult::Parent { child } => Ok(ForkedChild(child)),
        ForkResult::Child => {
            let code = catch_unwind(AssertUnwindSafe(child)).unwrap_or(101);
            // SAFETY: it ends this process. Nothing of it is needed any more, and no destructor may run, as they belong to
            // the parent.
            unsafe { libc::_exit(i32::from(code)) }
        }
    }
}

impl ForkedChild {
    /// The process id.
    pub fn id(self) -> i32 {
        self.0.as_raw()
    }

    /// Waits until it has ended; its exit code.
    ///
    /// # Errors
    /// When a signal ended it.
    pub fn wait(self) -> io::Result<i32> {
        match waitpid(self.0, None)? {
            WaitStatus::Exited(_, code) => Ok(code),
            other => Err(io::Error::other(format!("{other:?}"))),
        }
    }
}

/// Closes every descriptor except the standard ones, as `closefrom` does.
///
/// # Errors
/// When the kernel is older than Linux 5.9.
pub fn close_all_files() -> io::Result<()> {
    // SAFETY: files that others own are closed, which is the point of the test. The process uses none of them afterwards
    // except the standard ones.
    let closed = unsafe { libc::close_range(3, libc::c_uint::MAX, 0) };
    if closed == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}
