//! The program and its guard, as `tenure run` handles them.

use std::{
    fs::File,
    io::{self, ErrorKind, Write as _},
    os::{
        fd::{AsFd as _, OwnedFd},
        unix::{
            net::UnixStream,
            process::{CommandExt as _, ExitStatusExt as _},
        },
    },
    pin::pin,
    process::{Child, Command, ExitStatus, Stdio},
    sync::{
        atomic::{AtomicBool, Ordering},
        mpsc,
    },
    thread,
    time::Duration,
};

use anyhow::{Context as _, Result};
use rustix::process::{Pid, PidfdFlags, Signal, getpid, pidfd_open, pidfd_send_signal};
use tenure::{BootClock, BootInstant, Clock as _, LeadershipHandle};
use tokio::{
    io::Interest,
    sync::{mpsc::UnboundedReceiver, oneshot},
    time::{MissedTickBehavior, interval, sleep, sleep_until, timeout},
};

use super::{say_session_not_pinned, service_manager, shutdown::Shutdown};
use crate::{
    args::{self, OnOverrun, Restart},
    end_session::SessionToEnd,
    exit::{self, UsageError},
    guard_protocol::{
        GuardCommand, GuardEvent, GuardFiles, LineReader, ProgramExit, SessionFiles, encode_line,
        is_disconnected,
    },
    messages, nesting,
    processes::{kill_all_descendants, proc::job_of, spawn_awaited, wait_for_awaited},
    signals::ReceivedSignal,
    store::{self, Store},
};

/// How often the guard gets new time limits, if the deadline has moved. Heartbeats are sent every third of a TTL.
const WINDOW_UPDATE_INTERVAL: Duration = Duration::from_millis(100);
/// The program is killed before the deadline, by this fraction of the grace period within these bounds: the kernel
/// needs time to end its processes.
const KILL_MARGIN_DIVISOR: u32 = 5;
const MIN_KILL_MARGIN: Duration = Duration::from_millis(50);
const MAX_KILL_MARGIN: Duration = Duration::from_millis(200);
/// The shortest grace period: time to stop, and then the kill margin.
const MIN_GRACE_PERIOD: Duration = Duration::from_millis(100);
/// How long a guard that was asked to kill the program may take before it is killed itself.
const GUARD_EXIT_TIMEOUT: Duration = Duration::from_millis(250);
/// The delay before killing is tried again, if the task that did it panicked.
const KILL_RETRY_DELAY: Duration = Duration::from_millis(100);

/// A program and its guard. The program is killed when this is dropped.
pub(super) struct Program {
    /// The guard's pidfd: its process id may be given to another process.
    guard: OwnedFd,
    guard_exit: Option<oneshot::Receiver<io::Result<ExitStatus>>>,
    /// How the guard ended, once that is known.
    guard_status: Option<ExitStatus>,
    /// Whether it is confirmed that no process of the program is left.
    nothing_left: bool,
    control: UnixStream,
    grace_period: Duration,
    on_overrun: OnOverrun,
    /// Whether the program has a process group of its own.
    own_group: bool,
    /// The time limits that the guard was sent last.
    window: Option<GuardCommand>,
    deadline: BootInstant,
}

/// How a program ended.
#[derive(Clone, Copy, Debug)]
pub(super) struct ProgramEnd {
    pub(super) exit: ProgramExit,
    /// Whether it was stopped or killed because its time limit was reached.
    pub(super) time_limit_reached: bool,
}

