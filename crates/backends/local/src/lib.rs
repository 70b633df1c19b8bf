//! Leader election among the processes of one machine, with file locks in a directory and no server.
//!
//! The only setting is a directory. Every candidate has a file that its process locks (`flock`). The kernel releases
//! the lock when, and only when, that process ends, for whatever reason. The candidate whose locked file has the
//! lowest number leads. A waiting process learns from the kernel (inotify) that another candidate has left, and takes
//! over within milliseconds, also after `kill -9`.
//!
//! # The directory
//!
//! | path | content |
//! |---|---|
//! | `DIR/tokens/ELECTION` | the highest token given out, in two copies with checksums; a candidate locks this file while it enters |
//! | `DIR/elections/ELECTION/entry-NUMBER` | the entry of a candidate, which is alive as long as the file is locked |
//! | `DIR/elections/ELECTION/.new-NUMBER` | an entry that is being created |
//! | `DIR/elections/ELECTION/.resign-NUMBER` | a request that the candidate of that entry resign |
//!
//! Other files in the directory are ignored and never deleted.
//!
//! # Guarantees
//!
//! - At most one candidate leads at a time. No clock and no timeout is involved: a process that is stopped or starved
//!   keeps its leadership, and no other candidate leads.
//! - The fencing token is the entry's number. It is on disk (`fsync`) before the entry becomes visible, and no number
//!   is given out twice, whichever process crashes at whichever point.
//! - Candidates lead in the order in which they entered.
//! - If an operator deletes an entry, or the whole directory of an election, the leadership ends at once. Tokens
//!   continue from their last value, because they are stored in another directory.
//!
//! # Assumptions
//!
//! - All candidates run on one kernel, and the directory is on a local file system. Containers of one machine that
//!   share the directory meet this. NFS, SMB and Ceph are refused: their locks end by a timeout, not with the process.
//! - The directory and its parents are not moved while they are used. A move is noticed only after some seconds.
//! - FUSE file systems are not refused. Do not use one that several machines share.
//! - Entries are not deleted while their candidates lead. As with every store, the work of a leader whose entry was
//!   deleted can continue until the leader notices.
//!
//! # Limitations
//!
//! - If the counter file is missing or damaged, numbers continue from the wall clock in microseconds. This happens
//!   when the whole directory was deleted, or was on a `tmpfs` that a reboot emptied. The new numbers are higher than
//!   all earlier ones unless the wall clock was set back. This is also why the first token of an election is a large
//!   number.
//! - A process that received a duplicate of the lock's file descriptor ([`lock_file`]) also keeps the
//!   leadership until it ends.
//! - A child process created by `fork` without `exec` shares the locks of its parent. If the parent is killed, its
//!   entry lives until the child ends too.
//! - Every user who can write to the directory can enter its elections. A missing directory is created for its owner
//!   only (mode 0700). An existing directory keeps its owner and mode. A directory that every user can write to causes
//!   a warning; whether the directory has the right owner is not checked.
//! - The runtime needs tokio's I/O and time drivers (`enable_all`). If inotify is not available, waiting candidates
//!   check every 10 ms instead.
#![doc(test(attr(deny(warnings))))]

#[cfg(not(unix))]
compile_error!("tenure-local needs the file locks of a Unix kernel");

mod backend;
mod blocking_pool;
mod candidates;
mod config;
mod entry;
mod error;
mod filesystem;
mod layout;
mod lock_file;
mod queue;
mod recheck;
mod record;
mod session;
mod session_entries;
mod store;
#[cfg(fuzzing)]
#[doc(hidden)]
pub mod test_support;
mod token_counter;
mod watch;

pub use backend::LocalBackend;
pub use config::LocalConfig;
pub use lock_file::lock_file;
