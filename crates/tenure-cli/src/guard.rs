//! The process between `tenure run` and the program: it sees to it that the program, and all that it has
//! started, is dead in time, whatever becomes of `tenure run`.
//!
//! It has one thread, no runtime and no connection to the store. It knows until when the program may go on; when
//! it hears nothing more, because `tenure run` was stopped, say, that is the moment at which it kills. When
//! `tenure run` is gone, it kills at once. Should the guard itself be killed, the kernel kills the program.

use std::{
    io::{self, Write as _},
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
    io::Errno,
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
    SIGALRM, SIGCHLD, SIGHUP, SIGINT, SIGIO, SIGQUIT, SIGTERM, SIGTSTP, SIGTTIN, SIGTTOU, SIGUSR1, SIGUSR2,
};
use tenure::{BootClock, Clock as _};

use crate::{
    args, exit,
    orders::{Answer, Ended, Lines, Order, line, receive_files},
    processes::{adopt_orphans, end_all, reap_orphans, start_awaited},
    say,
    signals::{StopSignal, not_ignored},
};

/// What would end or stop this process, and must not.
const SURVIVED: [i32; 11] =
    [SIGHUP, SIGINT, SIGQUIT, SIGTERM, SIGTSTP, SIGTTIN, SIGTTOU, SIGUSR1, SIGUSR2, SIGALRM, SIGIO];

/// Guards one program to its end.
pub(crate) fn guard(options: &args::Guard) -> ExitCode {
    let mut leadership = Vec::new();
    match watch_over(options, &mut leadership) {
        Ok(code) => code.into(),
        Err(error) => {
            // Nothing may go on unguarded, and nobody else may lead before it has ended.
            end_all(None, None);
            drop(leadership);
            say(&format!("cannot guard the program: {error}"));
            exit::CANNOT_RUN.into()
        }
    }
}

/// Guards the program. `leadership` is for the files that keep the leadership for as long as they are open.
fn watch_over(options: &args::Guard, leadership: &mut Vec<OwnedFd>) -> io::Result<u8> {
    let ignored = Arc::new(AtomicBool::new(false));
    for signal in not_ignored(&SURVIVED)? {
        signal_hook::flag::register(signal, Arc::clone(&ignored))?;
    }
    let child_died = Arc::new(AtomicBool::new(false));
    signal_hook::flag::register(SIGCHLD, Arc::clone(&child_died))?;
    // Whatever the program leaves behind becomes a child of ours.
    adopt_orphans()?;

    let mut control = Control {
        stream: UnixStream::from(io::stdin().as_fd().try_clone_to_owned()?),
        lines: Lines::default(),
    };
    let mut files = receive_files(&control.stream)?.into_iter();
    let input = files.next().ok_or_else(|| io::Error::other("there is no standard input"))?;
    leadership.extend(files);
    // Nothing runs before it is known for how long it may.
    let mut orders = control.wait()?;
    control.stream.set_nonblocking(true)?;
    orders.extend(control.drain()?.ok_or(io::ErrorKind::UnexpectedEof)?);
    let mut program = Program {
        pid: getpid(),
        group: None,
        stop_signal: options.stop_signal,
        stop_at: u64::MAX,
        kill_at: u64::MAX,
        told: false,
        out_of_time: false,
    };
    program.take_windows(&orders);
    // Asleep until now, perhaps.
    if BootClock.now().as_nanos() >= program.stop_at || orders.contains(&Order::Stop) {
        return Ok(exit::LOST);
    }

    let own = getpid().as_raw_nonzero().get();
    let mut command = Command::new("/proc/self/exe");
    command.arg("__exec").arg(format!("--parent={own}")).arg(format!("--until={}", program.stop_at));
    command.arg("--").args(&options.command);
    command.process_group(options.group.unwrap_or(0));
    let child = start_awaited(command.stdin(Stdio::from(input)))?;
    // The program alone holds its input from here on: whoever feeds it sees when it reads no more.
    drop(command);
    let pid = i32::try_from(child.id()).ok().and_then(Pid::from_raw);
    program.pid = pid.ok_or_else(|| io::Error::other("the program has no process id"))?;
    program.group = options.group.is_none().then_some(program.pid);
    control.tell(Answer::Started)?;
    orders.into_iter().for_each(|order| program.obey(order));
    let how = program.end(&mut control, &child_died)?;
    control.tell(Answer::Ended { how, out_of_time: program.out_of_time })?;
    Ok(0)
}