impl Program {
    /// Starts the guard, which starts the program. The guard ends `session` should this process be killed.
    pub(super) fn start(
        options: &args::Run,
        store: &Store,
        leadership: &LeadershipHandle,
        session: Option<&SessionToEnd>,
    ) -> Result<Self> {
        leadership.ensure()?;
        // The elector's setting and not the option: the store's URL may set it, too.
        let grace_period = leadership.grace_period();
        check_grace_period(grace_period)?;
        let (control, other) = UnixStream::pair().context("cannot make a socket to the guard")?;
        let mut command = Command::new("/proc/self/exe");
        command
            .arg(messages::format_option())
            .arg("__guard")
            .arg(format!("--stop-signal={}", options.stop_signal));
        // A process that reads from its terminal has to be in the terminal's foreground process group.
        // One from outside the PID namespace cannot be joined.
        let group = job_of(getpid().as_raw_pid()).map_or(0, |job| job.group);
        let own_group = group == 0 || File::open("/dev/tty").is_err();
        if !own_group {
            command.arg(format!("--group={group}"));
        }
        for variable in store::secret_variables(options.store.url.as_deref()) {
            command.arg(format!("--withhold={variable}"));
        }
        if service_manager::has_sockets() {
            command.arg("--listen-fds");
        }
        command.arg("--").args(&options.command);
        // A signal to tenure's process group must not reach the guard.
        command.process_group(0);
        command
            .env(nesting::VARIABLE, nesting::value(store, leadership.election().as_str())?)
            .env("TENURE_ELECTION", leadership.election().as_str())
            .env("TENURE_FENCING_TOKEN", leadership.fencing_token().to_string())
            .env("TENURE_CANDIDATE", leadership.candidate_id().as_str())
            .env("TENURE_GRACE_PERIOD_MS", grace_period.as_millis().to_string())
            .env_remove("TENURE_DEADLINE_BOOTTIME_NS");
        for variable in service_manager::VARIABLES {
            command.env_remove(variable);
        }
        let deadline = leadership.deadline();
        if deadline != BootInstant::NEVER {
            command.env("TENURE_DEADLINE_BOOTTIME_NS", deadline.as_nanos().to_string());
        }
        let lock = tenure::local::lock_file(leadership)?;
        let session = session.and_then(|session| {
            let files = pidfd_open(getpid(), PidfdFlags::empty())
                .map_err(io::Error::from)
                .and_then(|pidfd| Ok((pidfd, session.to_file()?)));
            // The program runs without it all the same.
            files.inspect_err(|error| say_session_not_pinned(&error.to_string())).ok()
        });
        // Before the guard is started, since the thread may be refused.
        let (waiter, guard_exit) = wait_on_a_thread().context("cannot start a thread for the guard")?;
        let child = spawn_awaited(command.stdin(Stdio::from(OwnedFd::from(other))));
        // Only the guard holds the other end of the socket now.
        drop(command);
        let child = child.context("cannot start the program's guard")?;
        let pid =
            i32::try_from(child.id()).ok().and_then(Pid::from_raw).context("the guard has no process id")?;
        let guard = pidfd_open(pid, PidfdFlags::empty());
        // The thread ends only after this channel, or after the guard.
        let _ = waiter.send(child);
        let guard = guard.context("cannot open the guard's pidfd")?;
        let mut program = Self {
            guard,
            guard_exit: Some(guard_exit),
            guard_status: None,
            nothing_left: false,
            control,
            grace_period,
            on_overrun: options.on_overrun,
            own_group,
            window: None,
            deadline,
        };
        let input = io::stdin();
        let files = GuardFiles {
            input: input.as_fd(),
            lock: lock.as_ref().map(|lock| lock.as_fd()),
            session: session
                .as_ref()
                .map(|(tenure, session)| SessionFiles { tenure: tenure.as_fd(), session: session.as_fd() }),
        };
        // If the guard is gone, `supervise` finds out.
        match files.send(&program.control) {
            Err(error) if !is_disconnected(&error) => return Err(error).context("cannot send to the guard"),
            _ => {}
        }
        if options.restart == Restart::Never {
            // Only the program holds its input now, so that the writing end sees when the program closes it.
            rustix::stdio::dup2_stdin(File::open("/dev/null")?)?;
        }
        program.control.set_nonblocking(true)?;
        program.send_window(leadership).context("cannot send to the guard")?;
        Ok(program)
    }

