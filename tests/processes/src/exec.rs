//! A leader that replaces its program by `exec`.

use std::{
    env,
    mem::forget,
    os::unix::process::CommandExt as _,
    process::{self, Command},
    thread,
};

use anyhow::{Context as _, Result};
use rustix::io::{FdFlags, fcntl_setfd};

use crate::leader::ELECTION;

/// What the program that follows has of the leader.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Inherits {
    Nothing,
    /// A descriptor with the lock of the local store.
    LockFile,
}

/// Leads, prints `process PID` and `leads TOKEN`, and becomes this program with the arguments `next`.
#[tokio::main(flavor = "current_thread")]
pub(crate) async fn exec_while_leading(url: &str, inherits: Inherits, next: &[&str]) -> Result<()> {
    let elector = tenure::connect(url).await?;
    let leadership = elector.campaign(ELECTION).await?;
    if inherits == Inherits::LockFile {
        let file = tenure::local::lock_file(&leadership)?.context("it does not lead on the local store")?;
        fcntl_setfd(&file, FdFlags::empty())?;
        forget(file);
    }
    leadership.ensure()?;
    println!("process {}", process::id());
    println!("leads {}", leadership.fencing_token());
    Err(Command::new(env::current_exe()?).args(next).exec().into())
}

/// Prints `waits as PID`, and waits to be killed.
pub(crate) fn wait() -> ! {
    println!("waits as {}", process::id());
    loop {
        thread::park();
    }
}
