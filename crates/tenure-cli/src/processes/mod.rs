//! Kills all descendants of this process, and confirms that they are dead.
//!
//! `tenure run` and its guard are both child subreapers: a descendant whose parent exits becomes their child. So as
//! long as any descendant exists, there is a child, and `waitid` reports whether there is one, without `/proc` and
//! without a file descriptor. `/proc` is only read to find out what to kill. If reading it fails, the descendants
//! count as alive, and the next round tries again.

mod failpoints;
pub(crate) mod proc;

use std::{
    collections::BTreeSet,
    fs, io,
    os::unix::process::parent_id,
    process::{Child, Command, ExitStatus},
    sync::{Mutex, MutexGuard, OnceLock, PoisonError},
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

use crate::messages;
use proc::{Proc, Process, ProcessIdentity, descendants_of, has_children, is_child};

/// The delay between two rounds. It is doubled up to the maximum once killing takes longer than [`REPORT_AFTER`].
const ROUND_DELAY: Duration = Duration::from_millis(1);
const MAX_ROUND_DELAY: Duration = Duration::from_millis(100);
/// After how long a process that does not die is reported.
const REPORT_AFTER: Duration = Duration::from_secs(2);

/// The descendants of this process. The lock around it keeps other threads from reaping children, after which the
/// kernel may give a child's id to another process.
struct Descendants {
    proc: Proc,
    /// The descendants from before [`adopt_orphans`]. Tenure has not started them, so it does not kill them.
    preexisting: BTreeSet<ProcessIdentity>,
    /// The child that [`wait_for_awaited`] reaps, if there is one.
    awaited: Option<Pid>,
}

static DESCENDANTS: OnceLock<Mutex<Descendants>> = OnceLock::new();

/// `None` before [`adopt_orphans`] has succeeded: no child has been started then.
fn descendants() -> Option<MutexGuard<'static, Descendants>> {
    DESCENDANTS.get().map(|descendants| descendants.lock().unwrap_or_else(PoisonError::into_inner))
}

/// Makes this process a child subreaper: the parent of all descendants whose own parents exit.
///
/// # Errors
/// If `/proc` cannot be read, or is not that of this PID namespace.
pub(crate) fn adopt_orphans() -> io::Result<()> {
    let proc = Proc::open("/proc")?;
    let own = getpid();
    let name = own.as_raw_pid().to_string();
    let own_stat = proc.process(own)?.filter(|process| u32::try_from(process.parent) == Ok(parent_id()));
    let own_link = fs::read_link("/proc/self").ok().filter(|link| link.to_str() == Some(&name));
    if own_stat.is_none() || own_link.is_none() {
        return Err(io::Error::other(
            "/proc belongs to another PID namespace: mount the /proc of this PID namespace there",
        ));
    }
    let mut all = Vec::new();
    for pid in proc.pids()? {
        match proc.process(pid) {
            Ok(process) => all.extend(process),
            // With hidepid=1, other users' processes cannot be read.
            Err(error) if is_child(pid)? => return Err(error),
            Err(_) => {}
        }
    }
    let before = descendants_of(own.as_raw_pid(), &all, &BTreeSet::new());
    let preexisting = before.iter().map(|process| process.identity).collect();
    set_child_subreaper(Some(own))?;
    DESCENDANTS.get_or_init(|| Mutex::new(Descendants { proc, preexisting, awaited: None }));
    Ok(())
}

/// Starts a child that [`reap_orphans`] does not reap, for [`wait_for_awaited`].
///
/// # Errors
/// If it cannot be started.
pub(crate) fn spawn_awaited(command: &mut Command) -> io::Result<Child> {
    let mut descendants =
        descendants().ok_or_else(|| io::Error::other("this process is not a child subreaper yet"))?;
    let child = command.spawn()?;
    descendants.awaited = i32::try_from(child.id()).ok().and_then(Pid::from_raw);
    Ok(child)
}

