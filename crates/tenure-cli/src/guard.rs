//! The process between `tenure run` and the program: it sees to it that the program, and all that it has
//! started, is dead in time, whatever becomes of `tenure run`.
//!
//! It has one thread, no runtime and no connection to the store. It knows until when the program may go on; when
//! it hears nothing more, because `tenure run` was stopped, say, that is the moment at which it kills. When
//! `tenure run` is gone, it kills at once. Should the guard itself be killed, the kernel kills the program.

use std::{
    io::{self, IsTerminal as _, Write as _},
    os::{
        fd::{AsFd as _, OwnedFd},
        unix::{net::UnixStream, process::CommandExt as _},
    },
    process::{Command, ExitCode, Stdio},
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering::SeqCst},
    },
};

use rustix::{
    event::{PollFd, PollFlags, poll},
    process::{
        Pid, PidfdFlags, Signal, WaitOptions, WaitStatus, getpid, kill_process, kill_process_group,
        pidfd_open, waitpid,
    },
    time::{
        Itimerspec, TimerfdClockId, TimerfdFlags, TimerfdTimerFlags, Timespec, timerfd_create,
        timerfd_settime,
    },
};
use signal_hook::consts::signal::{
    SIGCHLD, SIGHUP, SIGINT, SIGQUIT, SIGTERM, SIGTSTP, SIGTTIN, SIGTTOU, SIGUSR1, SIGUSR2,
};
use tenure::{BootClock, Clock as _};

use crate::{
    args, exit,
    orders::{Ended, Lines, Order, line, receive_files},
    processes::{adopt_orphans, end_all, reap_orphans},
    signals::StopSignal,
};

/// What would end or stop this process, and must not: a terminal sends it to everybody in front of it.
const SURVIVED: [i32; 9] = [SIGHUP, SIGINT, SIGQUIT, SIGTERM, SIGTSTP, SIGTTIN, SIGTTOU, SIGUSR1, SIGUSR2];

/// Guards one program to its end.
pub(crate) fn guard(options: &args::Guard) -> ExitCode {
    match watch_over(options) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            // Nothing may go on unguarded.
            end_all(None, None);
            eprintln!("tenure: cannot guard the program: {error}");
            exit::CANNOT_RUN.into()
        }
    }
}

fn watch_over(options: &args::Guard) -> io::Result<()> {
    let ignored = Arc::new(AtomicBool::new(false));
    for signal in SURVIVED {
        signal_hook::flag::register(signal, Arc::clone(&ignored))?;
    }
    let child_died = Arc::new(AtomicBool::new(false));
    signal_hook::flag::register(SIGCHLD, Arc::clone(&child_died))?;
    // Whatever the program leaves behind becomes a child of ours.
    adopt_orphans()?;

    let mut control = UnixStream::from(io::stdin().as_fd().try_clone_to_owned()?);
    let mut files = receive_files(&control)?.into_iter();
    let input = files.next().ok_or_else(|| io::Error::other("there is no standard input"))?;
    // Kept open: as long as this process lives, so does the leadership.
    let _leadership: Vec<OwnedFd> = files.collect();
    let mut lines = Lines::default();
    // Nothing runs before it is known for how long it may.
    let mut orders = Vec::new();
    while orders.is_empty() {
        orders = lines.read(&mut control)?.ok_or(io::ErrorKind::UnexpectedEof)?;
    }

    let own = getpid().as_raw_nonzero().get();
    let mut command = Command::new("/proc/self/exe");
    command.arg("__exec").arg(format!("--parent={own}")).arg("--").args(&options.command);
    if options.own_group {
        command.process_group(0);
    }
    let child = command.stdin(Stdio::from(input)).spawn()?;
    let pid = i32::try_from(child.id()).ok().and_then(Pid::from_raw);
    let pid = pid.ok_or_else(|| io::Error::other("the program has no process id"))?;
    let mut program = Program {
        pid,
        group: options.own_group.then_some(pid),
        stop_signal: options.stop_signal,
        stop_at: u64::MAX,
        kill_at: u64::MAX,
        told: false,
    };
    orders.into_iter().for_each(|order| program.obey(order));
    let ended = program.end(&mut control, &mut lines, &child_died)?;
    // Whoever is told is gone, perhaps.
    let _ = control.write_all(line(&ended)?.as_bytes());
    Ok(())
}

