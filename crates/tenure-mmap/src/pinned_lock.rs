//! A file lock that lasts as long as the process.

use std::{io, os::fd::OwnedFd};

use rustix::fs::{FlockOperation, flock};

use crate::ForkMark;

/// An exclusive lock on a file (`flock`) that no descriptor holds.
///
/// A lock proves that its file is open somewhere, not that a process is alive: a `closefrom`, or an unlock in a forked child,
/// frees the lock of a process that goes on. So this lock is held by a memory mapping of the file, and every descriptor is
/// closed:
///
/// - No call that closes or unlocks descriptors reaches it, in this process or in a child.
/// - Forked children do not have the mapping (`MADV_DONTFORK`), so a child that outlives the process does not keep the lock.
/// - The kernel removes the mapping when the process is dead or has called `exec`, and not before. All its threads have ended
///   then.
///
/// Who gets the lock knows therefore that an earlier holder is dead, or has dropped its `PinnedLock`.
///
/// A child that is forked while the lock is being taken may keep it for as long as the child lives. Others are then refused;
/// nobody gets the lock too early. Children that share the memory of their parent (`vfork`, `posix_spawn`) keep it until
/// they call `exec`.
///
/// Not all file systems keep the open file for a mapping of it; overlayfs does not. The caller has to check that the lock
/// is still held: open the file again, and see that another lock is refused.
#[derive(Debug)]
#[must_use = "the lock is freed when this is dropped"]
pub struct PinnedLock {
    /// `None` once this is dropped.
    #[cfg(target_os = "linux")]
    mapping: Option<crate::mappings::FileMapping>,
    mark: ForkMark,
}

impl PinnedLock {
    /// Locks `file`, without waiting, and closes it. The caller must have no duplicate of the descriptor.
    ///
    /// # Errors
    /// - [`WouldBlock`](io::ErrorKind::WouldBlock) when another open file has the lock.
    /// - [`Unsupported`](io::ErrorKind::Unsupported) on systems other than Linux.
    /// - When the file system cannot map or lock the file.
    pub fn acquire(file: OwnedFd) -> io::Result<Self> {
        let mark = ForkMark::of_this_process();
        flock(&file, FlockOperation::NonBlockingLockExclusive)?;
        Self::pin(&file, mark)
    }

    #[cfg(target_os = "linux")]
    fn pin(file: &OwnedFd, mark: ForkMark) -> io::Result<Self> {
        use std::os::fd::AsFd as _;

        Ok(Self { mapping: Some(crate::mappings::FileMapping::new(file.as_fd())?), mark })
    }

    #[cfg(not(target_os = "linux"))]
    fn pin(_: &OwnedFd, _: ForkMark) -> io::Result<Self> {
        Err(io::ErrorKind::Unsupported.into())
    }
}

impl Drop for PinnedLock {
    fn drop(&mut self) {
        // A forked child does not have the mapping, and may have another one at its address.
        if self.mark.is_forked() {
            return;
        }
        #[cfg(target_os = "linux")]
        if let Some(mapping) = self.mapping.take() {
            mapping.unmap();
        }
    }
}

#[cfg(all(test, target_os = "linux"))]
mod tests {
    use std::fs::File;

    use super::*;

    /// Hazard G39: the lock is held without a descriptor, and freed when it is dropped.
    #[test]
    fn a_pinned_lock_needs_no_descriptor() {
        let file = tempfile::NamedTempFile::new().unwrap();
        let open = || OwnedFd::from(File::open(file.path()).unwrap());
        let lock = PinnedLock::acquire(open()).unwrap();
        let refused = PinnedLock::acquire(open()).unwrap_err();
        assert_eq!(refused.kind(), io::ErrorKind::WouldBlock);
        let descriptors = std::fs::read_dir("/proc/self/fd").unwrap().flatten();
        let targets = descriptors.filter_map(|entry| std::fs::read_link(entry.path()).ok());
        assert_eq!(targets.filter(|target| target == file.path()).count(), 1, "only the test's own");
        drop(lock);
        drop(PinnedLock::acquire(open()).unwrap());
    }
}
