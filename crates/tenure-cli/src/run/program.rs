//! The program, as seen from `run`: its guard, and what the guard is told.

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
    process::{Command, ExitStatus, Stdio},
    time::Duration,
};

use anyhow::{Context as _, Result};
use rustix::process::{Pid, PidfdFlags, Signal, getpgrp, pidfd_open, pidfd_send_signal};
use tenure::{BootClock, BootInstant, Clock as _, LeadershipHandle};
use tokio::{
    io::Interest,
    sync::mpsc::UnboundedReceiver,
    task::JoinHandle,
    time::{MissedTickBehavior, interval, sleep, sleep_until, timeout},
};

use super::Shutdown;
use crate::{
    args::{self, OnOverrun, Restart},
    exit::Usage,
    orders::{Answer, Ended, Lines, Order, is_gone, line, send_files},
    processes::{end_all, start_awaited, wait_for_awaited},
    signals::Received,
    store, try_say,
};

/// How often it is looked whether the deadline has moved: hearts beat every third of a TTL.
const PACE: Duration = Duration::from_millis(100);
/// The part of the grace period that dying takes: nothing of the program may live at the deadline.
const DYING: u32 = 5;
const LEAST_DYING: Duration = Duration::from_millis(50);
const MOST_DYING: Duration = Duration::from_millis(200);
/// The least grace period: a moment to stop in, and one to die in.
const LEAST_BUDGET: Duration = Duration::from_millis(100);
/// How long a guard that has nothing to wait for may take.
const GRACE: Duration = Duration::from_millis(250);

/// A program and its guard. Dropped, the program is killed.
pub(super) struct Program {
    /// The guard, to be killed by no other's number.
    guard: OwnedFd,
    waiting: Option<JoinHandle<io::Result<ExitStatus>>>,
    /// How the guard ended, once it has been seen.
    status: Option<ExitStatus>,
    /// Whether it is confirmed that no process of the program is left.
    nothing_left: bool,
    control: UnixStream,
    grace_period: Duration,
    on_overrun: OnOverrun,
    /// Whether the program has a process group of its own.
    own_group: bool,
    window: Option<Order>,
    deadline: BootInstant,
}

/// How a program ended, and whether that was because its time was up.
#[derive(Clone, Copy, Debug)]
pub(super) struct End {
    pub(super) how: Ended,
    pub(super) out_of_time: bool,
}

impl Program {
    pub(super) fn start(options: &args::Run, leadership: &LeadershipHandle) -> Result<Self> {
        leadership.ensure()?;
        // The engine's own: the store's URL may have set it too.
        let grace_period = leadership.grace_period();
        check_grace_period(grace_period)?;
        let (control, other) = UnixStream::pair().context("a socket to the guard")?;
        let mut command = Command::new("/proc/self/exe");
        command.arg("__guard").arg(format!("--stop-signal={}", options.stop_signal));
        // Whoever reads from a terminal has to be in the group of processes in front of it.
        let own_group = File::open("/dev/tty").is_err();
        if !own_group {
            command.arg(format!("--group={}", getpgrp().as_raw_nonzero()));
        }
        command.arg("--").args(&options.command);
        // What is done to all of our group is not to befall the guard.
        command.process_group(0);
        command
            .env("TENURE_ELECTION", leadership.election().as_str())
            .env("TENURE_FENCING_TOKEN", leadership.fencing_token().to_string())
            .env("TENURE_CANDIDATE", leadership.candidate().as_str())
            .env("TENURE_GRACE_PERIOD_MS", grace_period.as_millis().to_string())
            .env_remove("TENURE_DEADLINE_BOOTTIME_NS");
        for variable in store::secret_variables(options.store.url.as_deref()) {
            command.env_remove(variable);
        }
        let deadline = leadership.deadline();
        if deadline != BootInstant::NEVER {
            command.env("TENURE_DEADLINE_BOOTTIME_NS", deadline.as_nanos().to_string());
        }
        let lock = leadership.lock_file()?;
        let child = start_awaited(command.stdin(Stdio::from(OwnedFd::from(other))));
        // The other end of the socket is the guard's alone from here on.
        drop(command);
        let child = child.context("cannot start the program's guard")?;
        let pid =
            i32::try_from(child.id()).ok().and_then(Pid::from_raw).context("the guard has no process id")?;
        let guard = pidfd_open(pid, PidfdFlags::empty()).context("cannot watch the program's guard")?;
        let mut program = Self {
            guard,
            waiting: Some(tokio::task::spawn_blocking(move || wait_for_awaited(child))),
            status: None,
            nothing_left: false,
            control,
            grace_period,
            on_overrun: options.on_overrun,
            own_group,
            window: None,
            deadline,
        };
        let input = io::stdin();
        let mut files = vec![input.as_fd()];
        files.extend(lock.as_ref().map(|lock| lock.as_fd()));
        // A guard that has gone is heard of later.
        match send_files(&program.control, &files) {
            Err(error) if !is_gone(&error) => return Err(error).context("cannot tell the guard"),
            _ => {}
        }
        if options.restart == Restart::Never {
            // The program alone holds its input from here on: whoever feeds it sees when it reads no more.
            rustix::stdio::dup2_stdin(File::open("/dev/null")?)?;
        }
        program.control.set_nonblocking(true)?;
        program.tell_window(leadership).context("cannot tell the guard")?;
        Ok(program)
    }

