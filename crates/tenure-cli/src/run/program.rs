//! The program, as seen from `run`: its guard, and what the guard is told.

use std::{
    io::{self, ErrorKind, Write as _},
    os::unix::process::ExitStatusExt as _,
    os::{
        fd::{AsFd as _, OwnedFd},
        unix::net::UnixStream,
    },
    process::{Child, Command, Stdio},
    time::Duration,
};

use anyhow::{Context as _, Result};
use tenure::{LeadershipHandle, Moment};
use tokio::{
    io::Interest,
    sync::mpsc::UnboundedReceiver,
    time::{MissedTickBehavior, interval},
};

use crate::{
    args,
    guard::reads_from_a_terminal,
    orders::{Ended, Lines, Order, line, send_files},
    processes::{end_all, start_known, wait_known},
    signals::Received,
};

/// How often it is looked whether the deadline has moved: hearts beat every third of a TTL.
const PACE: Duration = Duration::from_millis(200);
/// The part of the stop budget that dying takes: nothing of the program may live at the deadline.
const DYING: u32 = 5;
const MOST_DYING: Duration = Duration::from_millis(200);

/// A program and its guard. Dropped, the program is killed.
pub(super) struct Program {
    guard: Child,
    control: UnixStream,
    stop_budget: Duration,
    own_group: bool,
    window: Option<Order>,
}

impl Program {
    pub(super) fn start(
        options: &args::Run,
        leadership: &LeadershipHandle,
        stop_budget: Duration,
    ) -> Result<Self> {
        let (control, other) = UnixStream::pair().context("a socket to the guard")?;
        let own_group = !reads_from_a_terminal();
        let mut command = Command::new("/proc/self/exe");
        command.arg("__guard").arg(format!("--stop-signal={}", options.stop_signal));
        if own_group {
            command.arg("--own-group");
        }
        command.arg("--").args(&options.command);
        command
            .env("TENURE_ELECTION", leadership.election().as_str())
            .env("TENURE_FENCING_TOKEN", leadership.fencing_token().to_string())
            .env("TENURE_CANDIDATE", leadership.candidate().as_str())
            .env("TENURE_STOP_BUDGET_MS", stop_budget.as_millis().to_string())
            .env_remove("TENURE_DEADLINE_BOOTTIME_NS");
        let deadline = leadership.deadline();
        if deadline != Moment::NEVER {
            command.env("TENURE_DEADLINE_BOOTTIME_NS", deadline.as_nanos().to_string());
        }
        let lock = leadership.lock_file()?;
        let guard = start_known(command.stdin(Stdio::from(OwnedFd::from(other))));
        // The other end of the socket is the guard's alone from here on.
        drop(command);
        let guard = guard.context("cannot start the program's guard")?;
        let mut program = Self { guard, control, stop_budget, own_group, window: None };
        let input = io::stdin();
        let mut files = vec![input.as_fd()];
        files.extend(lock.as_ref().map(|lock| lock.as_fd()));
        send_files(&program.control, &files).context("cannot tell the guard")?;
        program.tell_window(leadership).context("cannot tell the guard")?;
        Ok(program)
    }

    /// Waits until the program has ended, `None` when its guard did before it; passes signals on, and tells it to stop when leadership is over.
    pub(super) async fn mind(
        &mut self,
        leadership: &LeadershipHandle,
        signals: &mut UnboundedReceiver<Received>,
        told_to_end: &mut bool,
    ) -> Result<Option<Ended>> {
        self.control.set_nonblocking(true)?;
        let control = tokio::net::UnixStream::from_std(self.control.try_clone()?)?;
        let mut reading = self.control.try_clone()?;
        let mut lines = Lines::default();
        let stop = leadership.cancellation_token();
        let mut told = false;
        let mut ticks = interval(PACE);
        ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            tokio::select! {
                biased;
                ready = control.ready(Interest::READABLE) => {
                    ready?;
                    let answers = control.try_io(Interest::READABLE, || lines.read::<Ended>(&mut reading));
                    match answers {
                        Ok(Some(answers)) => {
                            if let Some(ended) = answers.into_iter().next() {
                                return Ok(Some(ended));
                            }
                        }
                        Ok(None) => return Ok(None),
                        Err(error) if error.kind() == ErrorKind::WouldBlock => {}
                        Err(error) => return Err(error.into()),
                    }
                }
                () = stop.cancelled(), if !told => {
                    told = true;
                    self.tell(Order::Stop)?;
                }
                Some(signal) = signals.recv() => {
                    *told_to_end |= signal.ends();
                    // What a terminal sends, everybody in front of it has.
                    if self.own_group || !signal.by_terminal {
                        self.tell(Order::Signal(signal.number))?;
                    }
                }
                _ = ticks.tick() => self.tell_window(leadership)?,
            }
        }
    }

    /// Tells how long the program may go on, when that has changed.
    fn tell_window(&mut self, leadership: &LeadershipHandle) -> io::Result<()> {
        let deadline = leadership.deadline();
        let dying = (self.stop_budget / DYING).min(MOST_DYING);
        let window = Order::Window {
            stop_at: (deadline - self.stop_budget).as_nanos(),
            kill_at: (deadline - dying).as_nanos(),
        };
        if self.window != Some(window) {
            self.window = Some(window);
            self.tell(window)?;
        }
        Ok(())
    }

    /// The guard reads at once, or is gone, which is heard elsewhere.
    fn tell(&mut self, order: Order) -> io::Result<()> {
        match self.control.write_all(line(&order)?.as_bytes()) {
            // One that was stopped goes on by what it has heard.
            Err(error) if !matches!(error.kind(), ErrorKind::BrokenPipe | ErrorKind::WouldBlock) => {
                Err(error)
            }
            _ => Ok(()),
        }
    }

    /// Returns when nothing of the program is left; whatever is, is killed. How it ended, where its guard did not say.
    pub(super) async fn end(self) -> Result<Ended> {
        let Self { guard, control, .. } = self;
        // This is what makes the guard kill.
        drop(control);
        let waiting = tokio::task::spawn_blocking(move || {
            let status = wait_known(guard);
            if status.as_ref().is_ok_and(|status| status.signal().is_some()) {
                // The kernel has killed the program with it; what that had started is ours now.
                end_all(None, None);
            }
            status
        });
        let status = waiting.await?.context("the end of the program's guard")?;
        Ok(match status.signal() {
            Some(signal) => Ended::Signaled(signal),
            None => Ended::Exited(status.code().unwrap_or_default()),
        })
    }
}
