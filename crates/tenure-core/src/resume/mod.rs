//! The resume file, in which an elector keeps what its successor needs to end its sessions, and to notice fencing tokens that
//! have gone back ([`Config::with_resume_file`](crate::Config::with_resume_file)).
//!
//! | file | what |
//! |---|---|
//! | `contents` | what the file contains, as text |
//! | `file` | checks, locks, reads and writes it |
//! | `no_file` | takes the place of `file` on systems other than Unix |

#[cfg(unix)]
mod contents;
#[cfg(unix)]
mod file;
#[cfg(not(unix))]
#[path = "no_file.rs"]
mod file;

pub(crate) use file::ResumeFile;

use crate::{ElectionName, FencingToken, spi::SessionRecord};

#[cfg(not(target_os = "linux"))]
const NEEDS_LINUX: &str =
    "it needs Linux: other systems cannot keep a lock for exactly as long as a process lives";

/// What an elector keeps in the file.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Contents {
    /// Those that may live, the oldest first.
    pub(crate) sessions: Vec<SessionRecord>,
    /// The highest fencing tokens seen.
    pub(crate) tokens: Vec<(ElectionName, FencingToken)>,
}

/// What an earlier process has left in the file.
#[derive(Debug)]
#[cfg_attr(not(unix), expect(dead_code, reason = "no file can be opened"))]
pub(crate) enum EarlierContents {
    /// Sessions that were not closed, and tokens.
    Valid(Contents),
    /// The contents are not those of a dead process on this machine. The text says why.
    Ignored(String),
}

/// Whether [`ResumeFile::write`] waits until the file is on the disk.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Durability {
    Synced,
    Unsynced,
}
