//! The process between `tenure run` and the program. It kills the program, and everything that the program has started,
//! before the deadline, whatever happens to `tenure run`.
//!
//! The guard has one thread, no runtime and no connection to the store. `tenure run` sends it time limits: until when the
//! program may run. The guard kills the program
//!
//! - when the last time limit has passed, for example because `tenure run` was stopped and sends no more;
//! - as soon as the socket to `tenure run` is closed.
//!
//! If the guard itself is killed, the kernel kills the program.
//!
//! If `tenure run` was killed, its session would last until its TTL. Once the program is dead, the guard therefore ends the session
//! ([`end_session`](crate::end_session)), provided that
//!
//! - `tenure run` is dead by its pidfd, which it has sent itself: a socket that is closed proves nothing;
//! - one more scan has found no process that the program has started, and met no error. `tenure run` starts no process but guards,
//!   one at a time;
//! - the session was fixed before the program was started.

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
    time::{Duration, Instant},
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
use signal_hook::consts::signal::SIGCHLD;
use tenure::{BootClock, Clock as _};

use crate::{
    args, end_session, exit,
    guard_protocol::{
        GuardCommand, GuardEvent, GuardFiles, LineReader, ProgramExit, SessionFiles, encode_line,
    },
    limits, messages,
    processes::{adopt_orphans, is_nothing_left, kill_all_descendants, reap_orphans, spawn_awaited},
    signals::{ForwardableSignal, ignore_signals},
};

/// How long the death of `tenure run` is waited for, once the program is dead. It follows the end of file within a millisecond.
const DEATH_TIMEOUT: Duration = Duration::from_secs(2);

/// Runs the program until it ends, or until it has to be killed.
pub(crate) fn guard(options: &args::Guard) -> ExitCode {
    let mut lock = None;
    match supervise(options, &mut lock) {
        Ok(code) => code.into(),
        Err(error) => {
            // The program must not run without a guard. The lock is held until everything is dead, so that no other
            // node becomes leader before.
            kill_all_descendants(None, None);
            drop(lock);
            let hint = limits::hint(&error).map(|hint| format!("; {hint}")).unwrap_or_default();
            messages::print(&format!("cannot guard the program: {error}{hint}"));
            exit::CANNOT_RUN.into()
        }
    }
}

/// Runs the program. Stores in `lock` the file that keeps the leadership for as long as it is open.
fn supervise(options: &args::Guard, lock: &mut Option<OwnedFd>) -> io::Result<u8> {
    ignore_signals()?;
    let child_died = Arc::new(AtomicBool::new(false));
    signal_hook::flag::register(SIGCHLD, Arc::clone(&child_died))?;
    // Processes that outlive the program become children of this process.
    adopt_orphans()?;

    let mut control = Control {
        stream: UnixStream::from(io::stdin().as_fd().try_clone_to_owned()?),
        lines: LineReader::default(),
        is_closed: false,
        is_finished: false,
    };
    let files = GuardFiles::receive(&control.stream)?;
    *lock = files.lock;
    // The program is started only once its time limits are known.
    let mut commands = control.wait()?;
    control.stream.set_nonblocking(true)?;
    commands.extend(control.drain()?);
    if control.is_closed {
        return Err(io::ErrorKind::UnexpectedEof.into());
    }
    let mut program = Program {
        pid: getpid(),
        group: None,
        stop_signal: options.stop_signal,
        stop_at: u64::MAX,
        kill_at: u64::MAX,
        stop_sent: false,
        time_limit_reached: false,
        left_running: 0,
        was_asked_to_end: false,
    };
    program.apply_windows(&commands);
    // The machine may have been suspended until now.
    if BootClock.now().as_nanos() >= program.stop_at || commands.contains(&GuardCommand::Stop) {
        return Ok(exit::LEADERSHIP_LOST);
    }

    let own = getpid().as_raw_nonzero().get();
    let mut command = Command::new("/proc/self/exe");
    command
        .arg(messages::format_option())
        .arg("__exec")
        .arg(format!("--parent={own}"))
        .arg(format!("--not-after={}", program.stop_at));
    if options.listen_fds {
        command.arg("--listen-fds");
    }
    command.arg("--").args(&options.command);
    command.process_group(options.group.unwrap_or(0));
    for variable in &options.withhold {
        command.env_remove(variable);
    }
    let child = spawn_awaited(command.stdin(Stdio::from(files.input)))?;
    // Only the program holds its input now, so that the writing end sees when the program closes it.
    drop(command);
    let pid = i32::try_from(child.id()).ok().and_then(Pid::from_raw);
    program.pid = pid.ok_or_else(|| io::Error::other("the program has no process id"))?;
    program.group = options.group.is_none().then_some(program.pid);
    control.send(GuardEvent::Started)?;
    commands.into_iter().for_each(|command| program.execute(command));
    let exit = program.wait_or_kill(&mut control, &child_died)?;
    control.send(GuardEvent::Ended {
        exit,
        time_limit_reached: program.time_limit_reached,
        left_running: program.left_running,
    })?;
    let Some(SessionFiles { tenure, session }) = files.session else { return Ok(0) };
    let is_dead = control.is_tenure_dead(&tenure)?;
    if control.is_finished {
        return Ok(0);
    }
    if !is_dead || !is_nothing_left() {
        let reason = if is_dead { "a process may be left" } else { "it is stopped, or still ends" };
        messages::try_print(&format!("the session of `tenure run` was not ended in the store: {reason}"));
        return Ok(0);
    }
    let error = end_session::exec(session);
    messages::try_print(&format!("cannot end the session of a `tenure run` that was killed: {error}"));
    Ok(exit::CANNOT_RUN)
}

