//! The system calls, and all `unsafe` code.
//!
//! Lengths need not be multiples of the page size: the kernel rounds them up, and never maps less than a page.

use std::{
    io,
    os::fd::BorrowedFd,
    ptr::{self, NonNull},
    sync::atomic::AtomicU32,
};

use rustix::{
    io::Errno,
    mm::{Advice, MapFlags, ProtFlags, madvise, mmap, mmap_anonymous, munmap},
};

/// The length of both mappings, in bytes.
const LENGTH: usize = 4096;

/// A mapping of a file that cannot be accessed and that forked children do not have.
///
/// Unmapped by [`unmap`](Self::unmap) only: in a forked child the address may belong to another mapping.
#[derive(Debug)]
pub(crate) struct FileMapping {
    /// As a number, so that it can be sent to and shared with other threads: nothing is ever read or written there.
    address: usize,
}

impl FileMapping {
    /// Maps the beginning of `file`. The mapping keeps the open file description, and with it a lock by `flock`.
    pub(crate) fn new(file: BorrowedFd<'_>) -> io::Result<Self> {
        // SAFETY: the address is null, so that the kernel chooses a free range: no existing mapping is replaced.
        // `PROT_NONE` forbids every access, so no reference into it can exist, and a truncated file raises no SIGBUS.
        let address =
            unsafe { mmap(ptr::null_mut(), LENGTH, ProtFlags::empty(), MapFlags::SHARED, file, 0) }?;
        let mapping = Self { address: address.addr() };
        // SAFETY: the range is the mapping that was just made. The advice concerns forked children only, and changes
        // no memory of this process.
        let advised = unsafe { madvise(address, LENGTH, Advice::LinuxDontFork) };
        if let Err(error) = advised {
            mapping.unmap();
            return Err(error.into());
        }
        Ok(mapping)
    }

    /// Unmaps it. Must be called by the process that made it.
    pub(crate) fn unmap(self) {
        // SAFETY: the range is a mapping of this value's own, which is consumed and cannot be copied. The callers do not
        // unmap it in a forked child (`PinnedLock::drop`), so that it is not somebody else's mapping. Nothing can refer to
        // it: see `new`.
        let _ = unsafe { munmap(ptr::without_provenance_mut(self.address), LENGTH) };
    }
}

/// A word that holds one, and that every forked child reads as zero. It is never unmapped.
///
/// # Errors
/// When the kernel cannot do that (before Linux 4.14), or an emulator accepts the advice without following it, as qemu's user
/// mode did.
pub(crate) fn word_wiped_on_fork() -> io::Result<&'static AtomicU32> {
    // SAFETY: the address is null, so that the kernel chooses a free range: no existing mapping is replaced.
    let address = unsafe {
        mmap_anonymous(ptr::null_mut(), LENGTH, ProtFlags::READ | ProtFlags::WRITE, MapFlags::PRIVATE)
    }?;
    // SAFETY: the range is the mapping that was just made, to which nothing refers yet. A forked child reads zeros in
    // it, which is a valid value of an `AtomicU32`.
    let advised = unsafe { madvise(address, LENGTH, Advice::LinuxWipeOnFork) };
    let checked = advised.and_then(|()| refuses_to_wipe_shared_memory());
    if let Err(error) = checked {
        // SAFETY: the range is the mapping that was just made, and nothing refers to it.
        let _ = unsafe { munmap(address, LENGTH) };
        return Err(error.into());
    }
    let word = NonNull::new(address.cast::<AtomicU32>()).ok_or(io::ErrorKind::OutOfMemory)?;
    // SAFETY: the pointer is aligned to a page and points to `LENGTH` bytes that can be read and written, are
    // initialised (an anonymous mapping is filled with zeros), are accessed as this atomic only, and are never unmapped.
    Ok(unsafe { word.as_ref() })
}

/// A kernel that supports the advice refuses it for shared memory, which cannot be wiped for one process: see `madvise(2)`.
fn refuses_to_wipe_shared_memory() -> rustix::io::Result<()> {
    // SAFETY: the address is null, so that the kernel chooses a free range: no existing mapping is replaced.
    let address = unsafe {
        mmap_anonymous(ptr::null_mut(), LENGTH, ProtFlags::READ | ProtFlags::WRITE, MapFlags::SHARED)
    }?;
    // SAFETY: the range is the mapping that was just made, to which nothing refers.
    let advised = unsafe { madvise(address, LENGTH, Advice::LinuxWipeOnFork) };
    // SAFETY: the range is the mapping that was just made, and nothing refers to it.
    let _ = unsafe { munmap(address, LENGTH) };
    match advised {
        Err(Errno::INVAL) => Ok(()),
        _ => Err(Errno::NOTSUP),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Without an emulator, the kernel wipes the word, and no system call is needed.
    #[test]
    fn the_kernel_wipes_the_word() {
        word_wiped_on_fork().unwrap();
    }
}