/// The line to `tenure run`.
struct Control {
    stream: UnixStream,
    lines: Lines,
}

impl Control {
    /// The first orders.
    fn wait(&mut self) -> io::Result<Vec<Order>> {
        loop {
            let orders: Vec<Order> =
                self.lines.read(&mut self.stream)?.ok_or(io::ErrorKind::UnexpectedEof)?;
            if !orders.is_empty() {
                return Ok(orders);
            }
        }
    }

    /// All orders that have come; `None` when there can be no more.
    fn drain(&mut self) -> io::Result<Option<Vec<Order>>> {
        let mut all = Vec::new();
        loop {
            match self.lines.read::<Order>(&mut self.stream) {
                Ok(None) => return Ok(None),
                Ok(Some(orders)) => all.extend(orders),
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Ok(Some(all)),
                Err(error) => return Err(error),
            }
        }
    }

    /// Whoever is told may be gone.
    fn tell(&mut self, answer: Answer) -> io::Result<()> {
        let _ = self.stream.write_all(line(&answer)?.as_bytes());
        Ok(())
    }
}

/// The program, and until when it may go on.
struct Program {
    pid: Pid,
    /// The process group, when it is the program's own.
    group: Option<Pid>,
    stop_signal: StopSignal,
    stop_at: u64,
    kill_at: u64,
    /// Whether it was told to stop.
    told: bool,
    /// Whether that was because its time was up.
    out_of_time: bool,
}

impl Program {
    /// Waits until it has ended, or ends it. Nothing of it is left then.
    fn end(&mut self, control: &mut Control, child_died: &AtomicBool) -> io::Result<Ended> {
        let over = pidfd_open(self.pid, PidfdFlags::empty())?;
        let timer = timerfd_create(TimerfdClockId::Boottime, TimerfdFlags::CLOEXEC | TimerfdFlags::NONBLOCK)?;
        loop {
            // What was said before counts before the time does.
            match control.drain()? {
                None => break,
                Some(orders) => orders.into_iter().for_each(|order| self.obey(order)),
            }
            let now = BootClock.now().as_nanos();
            if now >= self.kill_at {
                self.out_of_time = true;
                break;
            }
            if now >= self.stop_at && !self.told {
                self.out_of_time = true;
                self.tell_to_stop();
            }
            self.set(&timer, now)?;
            if child_died.swap(false, SeqCst) {
                reap_orphans();
            }
            let mut watched = [
                PollFd::new(&over, PollFlags::IN),
                PollFd::new(&timer, PollFlags::IN),
                PollFd::new(&control.stream, PollFlags::IN),
            ];
            match poll(&mut watched, None) {
                Err(Errno::INTR) => continue,
                outcome => outcome?,
            };
            if !watched[0].revents().is_empty() {
                break;
            }
        }
        let status = end_all(Some(self.pid), self.group);
        let status =
            status.or_else(|| waitpid(Some(self.pid), WaitOptions::NOHANG).ok()?.map(|(_, ended)| ended));
        status.map(ended).ok_or_else(|| io::Error::other("the program's end was not seen"))
    }

    fn take_windows(&mut self, orders: &[Order]) {
        for order in orders {
            if let Order::Window { stop_at, kill_at } = *order {
                (self.stop_at, self.kill_at) = (stop_at, kill_at);
            }
        }
    }

    fn obey(&mut self, order: Order) {
        match order {
            Order::Window { .. } => self.take_windows(&[order]),
            Order::Stop => self.tell_to_stop(),
            Order::Signal(number) => {
                if let Some(signal) = StopSignal::from_number(number) {
                    self.send(signal);
                }
            }
        }
    }

    fn tell_to_stop(&mut self) {
        if !std::mem::replace(&mut self.told, true) {
            self.send(self.stop_signal);
        }
    }

    fn send(&self, signal: StopSignal) {
        self.send_one(signal.signal());
        // A program that was stopped, by its terminal say, would hear nothing of its end.
        if signal.ends() {
            self.send_one(Signal::CONT);
        }
    }

    fn send_one(&self, signal: Signal) {
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
        let left = if next == u64::MAX { 0 } else { next.saturating_sub(now).max(1) };
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
