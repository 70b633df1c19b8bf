//! Everything that a process has started, and its end.
//!
//! `tenure run` and its guard are both child subreapers: a process below them whose parent exits becomes their child. So
//! as long as any descendant exists, there is a child, and `waitid` says whether there is one, without `/proc` and without
//! a file descriptor. `/proc` is only read to find out what to kill. An error in that is never taken for an absence: the
//! descendants count as alive, and the next round tries again.

mod breakable;
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

#[cfg(tenure_mutants)]
pub(crate) use breakable::try_mutants;
use proc::{Identity, Proc, Process, below, has_children, is_child};

/// The pause between two rounds: doubled up to the maximum once an end takes long.
const PACE: Duration = Duration::from_millis(1);
const MAX_PACE: Duration = Duration::from_millis(100);
/// After how long a process that does not die is reported.
const LONG: Duration = Duration::from_secs(2);

/// The processes below this one. The lock around it keeps other threads from reaping children, after which the kernel may
/// give a child's id to another process.
struct Descendants {
    proc: Proc,
    /// What ran below this process when it began: none of it was started by tenure.
    spared: BTreeSet<Identity>,
    /// The one child that somebody waits for, if there is one.
    awaited: Option<Pid>,
}

static DESCENDANTS: OnceLock<Mutex<Descendants>> = OnceLock::new();

/// `None` before [`adopt_orphans`] has succeeded: nothing has been started then.
fn descendants() -> Option<MutexGuard<'static, Descendants>> {
    DESCENDANTS.get().map(|descendants| descendants.lock().unwrap_or_else(PoisonError::into_inner))
}

/// Makes this process the parent of all below it whose own parents have gone.
///
/// # Errors
/// When `/proc` cannot be read, or is not that of this PID namespace.
pub(crate) fn adopt_orphans() -> io::Result<()> {
    let proc = Proc::open("/proc")?;
    let own = getpid();
    let name = own.as_raw_pid().to_string();
    let shown = proc.process(own)?.filter(|process| u32::try_from(process.parent) == Ok(parent_id()));
    let itself = fs::read_link("/proc/self").ok().filter(|link| link.to_str() == Some(&name));
    if shown.is_none() || itself.is_none() {
        return Err(io::Error::other(
            "/proc does not show this process's own processes: mount one of this PID namespace there",
        ));
    }
    let mut all = Vec::new();
    for pid in proc.pids()? {
        match proc.process(pid) {
            Ok(process) => all.extend(process),
            // With hidepid=1 other users' processes cannot be read.
            Err(error) if is_child(pid)? => return Err(error),
            Err(_) => {}
        }
    }
    let before = below(own.as_raw_pid(), &all, &BTreeSet::new());
    let spared = before.iter().map(|process| process.identity).collect();
    set_child_subreaper(Some(own))?;
    DESCENDANTS.get_or_init(|| Mutex::new(Descendants { proc, spared, awaited: None }));
    Ok(())
}

/// Starts a child that [`reap_orphans`] leaves alone.
///
/// # Errors
/// When it cannot be started.
pub(crate) fn start_awaited(command: &mut Command) -> io::Result<Child> {
    let mut descendants = descendants().ok_or_else(|| io::Error::other("orphans are not adopted yet"))?;
    let child = command.spawn()?;
    descendants.awaited = i32::try_from(child.id()).ok().and_then(Pid::from_raw);
    Ok(child)
}

/// Waits until that child has ended.
///
/// # Errors
/// When its end cannot be seen.
pub(crate) fn wait_for_awaited(mut child: Child) -> io::Result<ExitStatus> {
    let status = child.wait();
    if let Some(mut descendants) = descendants() {
        descendants.awaited = None;
    }
    status
}

/// Reaps dead children that nobody waits for: those whose parents exited before them. One that is missed, because `/proc`
/// cannot be listed, stays a zombie until the next call.
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
struct Round {
    /// Whether the kernel has confirmed that no descendant is left.
    is_empty: bool,
    /// Why it is unknown which descendants are left.
    unknown: Option<io::Error>,
    /// How the known child ended.
    status: Option<WaitStatus>,
    /// Whether a child was reaped. Its own children are children of this process now.
    reaped: bool,
    /// A process that was killed and is not dead yet, and why it could not be killed.
    survivor: Option<(Pid, Option<Errno>)>,
}