/// Waits until the child has ended, and reaps it.
///
/// # Errors
/// If waiting fails.
pub(crate) fn wait_for_awaited(mut child: Child) -> io::Result<ExitStatus> {
    let status = child.wait();
    if let Some(mut descendants) = descendants() {
        descendants.awaited = None;
    }
    status
}

/// Reaps dead children that no other code waits for: those whose parents exited before them. If `/proc` cannot be
/// listed, they stay zombies until the next call.
pub(crate) fn reap_orphans() {
    let Some(descendants) = descendants() else { return };
    for pid in descendants.proc.pids().unwrap_or_default() {
        if Some(pid) != descendants.awaited {
            let _ = waitpid(Some(pid), WaitOptions::NOHANG);
        }
    }
}

/// The result of one round of killing and reaping.
#[derive(Debug, Default)]
struct KillRound {
    /// Whether the kernel has confirmed that no descendant is left.
    is_empty: bool,
    /// Why it is unknown which descendants are left.
    unknown: Option<io::Error>,
    /// How the main child ended, if this round reaped it.
    status: Option<WaitStatus>,
    /// Whether a child was reaped. Its own children are children of this process now.
    reaped: bool,
    /// How many children beside the main one were reaped that SIGKILL has ended.
    killed: u32,
    /// A process that is not dead yet, and why it could not be killed.
    survivor: Option<(Pid, Option<Errno>)>,
}

impl Descendants {
    /// Kills every descendant that is found, and reaps dead children. `main_child` is the child whose status is wanted.
    fn kill(&self, main_child: Option<Pid>) -> KillRound {
        let mut round = KillRound::default();
        if let Err(error) = self.kill_remaining(main_child, &mut round) {
            round.unknown = Some(error);
        }
        if failpoints::unknown_counts_as_empty() && round.unknown.is_some() {
            round.is_empty = true;
        }
        round
    }

    /// Whether a round finds nobody and meets no error.
    fn is_confirmed_empty(&self) -> bool {
        let round = self.kill(None);
        round.is_empty && round.unknown.is_none()
    }

    fn kill_remaining(&self, main_child: Option<Pid>, round: &mut KillRound) -> io::Result<()> {
        if !has_children()? {
            round.is_empty = true;
            return Ok(());
        }
        let pids = self.proc.pids()?;
        let mut has_new_child = false;
        for &pid in &pids {
            if !is_child(pid)? {
                continue;
            }
            match self.is_preexisting(pid) {
                Ok(true) => {}
                Ok(false) => {
                    has_new_child = true;
                    self.kill_child(pid, main_child, round);
                }
                Err(error) => round.unknown = Some(error),
            }
        }
        // Every descendant is below some child. If all children are preexisting, all others are below those, and not
        // tenure's. Without a preexisting child, there is one that was not listed: hidepid=2 hides other users'
        // processes.
        round.is_empty = !has_new_child && round.unknown.is_none() && !self.preexisting.is_empty();
        if has_new_child {
            self.kill_grandchildren(&pids);
        }
        Ok(())
    }

    /// Whether a child of this process is older than [`adopt_orphans`].
    ///
    /// # Errors
    /// If there was a process with this id before, and the start time that distinguishes them cannot be read.
    fn is_preexisting(&self, pid: Pid) -> io::Result<bool> {
        let number = pid.as_raw_pid();
        if !self.preexisting.iter().any(|identity| identity.pid == number) {
            return Ok(false);
        }
        match self.proc.process(pid)? {
            Some(process) => Ok(self.preexisting.contains(&process.identity)),
            None => Err(io::Error::other(format!("/proc does not show process {number}, which is a child"))),
        }
    }

