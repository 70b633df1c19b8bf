//! Two memory mappings that tenure's engine needs, and the only `unsafe` code of the project.
//!
//! | type | what |
//! |---|---|
//! | [`PinnedLock`] | a file lock that lasts exactly as long as the process; on Unix only |
//! | [`ForkMark`] | tells a process from its forked children |
//!
//! Only the file `mappings.rs` contains `unsafe`: it makes the mappings through [`rustix`], and unmaps them.
#![doc(test(attr(deny(warnings))))]

#[cfg(target_os = "linux")]
#[allow(unsafe_code)]
mod mappings;

mod fork_mark;
#[cfg(unix)]
mod pinned_lock;

pub use fork_mark::ForkMark;
#[cfg(unix)]
pub use pinned_lock::PinnedLock;