impl Descendants {
    /// Kills every descendant that is found, and reaps dead children.
    fn kill(&self, known: Option<Pid>) -> Round {
        let mut round = Round::default();
        if let Err(error) = self.kill_remaining(known, &mut round) {
            round.unknown = Some(error);
        }
        if breakable::unknown_is_empty() && round.unknown.is_some() {
            round.is_empty = true;
        }
        round
    }

    fn kill_remaining(&self, known: Option<Pid>, round: &mut Round) -> io::Result<()> {
        if !has_children()? {
            round.is_empty = true;
            return Ok(());
        }
        let pids = self.proc.pids()?;
        let mut unspared = false;
        for &pid in &pids {
            if !is_child(pid)? {
                continue;
            }
            match self.is_spared(pid) {
                Ok(true) => {}
                Ok(false) => {
                    unspared = true;
                    self.kill_child(pid, known, round);
                }
                Err(error) => round.unknown = Some(error),
            }
        }
        // Every descendant is below some child. With spared children only, all others are below those and spared too.
        // Without any spared ones, a child that was not listed exists all the same: hidepid=2 hides other users'.
        round.is_empty = !unspared && round.unknown.is_none() && !self.spared.is_empty();
        if unspared {
            self.kill_grandchildren(&pids);
        }
        Ok(())
    }

    /// Whether a child of this process was there before.
    ///
    /// # Errors
    /// When a process with this id was, and the start time that tells them apart cannot be read.
    fn is_spared(&self, pid: Pid) -> io::Result<bool> {
        let number = pid.as_raw_pid();
        if !self.spared.iter().any(|spared| spared.pid == number) {
            return Ok(false);
        }
        match self.proc.process(pid)? {
            Some(process) => Ok(self.spared.contains(&process.identity)),
            None => Err(io::Error::other(format!("/proc does not show process {number}, which is a child"))),
        }
    }

    /// The state in `/proc` is not looked at: a process whose main thread has exited is shown as a zombie (`Z`) while its
    /// other threads run. `waitpid` reaps it only once all its threads are dead.
    fn kill_child(&self, pid: Pid, known: Option<Pid>, round: &mut Round) {
        let killed = kill_process(pid, Signal::KILL);
        match waitpid(Some(pid), WaitOptions::NOHANG) {
            Ok(Some((_, status))) => {
                round.reaped = true;
                if Some(pid) == known {
                    round.status = Some(status);
                }
            }
            outcome => round.survivor = Some((pid, killed.err().or(outcome.err()))),
        }
    }

    /// Kills what is further below in the same round. Errors are ignored: what is missed becomes a child of this process
    /// when its parents are dead.
    fn kill_grandchildren(&self, pids: &[Pid]) {
        let own = getpid().as_raw_pid();
        let all: Vec<Process> =
            pids.iter().filter_map(|pid| self.proc.process(*pid).ok().flatten()).collect();
        for process in below(own, &all, &self.spared).iter().filter(|process| process.parent != own) {
            let _ = self.kill_identified(process.identity);
        }
    }

    /// Kills the process with this id and start time, and no later one with the same id.
    fn kill_identified(&self, identity: Identity) -> io::Result<()> {
        let Some(pid) = Pid::from_raw(identity.pid) else { return Ok(()) };
        let opened = pidfd_open(pid, PidfdFlags::empty())?;
        if self.proc.process(pid)?.is_some_and(|process| process.identity == identity) {
            pidfd_send_signal(&opened, Signal::KILL)?;
        }
        Ok(())
    }
}

