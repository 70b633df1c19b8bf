//! The resume file, in which an elector keeps what its successor needs to end its sessions
//! ([`Config::with_resume_file`](crate::Config::with_resume_file)).
//!
//! | file | what |
//! |---|---|
//! | `contents` | what the file contains, as text |
//! | `file` | checks, locks, reads and writes it |

mod contents;
mod file;

pub(crate) use file::{Durability, EarlierSessions, ResumeFile};
