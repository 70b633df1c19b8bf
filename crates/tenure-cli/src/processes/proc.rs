//! Reads `/proc`. A process that cannot be read is an error, never an absent process.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs::{self, File},
    io::{self, Read as _},
    mem::MaybeUninit,
    os::fd::OwnedFd,
};

use rustix::{
    fs::{Mode, OFlags, RawDir, SeekFrom, open, openat, seek},
    io::Errno,
    process::{Pid, WaitId, WaitIdOptions, waitid},
};

/// A process as in `/proc`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Process {
    pub(super) identity: ProcessIdentity,
    pub(super) parent: i32,
}

/// Identifies a process. Its id may be given to another process later, but not with the same start time.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct ProcessIdentity {
    pub(super) pid: i32,
    /// In clock ticks since boot.
    pub(super) start: u64,
}

/// The directory `/proc`. It is opened once, so that listing it needs no further file descriptor.
#[derive(Debug)]
pub(super) struct Proc {
    directory: OwnedFd,
}

impl Proc {
    pub(super) fn open(path: &str) -> io::Result<Self> {
        Ok(Self { directory: open(path, OFlags::RDONLY | OFlags::CLOEXEC, Mode::empty())? })
    }

    /// The ids of all processes that exist during the whole call, and of some that start or end during it.
    ///
    /// # Errors
    /// If the listing is incomplete.
    pub(super) fn pids(&self) -> io::Result<Vec<Pid>> {
        seek(&self.directory, SeekFrom::Start(0))?;
        let mut buffer = [MaybeUninit::uninit(); 8192];
        let mut entries = RawDir::new(&self.directory, &mut buffer);
        let mut pids = Vec::new();
        while let Some(entry) = entries.next() {
            let name = entry?.file_name().to_str().ok().and_then(|name| name.parse().ok());
            pids.extend(name.and_then(Pid::from_raw));
        }
        Ok(pids)
    }

    /// Reads `/proc/PID/stat`. Returns `None` if there is no process with this id.
    ///
    /// # Errors
    /// On any error except `ENOENT` and `ESRCH`: the process may exist.
    pub(super) fn process(&self, pid: Pid) -> io::Result<Option<Process>> {
        let pid = pid.as_raw_pid();
        let read = || {
            let flags = OFlags::RDONLY | OFlags::CLOEXEC;
            let mut stat = Vec::new();
            let file = openat(&self.directory, format!("{pid}/stat"), flags, Mode::empty())?;
            File::from(file).read_to_end(&mut stat)?;
            Ok(stat)
        };
        match read() {
            // The kernel truncates the name to 15 bytes, possibly within a character, so it may be invalid UTF-8.
            Ok(stat) => parse_stat(pid, &String::from_utf8_lossy(&stat)).map(Some).ok_or_else(|| {
                io::Error::new(io::ErrorKind::InvalidData, format!("/proc/{pid}/stat has an unknown format"))
            }),
            Err(error) => match Errno::from_io_error(&error) {
                Some(Errno::NOENT | Errno::SRCH) => Ok(None),
                _ => Err(error),
            },
        }
    }
}

/// Parses `PID (NAME) STATE PARENT …`. The name may contain anything, and the start time is the 22nd field.
pub(crate) fn parse_stat(pid: i32, stat: &str) -> Option<Process> {
    let (_, rest) = stat.rsplit_once(')')?;
    let fields: Vec<&str> = rest.split_ascii_whitespace().collect();
    let identity = ProcessIdentity { pid, start: fields.get(19)?.parse().ok()? };
    Some(Process { identity, parent: fields.get(1)?.parse().ok()? })
}

/// The part of a process in the job control of a terminal.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Job {
    pub(crate) parent: i32,
    /// The process group, or 0 if its first process was outside the PID namespace. `rustix::process::getpgrp` panics then.
    pub(crate) group: i32,
    /// The session, or 0 like the group.
    pub(crate) session: i32,
}

/// The job of a process, or `None` if it cannot be read.
pub(crate) fn job_of(pid: i32) -> Option<Job> {
    let stat = fs::read(format!("/proc/{pid}/stat")).ok()?;
    parse_job(&String::from_utf8_lossy(&stat))
}

fn parse_job(stat: &str) -> Option<Job> {
    let (_, rest) = stat.rsplit_once(')')?;
    let mut fields = rest.split_ascii_whitespace().skip(1).map_while(|field| field.parse().ok());
    Some(Job { parent: fields.next()?, group: fields.next()?, session: fields.next()? })
}

/// Whether this process has a child, zombies included. This needs neither `/proc` nor a file descriptor.
pub(super) fn has_children() -> io::Result<bool> {
    is_waitable(|| WaitId::All)
}