/// The program, and until when it may go on.
struct Program {
    pid: Pid,
    group: Option<Pid>,
    stop_signal: StopSignal,
    stop_at: u64,
    kill_at: u64,
    /// Whether it was told to stop.
    told: bool,
}

impl Program {
    /// Waits until it has ended, or ends it. Nothing of it is left then.
    fn end(
        &mut self,
        control: &mut UnixStream,
        lines: &mut Lines,
        child_died: &AtomicBool,
    ) -> io::Result<Ended> {
        let over = pidfd_open(self.pid, PidfdFlags::empty())?;
        let timer = timerfd_create(TimerfdClockId::Boottime, TimerfdFlags::CLOEXEC | TimerfdFlags::NONBLOCK)?;
        loop {
            let now = BootClock.now().as_nanos();
            if now >= self.kill_at {
                break;
            }
            if now >= self.stop_at {
                self.tell_to_stop();
            }
            self.set(&timer, now)?;
            if child_died.swap(false, SeqCst) {
                reap_orphans(Some(self.pid));
            }
            let mut watched = [
                PollFd::new(&over, PollFlags::IN),
                PollFd::new(&timer, PollFlags::IN),
                PollFd::new(&*control, PollFlags::IN),
            ];
            match poll(&mut watched, None) {
                Err(rustix::io::Errno::INTR) => continue,
                outcome => outcome?,
            };
            let [over, _, heard] = watched.map(|fd| !fd.revents().is_empty());
            if over {
                break;
            }
            if heard {
                match lines.read(control)? {
                    None => break,
                    Some(orders) => orders.into_iter().for_each(|order| self.obey(order)),
                }
            }
        }
        let status = end_all(self.group, Some(self.pid));
        let status =
            status.or_else(|| waitpid(Some(self.pid), WaitOptions::NOHANG).ok()?.map(|(_, ended)| ended));
        status.map(ended).ok_or_else(|| io::Error::other("the program's end was not seen"))
    }

    fn obey(&mut self, order: Order) {
        match order {
            Order::Window { stop_at, kill_at } => (self.stop_at, self.kill_at) = (stop_at, kill_at),
            Order::Stop => self.tell_to_stop(),
            Order::Signal(number) => {
                if let Some(signal) = StopSignal::from_number(number) {
                    self.send(signal.signal());
                }
            }
        }
    }

    fn tell_to_stop(&mut self) {
        if !std::mem::replace(&mut self.told, true) {
            self.send(self.stop_signal.signal());
        }
    }

    fn send(&self, signal: Signal) {
        // One that has just ended needs it no more.
        let _ = match self.group {
            Some(group) => kill_process_group(group, signal),
            None => kill_process(self.pid, signal),
        };
    }

    /// Rings at the next moment that matters.
    fn set(&self, timer: &OwnedFd, now: u64) -> io::Result<()> {
        let next = if self.told { self.kill_at } else { self.stop_at.min(self.kill_at) };
        // Zero would be never.
        let left = if next == u64::MAX { 0 } else { (next - now).max(1) };
        let at = Timespec {
            tv_sec: i64::try_from(left / 1_000_000_000).unwrap_or(i64::MAX),
            tv_nsec: (left % 1_000_000_000) as _,
        };
        let once = Itimerspec { it_interval: Timespec { tv_sec: 0, tv_nsec: 0 }, it_value: at };
        timerfd_settime(timer, TimerfdTimerFlags::empty(), &once)?;
        Ok(())
    }
}

fn ended(status: WaitStatus) -> Ended {
    match (status.exit_status(), status.terminating_signal()) {
        (Some(code), _) => Ended::Exited(code),
        (None, Some(signal)) => Ended::Signaled(signal),
        (None, None) => Ended::Exited(exit::CANNOT_RUN.into()),
    }
}

/// Whether a terminal feeds the program: then it stays in the group of processes in front of it, or it could not
/// read from it.
pub(crate) fn reads_from_a_terminal() -> bool {
    io::stdin().is_terminal()
}