/// The socket to `tenure run`.
struct Control {
    stream: UnixStream,
    lines: LineReader,
    /// Whether the other end is closed.
    is_closed: bool,
    /// Whether `tenure run` has said that it closes the socket and goes on.
    is_finished: bool,
}

impl Control {
    /// Waits for the first commands.
    fn wait(&mut self) -> io::Result<Vec<GuardCommand>> {
        loop {
            let commands = self.read()?;
            if self.is_closed {
                return Err(io::ErrorKind::UnexpectedEof.into());
            }
            if !commands.is_empty() {
                return Ok(commands);
            }
        }
    }

    /// All commands that have arrived.
    fn drain(&mut self) -> io::Result<Vec<GuardCommand>> {
        let mut all = Vec::new();
        while !self.is_closed {
            match self.read() {
                Ok(commands) => all.extend(commands),
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => break,
                Err(error) => return Err(error),
            }
        }
        Ok(all)
    }

    /// Reads once.
    fn read(&mut self) -> io::Result<Vec<GuardCommand>> {
        let commands: Vec<GuardCommand> = match self.lines.read(&mut self.stream)? {
            Some(commands) => commands,
            None => {
                self.is_closed = true;
                Vec::new()
            }
        };
        self.is_finished |= commands.contains(&GuardCommand::Finish);
        Ok(commands)
    }

    /// Waits until `tenure run` is dead by its pidfd, or says that it goes on. False after [`DEATH_TIMEOUT`] as well.
    fn is_tenure_dead(&mut self, pidfd: &OwnedFd) -> io::Result<bool> {
        let give_up = Instant::now() + DEATH_TIMEOUT;
        loop {
            self.drain()?;
            if self.is_finished {
                return Ok(false);
            }
            let left = give_up.saturating_duration_since(Instant::now());
            let left = Timespec::try_from(left).map_err(io::Error::other)?;
            let mut polled = vec![PollFd::new(pidfd, PollFlags::IN)];
            if !self.is_closed {
                polled.push(PollFd::new(&self.stream, PollFlags::IN));
            }
            match poll(&mut polled, Some(&left)) {
                Err(Errno::INTR) => continue,
                Ok(0) => return Ok(false),
                outcome => outcome?,
            };
            if polled[0].revents().contains(PollFlags::IN) {
                return Ok(true);
            }
        }
    }

    /// Sends an event. Write errors are ignored: `tenure run` may be gone.
    fn send(&mut self, event: GuardEvent) -> io::Result<()> {
        let _ = self.stream.write_all(encode_line(&event)?.as_bytes());
        Ok(())
    }
}

/// The program and its time limits.
struct Program {
    pid: Pid,
    /// The process group, if the program has its own.
    group: Option<Pid>,
    stop_signal: ForwardableSignal,
    /// When the stop signal is sent, in nanoseconds of `CLOCK_BOOTTIME`.
    stop_at: u64,
    /// When the program is killed, in nanoseconds of `CLOCK_BOOTTIME`.
    kill_at: u64,
    stop_sent: bool,
    /// Whether it was stopped or killed because its time limit was reached.
    time_limit_reached: bool,
    /// How many processes it had left running when it exited before it was asked to stop.
    left_running: u32,
    /// Whether it got a signal that asks it to end.
    was_asked_to_end: bool,
}

