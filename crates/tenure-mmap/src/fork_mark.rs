//! Tells a process from its forked children.

use std::{
    process,
    sync::{
        OnceLock,
        atomic::{AtomicU32, Ordering::Relaxed},
    },
};

/// Belongs to the process that made it, and to none of its forked children.
///
/// A child that was made by `fork` has a copy of the memory of its parent, but only the thread that called `fork`. Whatever
/// relies on other threads does not work there.
///
/// On Linux (4.14 or later) this is a word in memory that the kernel wipes in a forked child, so that a check is one relaxed
/// load. Elsewhere, and where an emulator only pretends to wipe it, it compares the process id, which takes a system call. Children that share the memory of their parent
/// until they call `exec` (`vfork`, `posix_spawn`) do not count as forked.
///
/// ```
/// let mark = tenure_mmap::ForkMark::of_this_process();
/// assert!(!mark.is_forked());
/// ```
#[derive(Clone, Copy, Debug)]
pub struct ForkMark {
    /// One in this process and zero in its children; `None` where the kernel cannot wipe it.
    word: Option<&'static AtomicU32>,
    process: u32,
}

impl ForkMark {
    /// The mark of this process, or of the ancestor that has asked for it first.
    ///
    /// So a forked child gets a mark which says that it [is forked](Self::is_forked), if its parent had one at the time.
    pub fn of_this_process() -> Self {
        static MARK: OnceLock<ForkMark> = OnceLock::new();
        *MARK.get_or_init(|| {
            let word = word();
            word.inspect(|word| word.store(1, Relaxed));
            Self { word, process: process::id() }
        })
    }

    /// Whether this is a forked child of the process that the mark belongs to.
    #[inline]
    pub fn is_forked(self) -> bool {
        match self.word {
            Some(word) => word.load(Relaxed) == 0,
            None => process::id() != self.process,
        }
    }
}

#[cfg(target_os = "linux")]
fn word() -> Option<&'static AtomicU32> {
    crate::mappings::word_wiped_on_fork().ok()
}

#[cfg(not(target_os = "linux"))]
fn word() -> Option<&'static AtomicU32> {
    None
}