    /// Kills a child, and reaps it if it is dead.
    ///
    /// This ignores the state in `/proc`: a process whose main thread has exited is shown as a zombie (`Z`) while its
    /// other threads run. `waitpid` reaps it only once all its threads are dead.
    fn kill_child(&self, pid: Pid, main_child: Option<Pid>, round: &mut KillRound) {
        let killed = kill_process(pid, Signal::KILL);
        match waitpid(Some(pid), WaitOptions::NOHANG) {
            Ok(Some((_, status))) => {
                round.reaped = true;
                if Some(pid) == main_child {
                    round.status = Some(status);
                } else if status.terminating_signal() == Some(Signal::KILL.as_raw()) {
                    round.killed += 1;
                }
            }
            outcome => round.survivor = Some((pid, killed.err().or(outcome.err()))),
        }
    }

    /// Kills the descendants below the children in the same round. Errors are ignored: a process that is missed
    /// becomes a child of this process when its parents are dead.
    fn kill_grandchildren(&self, pids: &[Pid]) {
        let own = getpid().as_raw_pid();
        let all: Vec<Process> =
            pids.iter().filter_map(|pid| self.proc.process(*pid).ok().flatten()).collect();
        let descendants = descendants_of(own, &all, &self.preexisting);
        for process in descendants.iter().filter(|process| process.parent != own) {
            let _ = self.kill_identified(process.identity);
        }
    }

    /// Kills the process with this id and start time, and no later one with the same id.
    fn kill_identified(&self, identity: ProcessIdentity) -> io::Result<()> {
        let Some(pid) = Pid::from_raw(identity.pid) else { return Ok(()) };
        let pidfd = pidfd_open(pid, PidfdFlags::empty())?;
        if self.proc.process(pid)?.is_some_and(|process| process.identity == identity) {
            pidfd_send_signal(&pidfd, Signal::KILL)?;
        }
        Ok(())
    }
}

/// What [`kill_all_descendants`] found out.
#[derive(Debug, Default)]
pub(crate) struct Killed {
    /// How `main_child` ended, if it was reaped here.
    pub(crate) status: Option<WaitStatus>,
    /// How many other processes SIGKILL has ended, without those whose own parents reaped them.
    pub(crate) others: u32,
}

/// Kills all descendants of this process: the process group `group` and the child `main_child` first. Returns once the
/// kernel has confirmed that all are dead.
pub(crate) fn kill_all_descendants(main_child: Option<Pid>, group: Option<Pid>) -> Killed {
    // Errors are ignored: the rounds below find what is left.
    if let Some(group) = group {
        let _ = kill_process_group(group, Signal::KILL);
    }
    if let Some(main_child) = main_child {
        let _ = kill_process(main_child, Signal::KILL);
    }
    let mut killed = Killed::default();
    let mut delay = ROUND_DELAY;
    let mut report = KillReport::begin();
    loop {
        // A process that is forked meanwhile is found in the next round.
        let Some(descendants) = descendants() else { return killed };
        let round = descendants.kill(main_child);
        drop(descendants);
        killed.status = round.status.or(killed.status);
        killed.others += round.killed;
        report.update(&round);
        if round.is_empty {
            return killed;
        }
        if round.reaped {
            continue;
        }
        thread::sleep(delay);
        if report.is_overdue() {
            delay = (delay * 2).min(MAX_ROUND_DELAY);
        }
    }
}

/// Whether one further scan, which met no error, finds no descendant of this process.
pub(crate) fn is_nothing_left() -> bool {
    descendants().is_some_and(|descendants| descendants.is_confirmed_empty())
}

/// Reports on the standard error why killing takes long, each reason once.
struct KillReport {
    began: Instant,
    unknown_reported: bool,
    recovery_reported: bool,
    survivor_reported: bool,
}

impl KillReport {
    fn begin() -> Self {
        Self {
            began: Instant::now(),
            unknown_reported: false,
            recovery_reported: false,
            survivor_reported: false,
        }
    }

    fn is_overdue(&self) -> bool {
        self.began.elapsed() > REPORT_AFTER
    }

