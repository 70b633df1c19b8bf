//! `tenure __end-session`: ends the session of a `tenure run` that was killed.
//!
//! The guard executes it in place of itself, once tenure, the program and everything that the program has started are dead. What
//! to end was fixed before the program was started, and arrives on the standard input.

use std::{
    fs::File,
    io::{self, Seek as _, Write as _},
    os::{fd::OwnedFd, unix::process::CommandExt as _},
    process::{Command, Stdio},
    time::Duration,
};

use anyhow::{Context as _, Result};
use rustix::{
    fs::{MemfdFlags, memfd_create},
    io::Errno,
};
use serde::{Deserialize, Serialize};
use tenure::{Config, spi::SessionRecord};
use tokio::time::{Instant, timeout_at};

use crate::{args, exit, messages, signals::ignore_signals, store::Store};

/// How long it may take, the connection included.
const TIMEOUT: Duration = Duration::from_secs(5);
/// How long it waits for its own connections to be closed in the store.
const CLOSE_TIMEOUT: Duration = Duration::from_millis(300);

/// The session under which a program runs, and how to reach its store. Not `Debug`: the URL can contain a password.
#[derive(Serialize, Deserialize)]
pub(crate) struct SessionToEnd {
    url: String,
    election: String,
    /// Options that the URL's settings have to suit.
    ttl: Option<Duration>,
    grace_period: Option<Duration>,
    record: SessionRecord,
}

impl SessionToEnd {
    pub(crate) fn new(options: &args::Run, store: &Store, record: SessionRecord) -> Self {
        Self {
            url: store.url().to_owned(),
            election: options.store.election.clone(),
            ttl: options.ttl,
            grace_period: options.grace_period,
            record,
        }
    }

    /// A file in memory that contains it, for [`exec`].
    pub(crate) fn to_file(&self) -> io::Result<OwnedFd> {
        // A kernel can require that it is not executable (`vm.memfd_noexec`); before Linux 6.3 there is no such flag.
        let create = |flags| memfd_create("tenure-session", MemfdFlags::CLOEXEC | flags);
        let file = match create(MemfdFlags::NOEXEC_SEAL) {
            Err(Errno::INVAL) => create(MemfdFlags::empty()),
            created => created,
        };
        let mut file = File::from(file?);
        file.write_all(&serde_json::to_vec(self)?)?;
        file.rewind()?;
        Ok(file.into())
    }

    async fn end(&self, deadline: Instant) -> Result<(), tenure::Error> {
        let mut config = Config::new();
        if let Some(ttl) = self.ttl {
            config = config.with_ttl(ttl);
        }
        if let Some(grace_period) = self.grace_period {
            config = config.with_grace_period(grace_period);
        }
        let elector = tenure::connect_with(&self.url, config).await?;
        let ended = elector.end_session(&self.record).await;
        let left = deadline.saturating_duration_since(Instant::now());
        // It has no session of its own.
        let _ = elector.close_within(CLOSE_TIMEOUT.min(left)).await;
        ended
    }
}

/// Executes `tenure __end-session` in place of this process, with a [`SessionToEnd`] in `file`. Returns only if that fails.
pub(crate) fn exec(file: OwnedFd) -> io::Error {
    let mut command = Command::new("/proc/self/exe");
    command.arg(messages::format_option()).arg("__end-session");
    // Otherwise a reader of tenure's standard output would wait for this process.
    command.stdin(Stdio::from(file)).stdout(Stdio::null()).exec()
}

/// Ends the session that the standard input names. Returns the exit code.
pub(crate) async fn end_session() -> Result<u8> {
    let deadline = Instant::now() + TIMEOUT;
    // Signals to the process group were meant for tenure and the program.
    ignore_signals().context("cannot handle signals")?;
    let session: SessionToEnd =
        serde_json::from_reader(io::stdin().lock()).context("cannot read which session to end")?;
    let election = &session.election;
    let reason = match timeout_at(deadline, session.end(deadline)).await {
        Ok(Ok(())) => {
            messages::print_last(&format!(
                "`tenure run` was killed: the program was killed, and leadership of {election} was given back"
            ));
            return Ok(0);
        }
        Ok(Err(error)) => error.to_string(),
        Err(_) => format!("the store has not answered within {}", humantime::format_duration(TIMEOUT)),
    };
    messages::print_last(&format!(
        "`tenure run` was killed, and its session was not ended: {reason}; another node leads {election} after the TTL"
    ));
    Ok(exit::STORE_UNAVAILABLE)
}