impl Program {
    /// Waits until the program has ended, or kills it. When this returns, no process of it is left.
    fn wait_or_kill(&mut self, control: &mut Control, child_died: &AtomicBool) -> io::Result<ProgramExit> {
        let pidfd = pidfd_open(self.pid, PidfdFlags::empty())?;
        let timer = timerfd_create(TimerfdClockId::Boottime, TimerfdFlags::CLOEXEC | TimerfdFlags::NONBLOCK)?;
        let mut exited_unasked = false;
        loop {
            // Before the clock is compared: a command that has arrived may extend the time limits.
            let commands = control.drain()?;
            if control.is_closed {
                break;
            }
            commands.into_iter().for_each(|command| self.execute(command));
            let now = BootClock.now().as_nanos();
            if now >= self.kill_at {
                self.time_limit_reached = true;
                break;
            }
            if now >= self.stop_at && !self.stop_sent {
                self.time_limit_reached = true;
                self.send_stop();
            }
            self.arm(&timer, now)?;
            if child_died.swap(false, SeqCst) {
                reap_orphans();
            }
            let mut polled = [
                PollFd::new(&pidfd, PollFlags::IN),
                PollFd::new(&timer, PollFlags::IN),
                PollFd::new(&control.stream, PollFlags::IN),
            ];
            match poll(&mut polled, None) {
                Err(Errno::INTR) => continue,
                outcome => outcome?,
            };
            if !polled[0].revents().is_empty() {
                exited_unasked = !self.stop_sent && !self.was_asked_to_end;
                break;
            }
        }
        let killed = kill_all_descendants(Some(self.pid), self.group);
        if exited_unasked {
            self.left_running = killed.others;
        }
        let status = killed
            .status
            .or_else(|| waitpid(Some(self.pid), WaitOptions::NOHANG).ok()?.map(|(_, status)| status));
        status.map(program_exit).ok_or_else(|| io::Error::other("the program's exit status is not available"))
    }

    fn apply_windows(&mut self, commands: &[GuardCommand]) {
        for command in commands {
            if let GuardCommand::Window { stop_at, kill_at } = *command {
                (self.stop_at, self.kill_at) = (stop_at, kill_at);
            }
        }
    }

    fn execute(&mut self, command: GuardCommand) {
        match command {
            GuardCommand::Window { .. } => self.apply_windows(&[command]),
            GuardCommand::Stop => self.send_stop(),
            GuardCommand::Signal(number) => {
                if let Some(signal) = ForwardableSignal::from_number(number) {
                    self.send(signal);
                }
            }
            // What matters is the end of file after it.
            GuardCommand::Finish => {}
        }
    }

    /// Sends the stop signal, once.
    fn send_stop(&mut self) {
        if !std::mem::replace(&mut self.stop_sent, true) {
            self.send(self.stop_signal);
        }
    }

    fn send(&mut self, signal: ForwardableSignal) {
        self.kill(signal.signal());
        // A stopped program handles the signal only once it continues.
        if signal.is_termination() {
            self.was_asked_to_end = true;
            self.kill(Signal::CONT);
        }
    }

    fn kill(&self, signal: Signal) {
        // Errors are ignored: the program may have ended just now.
        let _ = match self.group {
            Some(group) => kill_process_group(group, signal),
            None => kill_process(self.pid, signal),
        };
    }

    /// Sets the timer to the next instant at which the program has to be stopped or killed.
    fn arm(&self, timer: &OwnedFd, now: u64) -> io::Result<()> {
        let next = if self.stop_sent { self.kill_at } else { self.stop_at.min(self.kill_at) };
        // Zero disarms the timer.
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

fn program_exit(status: WaitStatus) -> ProgramExit {
    match (status.exit_status(), status.terminating_signal()) {
        (Some(code), _) => ProgramExit::Exited(code),
        (None, Some(signal)) => ProgramExit::Signaled(signal),
        (None, None) => ProgramExit::Exited(exit::CANNOT_RUN.into()),
    }
}
