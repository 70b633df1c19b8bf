//! A resume file: its checks, its lock, and access to it.

use std::{
    fs::File,
    io::{self, Read as _},
    os::{fd::OwnedFd, unix::fs::FileExt as _},
    path::{Path, PathBuf},
    thread,
    time::{Duration, Instant},
};

use rustix::{
    fs::{CWD, FileType, FlockOperation, Mode, OFlags, Stat, flock, fstat, openat},
    process::geteuid,
};
use tenure_mmap::PinnedLock;

use super::{
    Contents, Durability, EarlierContents,
    contents::{self, Origin},
};
use crate::failpoints::{SafetyRule, is_disabled};

/// The size of a file that is read, in bytes.
const MAX_BYTES: u64 = 256 * 1024;
/// How many sessions are kept. There are more only if as many processes could not end those of the one before.
const MAX_SESSIONS: usize = 64;
/// How long a lock is waited for. The kernel frees that of a dead process once it has removed its memory; a child that is
/// between `fork` and `exec`, or an elector that closes, can hold it for a moment as well.
const LOCK_WAIT: Duration = Duration::from_secs(2);
/// The pause between two attempts to get the lock.
const LOCK_PAUSE: Duration = Duration::from_millis(50);

const IN_USE: &str = "another live process, or another elector of this one, uses it; give each elector a resume file of its \
     own, and drop the handles of an elector before you make the next one";

/// A resume file whose lock this process holds.
#[derive(Debug)]
pub(crate) struct ResumeFile {
    path: PathBuf,
    origin: Origin,
    /// Kept until this is dropped. `None` only in tests that disable [`SafetyRule::LockResumeFile`].
    _lock: Option<PinnedLock>,
}

impl ResumeFile {
    /// Locks the file at `path`, which is created if it does not exist, and reads what an earlier process has left there.
    /// Blocks the thread for up to two seconds while another one has the lock.
    ///
    /// # Errors
    /// Why the file cannot be used, as a text.
    pub(crate) fn open(path: &Path) -> Result<(Self, EarlierContents), String> {
        let path = std::path::absolute(path).map_err(|error| error.to_string())?;
        let give_up = Instant::now() + LOCK_WAIT;
        let (origin, lock) = loop {
            let file = open(&path, OFlags::CREATE).map_err(|error| match error {
                rustix::io::Errno::LOOP => "it is a symbolic link; name the file itself".to_owned(),
                error => error.to_string(),
            })?;
            let origin = origin(boot_id()?, &check(&file)?);
            match PinnedLock::acquire(file) {
                Ok(lock) => break (origin, Some(lock)),
                Err(error) if error.kind() != io::ErrorKind::WouldBlock => {
                    return Err(format!("it cannot be locked: {error}"));
                }
                Err(_) if is_disabled(SafetyRule::LockResumeFile) => break (origin, None),
                Err(_) if Instant::now() < give_up => thread::sleep(LOCK_PAUSE),
                Err(_) => return Err(IN_USE.to_owned()),
            }
        };
        let this = Self { path, origin, _lock: lock };
        let file = this.reopen().map_err(|error| error.to_string())?;
        if this.is_locked_by_nobody(&file) {
            return Err("its file system does not keep the lock; use a directory on a disk of this machine"
                .to_owned());
        }
        let earlier = this.read(file);
        Ok((this, earlier))
    }

    /// Whether the lock can be taken once more, through `file`.
    fn is_locked_by_nobody(&self, file: &File) -> bool {
        flock(file, FlockOperation::NonBlockingLockExclusive) != Err(rustix::io::Errno::WOULDBLOCK)
    }

    fn read(&self, file: File) -> EarlierContents {
        let mut text = String::new();
        if let Err(error) = file.take(MAX_BYTES).read_to_string(&mut text) {
            return EarlierContents::Ignored(format!("it cannot be read: {error}"));
        }
        if text.is_empty() {
            return EarlierContents::Valid(Contents::default());
        }
        let Some((origin, contents)) = contents::decode(&text) else {
            return EarlierContents::Ignored(
                "it was not written as a whole, or by another version".to_owned(),
            );
        };
        if origin != self.origin && !is_disabled(SafetyRule::ResumeInPlace) {
            return EarlierContents::Ignored(match origin.boot == self.origin.boot {
                false => "it was written before this machine was started, or on another machine".to_owned(),
                true => "it is a copy of another file".to_owned(),
            });
        }
        EarlierContents::Valid(contents)
    }

