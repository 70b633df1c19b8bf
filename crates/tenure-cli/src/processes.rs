//! Everything that a process has started, and its end.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs, io,
    os::unix::process::parent_id,
    process::{Child, Command, ExitStatus},
    sync::{Mutex, OnceLock, PoisonError},
    thread,
    time::{Duration, Instant},
};

use rustix::{
    io::Errno,
    process::{
        Pid, PidfdFlags, Signal, WaitOptions, WaitStatus, getpid, kill_process, kill_process_group,
        pidfd_open, pidfd_send_signal, set_child_subreaper, waitpid,
    },
};

/// How soon it is looked again whether all are gone; later and later.
const PACE: Duration = Duration::from_millis(1);
const MOST_PACE: Duration = Duration::from_millis(100);
/// After how long it is told that something does not die.
const LONG: Duration = Duration::from_secs(2);

/// A process as `/proc` shows it. Its number may be another's later, but not with the same beginning.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Seen {
    pid: i32,
    begun: u64,
    parent: i32,
    zombie: bool,
}

/// All processes that there are.
fn all() -> Vec<Seen> {
    let Ok(entries) = fs::read_dir("/proc") else { return Vec::new() };
    let pids = entries.filter_map(|entry| entry.ok()?.file_name().to_str()?.parse().ok());
    pids.filter_map(one).collect()
}

fn one(pid: i32) -> Option<Seen> {
    parse(pid, &fs::read_to_string(format!("/proc/{pid}/stat")).ok()?)
}

/// `PID (NAME) STATE PARENT …`, where the name may be anything; the beginning is the 22nd field.
pub(crate) fn parse(pid: i32, stat: &str) -> Option<Seen> {
    let (_, rest) = stat.rsplit_once(')')?;
    let fields: Vec<&str> = rest.split_ascii_whitespace().collect();
    let zombie = matches!(*fields.first()?, "Z" | "X");
    Some(Seen { pid, begun: fields.get(19)?.parse().ok()?, parent: fields.get(1)?.parse().ok()?, zombie })
}

/// All processes below `root`, however deep, but for `spared` ones and those below them.
fn below(root: i32, all: &[Seen], spared: &BTreeSet<(i32, u64)>) -> Vec<Seen> {
    let mut children: BTreeMap<i32, Vec<Seen>> = BTreeMap::new();
    for seen in all.iter().filter(|seen| !spared.contains(&(seen.pid, seen.begun))) {
        children.entry(seen.parent).or_default().push(*seen);
    }
    let mut found = children.remove(&root).unwrap_or_default();
    let mut looked_at = 0;
    while let Some(seen) = found.get(looked_at) {
        let below = children.remove(&seen.pid).unwrap_or_default();
        found.extend(below);
        looked_at += 1;
    }
    found
}

/// What this process had below it when it began: none of it was started by tenure.
static SPARED: OnceLock<BTreeSet<(i32, u64)>> = OnceLock::new();

/// Makes this process the parent of all below it whose own parents have gone.
///
/// # Errors
/// When `/proc` does not show the processes that this one knows by their numbers.
pub(crate) fn adopt_orphans() -> io::Result<()> {
    let own = getpid().as_raw_nonzero().get();
    let shown = one(own).filter(|seen| u32::try_from(seen.parent) == Ok(parent_id()));
    let itself = fs::read_link("/proc/self").ok().filter(|name| name.to_str() == Some(&own.to_string()));
    if shown.is_none() || itself.is_none() {
        return Err(io::Error::other(
            "/proc does not show this process's own processes: mount one of this PID namespace there",
        ));
    }
    let before = below(own, &all(), &BTreeSet::new());
    SPARED.get_or_init(|| before.iter().map(|seen| (seen.pid, seen.begun)).collect());
    Ok(set_child_subreaper(Some(getpid()))?)
}

/// The one child that somebody waits for, if there is one.
static KNOWN: Mutex<Option<i32>> = Mutex::new(None);

/// Starts a child that [`bury_orphans`] leaves alone.
pub(crate) fn start_known(command: &mut Command) -> io::Result<Child> {
    let mut known = KNOWN.lock().unwrap_or_else(PoisonError::into_inner);
    let child = command.spawn()?;
    *known = i32::try_from(child.id()).ok();
    Ok(child)
}

/// Waits until that child has ended.
pub(crate) fn wait_known(mut child: Child) -> io::Result<ExitStatus> {
    let status = child.wait();
    *KNOWN.lock().unwrap_or_else(PoisonError::into_inner) = None;
    status
}