    fn update(&mut self, round: &KillRound) {
        match &round.unknown {
            Some(error) if !self.unknown_reported => {
                self.unknown_reported = messages::try_print(&format!(
                    "cannot tell which of the program's processes are left: {error}; trying again, \
                     leadership is kept until then"
                ));
            }
            None if self.unknown_reported && !self.recovery_reported => {
                self.recovery_reported =
                    messages::try_print("can tell again which of the program's processes are left");
            }
            _ => {}
        }
        if round.is_empty || self.survivor_reported || !self.is_overdue() {
            return;
        }
        self.survivor_reported = match round.survivor {
            Some((pid, cause)) => {
                let cause = cause.map(|error| format!(": {error}")).unwrap_or_default();
                messages::try_print(&format!("process {} does not die{cause}", pid.as_raw_pid()))
            }
            None if round.unknown.is_none() => messages::try_print(
                "a process that the program has started does not die, and /proc does not show it (hidepid?)",
            ),
            None => false,
        };
    }
}

/// Disables the safety rule and prints, for `cargo xtask mutants`, whether the check fails without it. Returns
/// whether the check passes with the rule in force.
///
/// # Errors
/// If a process cannot be started.
#[cfg(tenure_mutants)]
pub(crate) fn try_mutants() -> io::Result<bool> {
    let whole = keeps_waiting_without_a_listing()?;
    failpoints::disable();
    let detected = !keeps_waiting_without_a_listing()?;
    let survivors: &[&str] = if detected { &[] } else { &["UnknownIsEmpty"] };
    println!("{}", serde_json::json!({ "mutants": 1, "killed": u8::from(detected), "survivors": survivors }));
    Ok(whole)
}

/// Whether a round is not empty while this process has a child and cannot list `/proc`.
#[cfg(any(test, tenure_mutants))]
fn keeps_waiting_without_a_listing() -> io::Result<bool> {
    let mut child = Command::new("sleep").arg("1000").spawn()?;
    let mut keeps_waiting = true;
    let another = ProcessIdentity { pid: getpid().as_raw_pid(), start: 0 };
    for preexisting in [BTreeSet::new(), BTreeSet::from([another])] {
        // Not a directory, so it cannot be listed.
        let proc = Proc::open("/proc/self/stat")?;
        let descendants = Descendants { proc, preexisting, awaited: None };
        let round = descendants.kill(None);
        keeps_waiting &= !round.is_empty && round.unknown.is_some() && !descendants.is_confirmed_empty();
    }
    child.kill()?;
    child.wait()?;
    Ok(keeps_waiting)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// G37, G40: in one test, since all tests of a process have the same children.
    #[test]
    fn only_dead_or_preexisting_processes_count_as_gone() {
        assert!(keeps_waiting_without_a_listing().unwrap());

        let start = || Command::new("sleep").arg("1000").spawn().unwrap();
        let pid = |child: &Child| Pid::from_raw(child.id().cast_signed()).unwrap();
        let descendants =
            |preexisting| Descendants { proc: Proc::open("/proc").unwrap(), preexisting, awaited: None };
        let (mut before, after) = (start(), start());
        let identity = descendants(BTreeSet::new()).proc.process(pid(&before)).unwrap().unwrap().identity;
        let with_preexisting = descendants(BTreeSet::from([identity]));
        let mut statuses = Vec::new();
        loop {
            let round = with_preexisting.kill(Some(pid(&after)));
            assert!(round.unknown.is_none(), "{round:?}");
            statuses.extend(round.status);
            if round.is_empty {
                break;
            }
        }
        assert!(with_preexisting.is_confirmed_empty());
        assert_eq!(statuses.len(), 1);
        assert_eq!(statuses[0].terminating_signal(), Some(Signal::KILL.as_raw()));
        assert_eq!(before.try_wait().unwrap(), None, "the preexisting process must not be killed");

        // The same process id with another start time is another process.
        let with_another =
            descendants(BTreeSet::from([ProcessIdentity { start: identity.start + 1, ..identity }]));
        while !with_another.kill(None).is_empty {}
        assert!(!has_children().unwrap());
    }
}