    /// Replaces the contents of the file. Writes in place: the file keeps its inode, and with it the lock.
    ///
    /// # Errors
    /// When the file is no longer the one that is locked, or cannot be written.
    pub(crate) fn write(&self, mut contents: Contents, durability: Durability) -> io::Result<()> {
        let surplus = contents.sessions.len().saturating_sub(MAX_SESSIONS);
        contents.sessions.drain(..surplus);
        let file = self.reopen()?;
        let write = |contents: &Contents| {
            let text = contents::encode(&self.origin, contents);
            file.write_all_at(text.as_bytes(), 0)?;
            file.set_len(text.len() as u64)
        };
        if let Err(error) = write(&contents) {
            // A full disk cuts the tokens off. The sessions alone fit into the block that the file has.
            contents.tokens.clear();
            write(&contents)?;
            return Err(error);
        }
        match durability {
            Durability::Synced => file.sync_all(),
            Durability::Unsynced => Ok(()),
        }
    }

    /// The locked file. A descriptor of its own can be closed: the lock does not depend on it.
    fn reopen(&self) -> io::Result<File> {
        let file = open(&self.path, OFlags::empty())?;
        if origin(self.origin.boot.clone(), &fstat(&file)?) != self.origin {
            return Err(io::Error::other("the file was replaced by another one"));
        }
        Ok(file.into())
    }

    pub(crate) fn path(&self) -> &Path {
        &self.path
    }
}

fn origin(boot: String, stat: &Stat) -> Origin {
    Origin { boot, device: stat.st_dev.to_string(), inode: stat.st_ino.to_string() }
}

fn open(path: &Path, flags: OFlags) -> rustix::io::Result<OwnedFd> {
    // Without O_NONBLOCK, a device could wait here; no regular file does.
    let flags = flags | OFlags::RDWR | OFlags::NOFOLLOW | OFlags::CLOEXEC | OFlags::NONBLOCK;
    openat(CWD, path, flags, Mode::RUSR | Mode::WUSR)
}

/// Refuses a file that others can change or read, or whose lock is not the kernel's own.
fn check(file: &OwnedFd) -> Result<Stat, String> {
    let stat = fstat(file).map_err(|error| error.to_string())?;
    if FileType::from_raw_mode(stat.st_mode) != FileType::RegularFile {
        return Err("it is not a regular file".to_owned());
    }
    if stat.st_uid != geteuid().as_raw() {
        return Err(format!("it belongs to another user ({})", stat.st_uid));
    }
    let mode = stat.st_mode & 0o7777;
    if mode != 0o600 {
        return Err(format!("its mode is {mode:04o}: only its owner may have access; use chmod 600"));
    }
    check_file_system(file)?;
    Ok(stat)
}

/// Refuses file systems that are not known to keep a lock for a mapping of the file, on this machine only.
///
/// On overlayfs the mapping refers to a file of the layer below, which has not the lock. A network file system's lock does not
/// end with the process.
#[cfg(target_os = "linux")]
fn check_file_system(file: &OwnedFd) -> Result<(), String> {
    // The numbers are from Linux's include/uapi/linux/magic.h.
    const EXT: u32 = 0xef53;
    const XFS: u32 = 0x5846_5342;
    const BTRFS: u32 = 0x9123_683e;
    const TMPFS: u32 = 0x0102_1994;
    match rustix::fs::fstatfs(file).map_err(|error| error.to_string())?.f_type as u32 {
        EXT | XFS | BTRFS | TMPFS => Ok(()),
        other => Err(format!(
            "it is on a file system of type {other:#x}, whose locks are not known to last as long as the process; use ext4, \
             XFS, Btrfs or tmpfs (in a container: a volume)"
        )),
    }
}

#[cfg(not(target_os = "linux"))]
fn check_file_system(_: &OwnedFd) -> Result<(), String> {
    Err(super::NEEDS_LINUX.to_owned())
}

/// A random number that the kernel chooses when the machine starts.
fn boot_id() -> Result<String, String> {
    let id = std::fs::read_to_string("/proc/sys/kernel/random/boot_id");
    id.map(|id| id.trim().to_owned()).map_err(|error| format!("the boot id cannot be read: {error}"))
}

#[cfg(all(test, target_os = "linux"))]
#[path = "file_tests.rs"]
mod tests;
