//! Docker: its engine, started when it is not running, and its command.

use std::{
    ffi::OsStr,
    fs::File,
    os::unix::process::CommandExt,
    path::Path,
    process::Stdio,
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, bail, ensure};

use crate::{
    apt,
    shell::{command, exists, output, run, say},
};

const LOG: &str = "/var/log/tenure-dockerd.log";
const START_TIMEOUT: Duration = Duration::from_secs(60);

/// Makes sure that an engine answers.
///
/// # Errors
/// When there is none and it cannot be installed or started here.
pub(crate) fn ensure() -> Result<()> {
    if !exists("docker") {
        apt::install("docker.io", "Docker's engine")?;
        if !exists("docker") {
            apt::install("docker-cli", "the docker command")?;
        }
    }
    if engine().is_ok() {
        return Ok(());
    }
    start()
}

/// Runs `docker` and returns what it printed.
///
/// # Errors
/// When it fails, with what it said.
pub(crate) fn docker<S: AsRef<OsStr>>(arguments: impl IntoIterator<Item = S>) -> Result<String> {
    output(&mut command("docker", arguments))
}

fn engine() -> Result<String> {
    docker(["version", "--format", "{{.Server.Version}}"])
}

fn start() -> Result<()> {
    let reason = engine().err().map(|error| format!("{error:#}")).unwrap_or_default();
    ensure!(
        apt::is_root(),
        "Docker's engine does not answer: start it, or put yourself into the group `docker`, or run this as root \
         ({reason})"
    );
    if Path::new("/run/systemd/system").exists() {
        say("Docker's engine does not answer: starting its service");
        run(&mut command("systemctl", ["start", "docker"]))?;
    } else {
        if !exists("dockerd") {
            apt::install("docker.io", "Docker's engine")?;
        }
        say(format!(
            "Docker's engine does not answer, and there is no systemd: starting dockerd (log: {LOG})"
        ));
        let log = File::create(LOG).with_context(|| format!("cannot write {LOG}"))?;
        command("dockerd", [""; 0])
            .stdin(Stdio::null())
            .stdout(log.try_clone()?)
            .stderr(log)
            // A group of its own: Ctrl-C ends the tests, not the engine.
            .process_group(0)
            .spawn()
            .context("cannot run dockerd")?;
    }
    let deadline = Instant::now() + START_TIMEOUT;
    while let Err(error) = engine() {
        if Instant::now() > deadline {
            bail!(
                "Docker's engine does not answer {START_TIMEOUT:?} after its start; see {LOG} or its journal ({error:#})"
            );
        }
        thread::sleep(Duration::from_millis(200));
    }
    Ok(())
}