/// Whether the process with this id is a child of this one, zombies included.
pub(super) fn is_child(pid: Pid) -> io::Result<bool> {
    is_waitable(|| WaitId::Pid(pid))
}

fn is_waitable(id: impl Fn() -> WaitId<'static>) -> io::Result<bool> {
    loop {
        match waitid(id(), WaitIdOptions::EXITED | WaitIdOptions::NOHANG | WaitIdOptions::NOWAIT) {
            Ok(_) => return Ok(true),
            Err(Errno::CHILD) => return Ok(false),
            Err(Errno::INTR) => {}
            Err(error) => return Err(error.into()),
        }
    }
}

/// All descendants of `root`, except for `excluded` processes and their descendants.
pub(super) fn descendants_of(
    root: i32,
    all: &[Process],
    excluded: &BTreeSet<ProcessIdentity>,
) -> Vec<Process> {
    let mut children: BTreeMap<i32, Vec<Process>> = BTreeMap::new();
    for process in all.iter().filter(|process| !excluded.contains(&process.identity)) {
        children.entry(process.parent).or_default().push(*process);
    }
    let mut found = children.remove(&root).unwrap_or_default();
    let mut next = 0;
    while let Some(process) = found.get(next) {
        let own_children = children.remove(&process.identity.pid).unwrap_or_default();
        found.extend(own_children);
        next += 1;
    }
    found
}

#[cfg(test)]
mod tests {
    use std::os::unix::process::parent_id;

    use rustix::process::getpid;

    use super::*;

    #[test]
    fn a_name_may_look_like_the_fields_after_it() {
        let rest = "7 7 0 -1 4194304 1 0 0 0 0 0 0 0 20 0 1 0 4711 2600 1";
        let process = |parent| Some(Process { identity: ProcessIdentity { pid: 7, start: 4711 }, parent });
        assert_eq!(parse_stat(7, &format!("7 (sh) S 3 {rest}")), process(3));
        assert_eq!(parse_stat(7, &format!("7 (a) Z 1 (b) Z 4 {rest}")), process(4));
        assert_eq!(parse_stat(7, "7 (sh) S 3"), None);
        assert_eq!(parse_stat(7, "7 (sh"), None);
        let job = |parent| Some(Job { parent, group: 7, session: 6 });
        assert_eq!(parse_job("7 (sh) S 3 7 6 0 -1"), job(3));
        assert_eq!(parse_job("7 (a) Z 1 (b) Z 4 7 6 0 -1"), job(4));
        assert_eq!(parse_job("7 (sh) S 3 7"), None);
    }

    #[test]
    fn descendants_are_found_at_any_depth() {
        let process = |pid, parent| Process { identity: ProcessIdentity { pid, start: 0 }, parent };
        let all = [process(1, 0), process(2, 1), process(3, 2), process(4, 1), process(5, 4), process(6, 3)];
        let pids = |root, excluded: &[i32]| {
            let excluded = excluded.iter().map(|pid| ProcessIdentity { pid: *pid, start: 0 }).collect();
            descendants_of(root, &all, &excluded)
                .iter()
                .map(|process| process.identity.pid)
                .collect::<Vec<_>>()
        };
        assert_eq!(pids(2, &[]), [3, 6]);
        assert_eq!(pids(1, &[2]), [4, 5], "without the excluded process and its descendants");
        assert_eq!(pids(9, &[]), [] as [i32; 0]);
    }

    #[test]
    fn this_process_is_read_correctly() {
        let proc = Proc::open("/proc").unwrap();
        let process = proc.process(getpid()).unwrap().unwrap();
        assert_eq!(u32::try_from(process.parent), Ok(parent_id()));
        assert!(process.identity.start > 0);
        // Listing works again on the same descriptor.
        for _ in 0..2 {
            assert!(proc.pids().unwrap().contains(&getpid()));
        }
        assert!(!is_child(getpid()).unwrap());
    }

    /// G37: only `ENOENT` and `ESRCH` mean that there is no such process.
    #[test]
    fn an_error_is_not_an_absence() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().to_str().unwrap();
        let seven = Pid::from_raw(7).unwrap();
        let process = || Proc::open(path).unwrap().process(seven);
        assert_eq!(process().unwrap(), None);
        std::fs::create_dir(directory.path().join("7")).unwrap();
        assert_eq!(process().unwrap(), None);
        let stat = directory.path().join("7/stat");
        for text in ["", "7 (sh", "7 (sh) S 3"] {
            std::fs::write(&stat, text).unwrap();
            assert!(process().is_err(), "{text:?}");
        }
        std::fs::remove_file(&stat).unwrap();
        std::fs::create_dir(&stat).unwrap();
        assert!(process().is_err(), "EISDIR");
        assert!(Proc::open("/proc/self/stat").unwrap().pids().is_err(), "ENOTDIR");
    }
}