    /// Waits until nothing of the program is left; passes signals on, and tells it to stop when leadership is over.
    pub(super) async fn mind(
        &mut self,
        leadership: &LeadershipHandle,
        signals: &mut UnboundedReceiver<Received>,
        shutdown: &mut Shutdown,
    ) -> Result<End> {
        let control = tokio::net::UnixStream::from_std(self.control.try_clone()?)?;
        let mut reading = self.control.try_clone()?;
        let mut lines = Lines::default();
        let stop = leadership.cancellation_token();
        let (mut told, mut started) = (false, false);
        let mut ticks = interval(PACE.min(self.grace_period / 5));
        ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            // A guard that does not kill in time is not waited for.
            let late = self.deadline - self.dying() / 2;
            let kill_at = shutdown.kill_at();
            let out_of_patience = async {
                match kill_at {
                    Some(kill_at) => sleep_until(kill_at).await,
                    None => std::future::pending().await,
                }
            };
            tokio::select! {
                biased;
                ready = control.ready(Interest::READABLE) => {
                    ready?;
                    match control.try_io(Interest::READABLE, || lines.read::<Answer>(&mut reading)) {
                        Ok(Some(answers)) => for answer in answers {
                            match answer {
                                Answer::Started => started = true,
                                Answer::Ended { how, out_of_time } => {
                                    self.rest().await?;
                                    return Ok(End { how, out_of_time });
                                }
                            }
                        },
                        Ok(None) => return self.rest().await,
                        Err(error) if error.kind() == ErrorKind::WouldBlock => {}
                        Err(error) => return Err(error.into()),
                    }
                }
                () = BootClock.sleep_until(late) => return self.rest().await,
                () = out_of_patience => {
                    try_say("the program has not stopped in time for the shutdown: killing it; see --shutdown-timeout");
                    return self.rest().await;
                }
                () = stop.cancelled(), if !told => {
                    told = true;
                    self.tell_window(leadership)?;
                    self.tell(Order::Stop)?;
                }
                Some(signal) = signals.recv() => {
                    if signal.ends() {
                        shutdown.begin();
                    }
                    // What a terminal sends, everybody in front of it has, once it is there.
                    if self.own_group || !signal.by_terminal || !started {
                        self.tell(Order::Signal(signal.number))?;
                    }
                }
                _ = ticks.tick() => self.tell_window(leadership)?,
            }
        }
    }

    fn dying(&self) -> Duration {
        (self.grace_period / DYING).clamp(LEAST_DYING, MOST_DYING)
    }

    /// Tells how long the program may go on, when that has changed.
    fn tell_window(&mut self, leadership: &LeadershipHandle) -> io::Result<()> {
        self.deadline = leadership.deadline();
        let window = Order::Window {
            stop_at: (self.deadline - self.grace_period).as_nanos(),
            kill_at: (self.deadline - self.dying()).as_nanos(),
        };
        if self.window != Some(window) {
            self.tell(window)?;
            self.window = Some(window);
        }
        Ok(())
    }

    fn tell(&mut self, order: Order) -> io::Result<()> {
        match self.control.write_all(line(&order)?.as_bytes()) {
            // One that was stopped goes on by what it has heard; one that has gone is heard of elsewhere.
            Err(error) if error.kind() != ErrorKind::WouldBlock && !is_gone(&error) => Err(error),
            _ => Ok(()),
        }
    }

    /// Returns when nothing of the program is left; whatever is, is killed. How it ended, where its guard did not say.
    ///
    /// # Cancellation safety
    /// Call it again after dropping it: it continues, and still returns only once nothing is left.
    pub(super) async fn rest(&mut self) -> Result<End> {
        // This is what makes the guard kill.
        let _ = self.control.shutdown(std::net::Shutdown::Both);
        if let Some(waiting) = &mut self.waiting {
            let left = self.deadline.since(BootClock.now());
            let status = match timeout(GRACE.min(left / 2), &mut *waiting).await {
                Ok(status) => status,
                // Stopped, or unable: what it has started is ours once it is dead.
                Err(_) => {
                    let _ = pidfd_send_signal(&self.guard, Signal::KILL);
                    waiting.await
                }
            };
            self.waiting = None;
            match status.map_err(io::Error::from).flatten() {
                Ok(status) => {
                    self.nothing_left = status.success();
                    self.status = Some(status);
                }
                // Its outcome is unknown, so it is killed with everything below it.
                Err(error) => {
                    let _ = pidfd_send_signal(&self.guard, Signal::KILL);
                    tracing::warn!(%error, "the end of the program's guard was not seen");
                }
            }
        }
        if !self.nothing_left {
            self.end_orphans().await;
            self.nothing_left = true;
        }
        let code = self.status.and_then(|status| status.code());
        let how = match (self.status.and_then(|status| status.signal()), code) {
            (Some(signal), _) => Ended::Signaled(signal),
            (None, Some(code)) => Ended::Exited(code),
            (None, None) => Ended::Signaled(Signal::KILL.as_raw()),
        };
        Ok(End { how, out_of_time: code == Some(crate::exit::LOST.into()) })
    }

    /// Kills what a guard that did not end as it should has left behind.
    async fn end_orphans(&self) {
        let mut ending = pin!(async {
            // A task that panicked has not confirmed that nothing is left.
            while tokio::task::spawn_blocking(|| end_all(None, None)).await.is_err() {
                sleep(PACE).await;
            }
        });
        if timeout(self.deadline.since(BootClock.now()), &mut ending).await.is_err() {
            try_say("the program is not dead by its deadline");
            if self.on_overrun == OnOverrun::Abort {
                std::process::abort();
            }
            ending.await;
        }
    }
}

/// Whether a program can stop and die in so much time.
pub(super) fn check_grace_period(budget: Duration) -> Result<(), Usage> {
    if budget >= LEAST_BUDGET {
        return Ok(());
    }
    Err(Usage(format!(
        "grace period {} is not allowed: a program needs at least {} to stop and to die in",
        humantime::format_duration(budget),
        humantime::format_duration(LEAST_BUDGET)
    )))
}