/// Buries dead children that nobody waits for.
pub(crate) fn bury_orphans() {
    let known = KNOWN.lock().unwrap_or_else(PoisonError::into_inner);
    reap_orphans(known.and_then(Pid::from_raw));
}

/// Buries dead children of this process that it never knew: those whose parents went before them.
pub(crate) fn reap_orphans(but: Option<Pid>) {
    let own = getpid().as_raw_nonzero().get();
    for seen in all().into_iter().filter(|seen| seen.parent == own && seen.zombie) {
        let pid = Pid::from_raw(seen.pid);
        if pid.is_some() && pid != but {
            let _ = waitpid(pid, WaitOptions::NOHANG);
        }
    }
}

/// Kills the process that was seen, and no other that has its number by now.
fn kill(seen: Seen) -> Result<(), Errno> {
    let pid = Pid::from_raw(seen.pid).ok_or(Errno::SRCH)?;
    let process = pidfd_open(pid, PidfdFlags::empty())?;
    match one(seen.pid) {
        Some(now) if now.begun == seen.begun => pidfd_send_signal(&process, Signal::KILL),
        _ => Err(Errno::SRCH),
    }
}

/// Kills whatever this process has started, `known` first, with its group at one blow and before it is buried.
/// Returns when all of it is dead: the end of `known`, when it is seen here.
pub(crate) fn end_all(known: Option<Pid>, group: Option<Pid>) -> Option<WaitStatus> {
    let own = getpid().as_raw_nonzero().get();
    let spared = SPARED.get_or_init(BTreeSet::new);
    if let Some(group) = group {
        let _ = kill_process_group(group, Signal::KILL);
    }
    if let Some(known) = known {
        let _ = kill_process(known, Signal::KILL);
    }
    let mut status = None;
    let (began, mut pace, mut told) = (Instant::now(), PACE, false);
    loop {
        // Whoever forks meanwhile is found in the next round, when its parent is dead and it is ours.
        let left = below(own, &all(), spared);
        if left.is_empty() {
            return status;
        }
        for seen in left {
            if seen.parent == own && seen.zombie {
                let ended = waitpid(Pid::from_raw(seen.pid), WaitOptions::NOHANG).ok().flatten();
                status = ended.filter(|(pid, _)| Some(*pid) == known).map(|(_, ended)| ended).or(status);
                continue;
            }
            let killed = if seen.zombie { Ok(()) } else { kill(seen) };
            if !told && began.elapsed() > LONG {
                told = true;
                let why = killed.err().map(|error| format!(": {error}")).unwrap_or_default();
                crate::say(&format!("process {} does not die{why}", seen.pid));
            }
        }
        thread::sleep(pace);
        if began.elapsed() > LONG {
            pace = (pace * 2).min(MOST_PACE);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_may_look_like_the_fields_after_it() {
        let rest = "7 7 0 -1 4194304 1 0 0 0 0 0 0 0 20 0 1 0 4711 2600 1";
        let seen = |zombie, parent| Some(Seen { pid: 7, begun: 4711, parent, zombie });
        assert_eq!(parse(7, &format!("7 (sh) S 3 {rest}")), seen(false, 3));
        assert_eq!(parse(7, &format!("7 (a) Z 1 (b) Z 4 {rest}")), seen(true, 4));
        assert_eq!(parse(7, "7 (sh) S 3"), None);
        assert_eq!(parse(7, "7 (sh"), None);
    }

    #[test]
    fn what_lies_below_is_found_however_deep() {
        let seen = |pid, parent| Seen { pid, begun: 0, parent, zombie: false };
        let all = [seen(1, 0), seen(2, 1), seen(3, 2), seen(4, 1), seen(5, 4), seen(6, 3)];
        let pids = |root, spared: &[i32]| {
            let spared = spared.iter().map(|pid| (*pid, 0)).collect();
            below(root, &all, &spared).iter().map(|seen| seen.pid).collect::<Vec<_>>()
        };
        assert_eq!(pids(2, &[]), [3, 6]);
        assert_eq!(pids(1, &[2]), [4, 5], "what was spared, and what it has started");
        assert_eq!(pids(9, &[]), [] as [i32; 0]);
    }

    #[test]
    fn this_process_is_seen_as_it_is() {
        let own = std::process::id().cast_signed();
        let seen = one(own).unwrap();
        assert!(!seen.zombie && u32::try_from(seen.parent) == Ok(parent_id()));
        assert!(seen.begun > 0);
    }
}
