//! Everything that a process has started, and its end.

use std::{
    collections::BTreeMap,
    fs, io,
    process::{Child, Command, ExitStatus},
    sync::{Mutex, PoisonError},
    thread,
    time::Duration,
};

use rustix::{
    io::Errno,
    process::{
        Pid, Signal, WaitOptions, WaitStatus, getpid, kill_process, kill_process_group, set_child_subreaper,
        wait, waitpid,
    },
};

/// How soon it is looked again whether all are gone.
const PACE: Duration = Duration::from_millis(1);

/// A process as `/proc` shows it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Seen {
    pid: i32,
    parent: i32,
    zombie: bool,
}

/// All processes that there are.
fn all() -> Vec<Seen> {
    let Ok(entries) = fs::read_dir("/proc") else { return Vec::new() };
    let pids = entries.filter_map(|entry| entry.ok()?.file_name().to_str()?.parse::<i32>().ok());
    pids.filter_map(|pid| parse(pid, &fs::read_to_string(format!("/proc/{pid}/stat")).ok()?)).collect()
}

/// `PID (NAME) STATE PARENT …`, where the name may be anything.
fn parse(pid: i32, stat: &str) -> Option<Seen> {
    let (_, rest) = stat.rsplit_once(')')?;
    let mut fields = rest.split_ascii_whitespace();
    let zombie = fields.next()? == "Z";
    Some(Seen { pid, parent: fields.next()?.parse().ok()?, zombie })
}

/// All processes below `root`, however deep.
fn below(root: i32, all: &[Seen]) -> Vec<Seen> {
    let mut children: BTreeMap<i32, Vec<Seen>> = BTreeMap::new();
    for seen in all {
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

/// Makes this process the parent of all below it whose own parents have gone.
pub(crate) fn adopt_orphans() -> io::Result<()> {
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

/// Buries dead children of a process that has the number 1, and with it everybody's orphans.
pub(crate) fn bury_orphans() {
    if getpid().is_init() {
        let known = KNOWN.lock().unwrap_or_else(PoisonError::into_inner);
        reap_orphans(known.and_then(Pid::from_raw));
    }
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

/// Kills whatever this process has started, `group` at one blow and before its leader is buried, and returns
/// when all of it is dead: the end of `known`, when it is seen here.
pub(crate) fn end_all(group: Option<Pid>, known: Option<Pid>) -> Option<WaitStatus> {
    if let Some(group) = group {
        let _ = kill_process_group(group, Signal::KILL);
    }
    let mut status = None;
    loop {
        // Whoever forks meanwhile is found in the next round, when its parent is dead and it is ours.
        for seen in below(getpid().as_raw_nonzero().get(), &all()) {
            if let Some(pid) = Pid::from_raw(seen.pid) {
                let _ = kill_process(pid, Signal::KILL);
            }
        }
        loop {
            match wait(WaitOptions::NOHANG) {
                Ok(Some((pid, ended))) if Some(pid) == known => status = Some(ended),
                Ok(Some(_)) | Err(Errno::INTR) => {}
                Ok(None) => break,
                Err(_) => return status,
            }
        }
        thread::sleep(PACE);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_may_look_like_the_fields_after_it() {
        let seen = |state, parent| Some(Seen { pid: 7, parent, zombie: state });
        assert_eq!(parse(7, "7 (sh) S 3 7 7 0"), seen(false, 3));
        assert_eq!(parse(7, "7 (a) Z 1 (b) Z 4 7 7 0"), seen(true, 4));
        assert_eq!(parse(7, "7 (sh"), None);
    }

    #[test]
    fn what_lies_below_is_found_however_deep() {
        let seen = |pid, parent| Seen { pid, parent, zombie: false };
        let all = [seen(1, 0), seen(2, 1), seen(3, 2), seen(4, 1), seen(5, 4), seen(6, 3)];
        let pids = |root| below(root, &all).iter().map(|seen| seen.pid).collect::<Vec<_>>();
        assert_eq!(pids(2), [3, 6]);
        assert_eq!(pids(4), [5]);
        assert_eq!(pids(9), [] as [i32; 0]);
    }
}