/// Kills all descendants of this process: the process group `group` and the child `known` first. Returns once the kernel
/// has confirmed that all are dead, with the status of `known` if it was reaped here.
pub(crate) fn end_all(known: Option<Pid>, group: Option<Pid>) -> Option<WaitStatus> {
    // Errors are ignored: the rounds below find what is left.
    if let Some(group) = group {
        let _ = kill_process_group(group, Signal::KILL);
    }
    if let Some(known) = known {
        let _ = kill_process(known, Signal::KILL);
    }
    let mut status = None;
    let mut pace = PACE;
    let mut report = Report::begin();
    loop {
        // A process that is forked meanwhile is found in the next round.
        let round = descendants()?.kill(known);
        status = round.status.or(status);
        report.update(&round);
        if round.is_empty {
            return status;
        }
        if round.reaped {
            continue;
        }
        thread::sleep(pace);
        if report.is_long() {
            pace = (pace * 2).min(MAX_PACE);
        }
    }
}

/// Reports on the standard error why an end takes long, each reason once.
struct Report {
    began: Instant,
    unknown_reported: bool,
    recovery_reported: bool,
    survivor_reported: bool,
}

impl Report {
    fn begin() -> Self {
        Self {
            began: Instant::now(),
            unknown_reported: false,
            recovery_reported: false,
            survivor_reported: false,
        }
    }

    fn is_long(&self) -> bool {
        self.began.elapsed() > LONG
    }

    fn update(&mut self, round: &Round) {
        match &round.unknown {
            Some(error) if !self.unknown_reported => {
                self.unknown_reported = crate::try_say(&format!(
                    "cannot tell which of the program's processes are left: {error}; trying again, \
                     leadership is kept until then"
                ));
            }
            None if self.unknown_reported && !self.recovery_reported => {
                self.recovery_reported =
                    crate::try_say("can tell again which of the program's processes are left");
            }
            _ => {}
        }
        if round.is_empty || self.survivor_reported || !self.is_long() {
            return;
        }
        self.survivor_reported = match round.survivor {
            Some((pid, why)) => {
                let why = why.map(|error| format!(": {error}")).unwrap_or_default();
                crate::try_say(&format!("process {} does not die{why}", pid.as_raw_pid()))
            }
            None if round.unknown.is_none() => crate::try_say(
                "a process that the program has started does not die, and /proc does not show it (hidepid?)",
            ),
            None => false,
        };
    }
}

/// Whether this process is known not to be alone while it has a child and cannot list `/proc`.
#[cfg(any(test, tenure_mutants))]
fn holds_on_without_a_listing() -> io::Result<bool> {
    let mut child = Command::new("sleep").arg("1000").spawn()?;
    let mut held = true;
    let another = Identity { pid: getpid().as_raw_pid(), start: 0 };
    for spared in [BTreeSet::new(), BTreeSet::from([another])] {
        // Not a directory.
        let proc = Proc::open("/proc/self/stat")?;
        let round = Descendants { proc, spared, awaited: None }.kill(None);
        held &= !round.is_empty && round.unknown.is_some();
    }
    child.kill()?;
    child.wait()?;
    Ok(held)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// G37: in one test, since all tests of a process have the same children.
    #[test]
    fn only_what_is_known_to_be_dead_or_spared_is_not_left() {
        assert!(holds_on_without_a_listing().unwrap());

        let start = || Command::new("sleep").arg("1000").spawn().unwrap();
        let pid = |child: &Child| Pid::from_raw(child.id().cast_signed()).unwrap();
        let begin = |spared| Descendants { proc: Proc::open("/proc").unwrap(), spared, awaited: None };
        let (mut before, after) = (start(), start());
        let spared = begin(BTreeSet::new()).proc.process(pid(&before)).unwrap().unwrap().identity;
        let descendants = begin(BTreeSet::from([spared]));
        let mut statuses = Vec::new();
        loop {
            let round = descendants.kill(Some(pid(&after)));
            assert!(round.unknown.is_none(), "{round:?}");
            statuses.extend(round.status);
            if round.is_empty {
                break;
            }
        }
        assert_eq!(statuses.len(), 1);
        assert_eq!(statuses[0].terminating_signal(), Some(Signal::KILL.as_raw()));
        assert_eq!(before.try_wait().unwrap(), None, "it was there before");

        // The same id, another process.
        let descendants = begin(BTreeSet::from([Identity { start: spared.start + 1, ..spared }]));
        while !descendants.kill(None).is_empty {}
        assert!(!has_children().unwrap());
    }
}
