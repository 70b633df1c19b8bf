//! Leader election among the processes of one machine: a directory, the kernel's
//! file locks, and a counter that survives crashes.
//!
//! There is no server and nothing to configure but a directory. Every candidate
//! has a file, locked (`flock`) by the process that made it; the kernel lets go of
//! the lock when, and only when, that process ends, however it ends. The locked
//! file with the lowest number leads. A waiting process learns of a departure from
//! the kernel (inotify) and takes over within milliseconds, after `kill -9` too.
//!
//! # The directory
//!
//! | path | what |
//! |---|---|
//! | `DIR/tokens/ELECTION` | the highest token given out, in two checksummed copies; its lock serialises entering |
//! | `DIR/elections/ELECTION/entry-NUMBER` | a candidate, alive as long as the file is locked |
//! | `DIR/elections/ELECTION/.new-NUMBER` | an entry being made |
//! | `DIR/elections/ELECTION/.resign-NUMBER` | a wish that the candidate of that entry may resign |
//!
//! Other files in it are ignored and never deleted.
//!
//! # Guarantees
//!
//! - One leader at a time, with no clock and no time-out involved: a process that
//!   is stopped or starved still leads, and nobody else does.
//! - The fencing token is the entry's number. It is on disk (`fsync`) before the
//!   entry can be seen, and is never given twice, whatever crashes when.
//! - Candidates lead in the order in which they entered.
//! - Deleting an entry, or a whole election's directory, by hand ends the leadership
//!   at once; tokens go on from where they were, for they are kept elsewhere.
//!
//! # Assumptions
//!
//! - All candidates run on one kernel (containers that share the directory do), with
//!   the directory on a local file system. NFS, SMB and Ceph are refused: their locks
//!   end with a time-out of their own, not with the process.
//! - Nobody moves the directory, or one above it, while it is used: that is noticed only within
//!   some seconds. FUSE file systems are not refused; one that is shared between machines must not
//!   be used.
//! - Nobody deletes entries while they lead: as everywhere, the work of a leader
//!   whose entry was deleted may go on for the moment it takes to notice.
//!
//! # Caveats
//!
//! - When the counter itself is missing or damaged (the whole directory was deleted,
//!   or lay on a `tmpfs` that a reboot emptied), numbers go on from the wall clock in
//!   microseconds, which is more than any number before unless that clock was set
//!   back. This is why the first token of an election is a large number.
//! - A process that was given a duplicate of the lock's file (`LeadershipHandle::lock_file`) keeps the leadership
//!   until it has ended, too.
//! - A child process made by `fork` without `exec` shares its parent's locks: should
//!   the parent be killed, the entry lives until the child has ended as well.
//! - Whoever may write to the directory may stand in its elections. It is made for
//!   its owner alone (mode 0700); a directory that exists keeps its owner and mode. One that everybody may
//!   write to is warned of; that it belongs to whom it should is for whoever made it to see.
//! - The runtime needs tokio's I/O and time drivers (`enable_all`). Where inotify is
//!   missing or exhausted, waiting candidates look every 10 ms instead.
#![doc(test(attr(deny(warnings))))]

#[cfg(not(unix))]
compile_error!("tenure-local needs the file locks of a Unix kernel");

mod backend;
mod config;
mod counter;
mod entry;
mod fault;
mod filesystem;
#[cfg(fuzzing)]
#[doc(hidden)]
pub mod fuzzing;
mod jobs;
mod layout;
mod pace;
mod queue;
mod record;
mod session;
mod view;
mod watch;

pub use backend::LocalBackend;
pub use config::LocalConfig;