    /// Waits until no process of the program is left. Meanwhile passes signals on, and stops the program when
    /// leadership is over.
    pub(super) async fn supervise(
        &mut self,
        leadership: &LeadershipHandle,
        signals: &mut UnboundedReceiver<ReceivedSignal>,
        shutdown: &mut Shutdown<'_>,
    ) -> Result<ProgramEnd> {
        let control = tokio::net::UnixStream::from_std(self.control.try_clone()?)?;
        let mut reader = self.control.try_clone()?;
        let mut lines = LineReader::default();
        let stop = leadership.cancellation_token();
        let (mut stop_sent, mut started) = (false, false);
        let mut ticks = interval(WINDOW_UPDATE_INTERVAL.min(self.grace_period / 5));
        ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            // If the guard has not killed the program by then, this process does.
            let guard_overdue = self.deadline - self.kill_margin() / 2;
            let kill_at = shutdown.kill_at();
            let shutdown_kill = async {
                match kill_at {
                    Some(kill_at) => sleep_until(kill_at).await,
                    None => std::future::pending().await,
                }
            };
            tokio::select! {
                biased;
                ready = control.ready(Interest::READABLE) => {
                    ready?;
                    match control.try_io(Interest::READABLE, || lines.read::<GuardEvent>(&mut reader)) {
                        Ok(Some(events)) => for event in events {
                            match event {
                                GuardEvent::Started => started = true,
                                GuardEvent::Ended { exit, time_limit_reached, left_running } => {
                                    // A terminal's signal reaches the program without the guard.
                                    while let Ok(signal) = signals.try_recv() {
                                        if signal.is_termination() {
                                            shutdown.begin();
                                        }
                                    }
                                    if !shutdown.has_begun() {
                                        warn_of_processes_left(exit, left_running);
                                    }
                                    self.kill_and_wait().await?;
                                    return Ok(ProgramEnd { exit, time_limit_reached });
                                }
                            }
                        },
                        Ok(None) => return self.kill_and_wait().await,
                        Err(error) if error.kind() == ErrorKind::WouldBlock => {}
                        Err(error) => return Err(error.into()),
                    }
                }
                () = BootClock.sleep_until(guard_overdue) => return self.kill_and_wait().await,
                () = shutdown_kill => {
                    messages::try_print(
                        "the program has not stopped in time for the shutdown: killing it; see --shutdown-timeout",
                    );
                    return self.kill_and_wait().await;
                }
                () = stop.cancelled(), if !stop_sent => {
                    stop_sent = true;
                    self.send_window(leadership)?;
                    self.send(GuardCommand::Stop)?;
                }
                Some(signal) = signals.recv() => {
                    if signal.is_termination() {
                        shutdown.begin();
                    }
                    // A started program in the foreground process group gets the terminal's signals by itself.
                    if self.own_group || !signal.from_terminal || !started {
                        self.send(GuardCommand::Signal(signal.number))?;
                    }
                }
                _ = ticks.tick() => self.send_window(leadership)?,
            }
        }
    }

    /// How long before the deadline the program is killed.
    fn kill_margin(&self) -> Duration {
        (self.grace_period / KILL_MARGIN_DIVISOR).clamp(MIN_KILL_MARGIN, MAX_KILL_MARGIN)
    }

    /// Sends the guard how long the program may run, if that has changed.
    fn send_window(&mut self, leadership: &LeadershipHandle) -> io::Result<()> {
        self.deadline = leadership.deadline();
        let window = GuardCommand::Window {
            stop_at: (self.deadline - self.grace_period).as_nanos(),
            kill_at: (self.deadline - self.kill_margin()).as_nanos(),
        };
        if self.window != Some(window) {
            self.send(window)?;
            self.window = Some(window);
        }
        Ok(())
    }

    fn send(&mut self, command: GuardCommand) -> io::Result<()> {
        match self.control.write_all(encode_line(&command)?.as_bytes()) {
            // A guard that does not read, because it is stopped, keeps to its last time limits. `supervise` finds out
            // about a guard that is gone.
            Err(error) if error.kind() != ErrorKind::WouldBlock && !is_disconnected(&error) => Err(error),
            _ => Ok(()),
        }
    }

    /// Kills what is left of the program, and waits until no process of it is left. Returns how it ended, as far as the
    /// guard's exit status says it.
    ///
    /// # Cancellation safety
    /// If it is dropped, call it again: it continues, and still returns only once nothing is left.
    pub(super) async fn kill_and_wait(&mut self) -> Result<ProgramEnd> {
        // The guard kills the program when its socket is closed. It must not wait for the end of this process then.
        let _ = self.send(GuardCommand::Finish);
        let _ = self.control.shutdown(std::net::Shutdown::Both);
        if let Some(guard_exit) = &mut self.guard_exit {
            let left = self.deadline.since(BootClock.now());
            let (status, killed_here) =
                match timeout(GUARD_EXIT_TIMEOUT.min(left / 2), &mut *guard_exit).await {
                    Ok(status) => (status, false),
                    // It is stopped, or cannot kill the program. Its children become children of this process when it dies.
                    Err(_) => {
                        let _ = pidfd_send_signal(&self.guard, Signal::KILL);
                        (guard_exit.await, true)
                    }
                };
            self.guard_exit = None;
            match status.map_err(io::Error::other).flatten() {
                Ok(status) => {
                    if let Some(signal) = status.signal().filter(|_| !killed_here) {
                        messages::try_print(&format!(
                            "the program's guard was killed by signal {signal}, and the program with it"
                        ));
                    }
                    self.nothing_left = status.success();
                    self.guard_status = Some(status);
                }
                // The guard may be alive, so it is killed with all its descendants.
                Err(error) => {
                    let _ = pidfd_send_signal(&self.guard, Signal::KILL);
                    tracing::warn!(%error, "cannot wait for the program's guard; killing it");
                }
            }
        }
        if !self.nothing_left {
            self.kill_orphans().await;
            self.nothing_left = true;
        }
        let code = self.guard_status.and_then(|status| status.code());
        let program_exit = match (self.guard_status.and_then(|status| status.signal()), code) {
            (Some(signal), _) => ProgramExit::Signaled(signal),
            (None, Some(code)) => ProgramExit::Exited(code),
            (None, None) => ProgramExit::Signaled(Signal::KILL.as_raw()),
        };
        Ok(ProgramEnd { exit: program_exit, time_limit_reached: code == Some(exit::LEADERSHIP_LOST.into()) })
    }

    /// Kills the processes that a failed guard has left.
    async fn kill_orphans(&self) {
        let mut killing = pin!(async {
            loop {
                let (sender, killed) = oneshot::channel();
                let thread = thread::Builder::new().name("kill".to_owned()).spawn(move || {
                    kill_all_descendants(None, None);
                    let _ = sender.send(());
                });
                if thread.is_err() {
                    // It must not wait for a thread.
                    kill_all_descendants(None, None);
                    break;
                }
                // A thread that panicked has not confirmed that nothing is left.
                match killed.await {
                    Ok(()) => break,
                    Err(_) => sleep(KILL_RETRY_DELAY).await,
                }
            }
        });
        if timeout(self.deadline.since(BootClock.now()), &mut killing).await.is_err() {
            messages::try_print("the program is still alive at its deadline");
            if self.on_overrun == OnOverrun::Abort {
                std::process::abort();
            }
            killing.await;
        }
    }
}

