//! Becomes the program, after seeing to it that the program does not outlive its guard.

use std::{
    io::ErrorKind,
    os::unix::process::CommandExt as _,
    process::{Command, ExitCode},
};

use rustix::process::{Signal, getppid, set_parent_process_death_signal};

use crate::{args::Exec, exit};

/// Returns only when the program cannot be run.
pub(crate) fn exec(options: &Exec) -> ExitCode {
    if let Err(error) = set_parent_process_death_signal(Some(Signal::KILL)) {
        eprintln!("tenure: the program could outlive tenure, so it is not started: {error}");
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
    eprintln!("tenure: cannot run {}: {error}", program.to_string_lossy());
    match error.kind() {
        ErrorKind::NotFound => exit::NOT_FOUND.into(),
        _ => exit::CANNOT_RUN.into(),
    }
}
