//! Becomes the program, after seeing to it that the program does not outlive its guard.

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

use crate::{args::Exec, exit, say};

/// Returns only when the program cannot be run.
pub(crate) fn exec(options: &Exec) -> ExitCode {
    if let Err(error) = set_parent_process_death_signal(Some(Signal::KILL)) {
        say(&format!("the program could outlive tenure, so it is not started: {error}"));
        return exit::CANNOT_RUN.into();
    }
    // Asleep until now, perhaps: the guard kills what it finds, but finds nothing better.
    if BootClock.now().as_nanos() >= options.until {
        return exit::CANNOT_RUN.into();
    }
    // A guard that went before that was set.
    if getppid().is_none_or(|parent| parent.as_raw_nonzero().get() != options.parent) {
        return exit::CANNOT_RUN.into();
    }
    let Some((program, arguments)) = options.command.split_first() else {
        return exit::CANNOT_RUN.into();
    };
    let error = Command::new(program).args(arguments).exec();
    // From here on a broken pipe ends this process.
    let code = if error.kind() == ErrorKind::NotFound { exit::NOT_FOUND } else { exit::CANNOT_RUN };
    if !is_broken(&stderr()) {
        say(&format!("cannot run {}: {error}", program.to_string_lossy()));
    }
    code.into()
}

/// Whether nobody reads any more what is written here.
fn is_broken(file: &impl AsFd) -> bool {
    let mut watched = [PollFd::new(file, PollFlags::OUT)];
    let looked = poll(&mut watched, Some(&Timespec { tv_sec: 0, tv_nsec: 0 }));
    looked.is_ok() && watched[0].revents().intersects(PollFlags::ERR | PollFlags::HUP)
}
