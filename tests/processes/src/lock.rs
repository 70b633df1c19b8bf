//! A process that locks a file, and does what frees a lock of a process that is alive.

use std::{
    fs::File,
    os::fd::{AsFd as _, BorrowedFd, OwnedFd},
    path::Path,
    thread,
};

use anyhow::{Result, bail};
use rustix::fs::{FlockOperation, flock};
use tenure_mmap::PinnedLock;
use tenure_processes::{close_all_files, fork};

/// How the file is locked, until this is dropped.
enum Lock {
    Pinned(#[expect(dead_code, reason = "held until it is dropped")] PinnedLock),
    /// By an open file, as usual.
    Plain(File),
}

impl Lock {
    fn new(kind: &str, path: &Path) -> Result<Self> {
        let file = open(path)?;
        Ok(match kind {
            "pinned" => Self::Pinned(PinnedLock::acquire(OwnedFd::from(file))?),
            "plain" => {
                flock(&file, FlockOperation::NonBlockingLockExclusive)?;
                Self::Plain(file)
            }
            _ => bail!("{kind} is neither pinned nor plain"),
        })
    }

    fn descriptor(&self) -> Option<BorrowedFd<'_>> {
        match self {
            Self::Pinned(_) => None,
            Self::Plain(file) => Some(file.as_fd()),
        }
    }
}

/// Locks `path`, pinned or plainly, and prints whether it is held after a forked child has unlocked what it has, and
/// after all files were closed. Then it forks a child that lives on, prints its id, and waits to be killed.
pub(crate) fn hold(kind: &str, path: &Path) -> Result<()> {
    let lock = Lock::new(kind, path)?;
    println!("locked: {}", is_held(path)?);
    let child = fork(|| {
        if let Some(descriptor) = lock.descriptor() {
            let _ = flock(descriptor, FlockOperation::Unlock);
        }
        0
    })?;
    child.wait()?;
    println!("after a child has unlocked it: {}", is_held(path)?);
    if let Some(descriptor) = lock.descriptor() {
        flock(descriptor, FlockOperation::NonBlockingLockExclusive)?;
    }
    close_all_files()?;
    println!("after all files were closed: {}", is_held(path)?);
    let child = fork(|| {
        loop {
            thread::park();
        }
    })?;
    println!("child {}", child.id());
    loop {
        thread::park();
    }
}

fn open(path: &Path) -> Result<File> {
    Ok(File::options().read(true).write(true).create(true).truncate(false).open(path)?)
}

/// Whether another open file has the lock.
fn is_held(path: &Path) -> Result<bool> {
    let file = open(path)?;
    Ok(flock(&file, FlockOperation::NonBlockingLockExclusive) == Err(rustix::io::Errno::WOULDBLOCK))
}