/// Says once that the program is not to leave processes behind, as programs do that become daemons.
fn warn_of_processes_left(exit: ProgramExit, left_running: u32) {
    static IS_SAID: AtomicBool = AtomicBool::new(false);
    if left_running == 0 || !matches!(exit, ProgramExit::Exited(_)) || IS_SAID.swap(true, Ordering::SeqCst) {
        return;
    }
    messages::try_print(&format!(
        "the program has exited and left {left_running} of its processes running, which were killed with the term: a \
         program under `tenure run` must stay in the foreground (no --daemon, no &)"
    ));
}

/// Starts a thread that waits for the child that it is sent. Its exit status arrives on the other channel.
fn wait_on_a_thread() -> io::Result<(mpsc::Sender<Child>, oneshot::Receiver<io::Result<ExitStatus>>)> {
    let (child_sender, child) = mpsc::channel();
    let (sender, status) = oneshot::channel();
    thread::Builder::new().name("guard".to_owned()).spawn(move || {
        if let Ok(child) = child.recv() {
            let _ = sender.send(wait_for_awaited(child));
        }
    })?;
    Ok((child_sender, status))
}

/// Checks that a grace period is long enough for a program to stop or be killed.
pub(super) fn check_grace_period(grace_period: Duration) -> Result<(), UsageError> {
    if grace_period >= MIN_GRACE_PERIOD {
        return Ok(());
    }
    Err(UsageError(format!(
        "grace period {} is not allowed: it must be at least {}, so that a program can be stopped and killed",
        humantime::format_duration(grace_period),
        humantime::format_duration(MIN_GRACE_PERIOD)
    )))
}
