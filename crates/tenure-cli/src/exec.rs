//! Executes the program in place of this process, after tying the program's life to the guard's.

use std::{
    io::{ErrorKind, stderr},
    os::{fd::AsFd, unix::process::CommandExt as _},
    process::{Command, ExitCode},
};

use rustix::{
    event::{PollFd, PollFlags, Timespec, poll},
    process::{Signal, getppid, set_parent_process_death_signal},
};
use tenure::{BootClock, Clock as _};

use crate::{args::Exec, exit, messages};

/// Returns only if the program cannot be run.
pub(crate) fn exec(options: &Exec) -> ExitCode {
    if let Err(error) = set_parent_process_death_signal(Some(Signal::KILL)) {
        messages::print(&format!(
            "the program is not started, because it could outlive tenure: cannot set its death signal: {error}"
        ));
        return exit::CANNOT_RUN.into();
    }
    // The machine may have been suspended until now. The guard would kill the program, but it is better not started.
    if BootClock.now().as_nanos() >= options.not_after {
        return exit::CANNOT_RUN.into();
    }
    // The guard may have died before the death signal was set.
    if getppid().is_none_or(|parent| parent.as_raw_nonzero().get() != options.parent) {
        return exit::CANNOT_RUN.into();
    }
    let Some((program, arguments)) = options.command.split_first() else {
        return exit::CANNOT_RUN.into();
    };
    let mut command = Command::new(program);
    command.args(arguments);
    if options.listen_fds {
        // They are inherited from `tenure run`. This process becomes the program, with the same id.
        command.env("LISTEN_PID", std::process::id().to_string()).env_remove("LISTEN_PIDFDID");
    }
    let error = command.exec();
    // `exec` has reset SIGPIPE, so writing to a broken pipe would now end this process.
    let code = if error.kind() == ErrorKind::NotFound { exit::NOT_FOUND } else { exit::CANNOT_RUN };
    if !is_broken(&stderr()) {
        messages::print(&format!("cannot run {}: {error}", program.to_string_lossy()));
    }
    code.into()
}

/// Whether the reading end of this pipe is closed.
fn is_broken(file: &impl AsFd) -> bool {
    let mut polled = [PollFd::new(file, PollFlags::OUT)];
    let ready = poll(&mut polled, Some(&Timespec { tv_sec: 0, tv_nsec: 0 }));
    ready.is_ok() && polled[0].revents().intersects(PollFlags::ERR | PollFlags::HUP)
}
