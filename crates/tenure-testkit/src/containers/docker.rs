//! The `docker` command.

use std::{
    ffi::OsStr,
    io,
    process::{self, Stdio},
    time::Duration,
};

use tokio::{process::Command, time::timeout};

use super::ContainerError;

/// Generous: on a busy machine a container may take seconds to start.
const PATIENCE: Duration = Duration::from_secs(60);

/// The label of everything that tests make; its value is the id of their process.
const LABEL: &str = "tenure-test";

/// Runs `docker` with `arguments` and returns what it printed.
pub(super) async fn docker<I, S>(arguments: I) -> Result<String, ContainerError>
where
    I: IntoIterator<Item = S>,
    S: AsRef<OsStr>,
{
    let mut command = Command::new("docker");
    command.args(arguments).stdin(Stdio::null()).kill_on_drop(true);
    let shown = shown(command.as_std());
    let output = match timeout(PATIENCE, command.output()).await {
        Ok(Ok(output)) => output,
        Ok(Err(error)) if error.kind() == io::ErrorKind::NotFound => {
            return Err(ContainerError::NoDocker(error));
        }
        Ok(Err(error)) => return Err(ContainerError::Docker { command: shown, message: error.to_string() }),
        Err(_) => {
            let (what, last) = (format!("`docker {shown}`"), "no answer".to_owned());
            return Err(ContainerError::TimedOut { what, waited: PATIENCE, last });
        }
    };
    if output.status.success() {
        return Ok(String::from_utf8_lossy(&output.stdout).trim().to_owned());
    }
    let message = String::from_utf8_lossy(&output.stderr).trim().to_owned();
    if message.contains("Cannot connect to the Docker daemon") {
        return Err(ContainerError::NoEngine(message));
    }
    Err(ContainerError::Docker { command: shown, message })
}

/// Runs `docker` from a destructor: blocks, and has nobody to tell of a failure.
pub(super) fn docker_in_drop(arguments: &[&str]) {
    let _ = process::Command::new("docker")
        .args(arguments)
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .status();
}

/// The label that marks what this process makes.
pub(super) fn label() -> String {
    format!("{LABEL}={}", process::id())
}

/// A name that nothing else has.
pub(super) fn unique_name(what: &str) -> String {
    format!("tenure-test-{what}-{}-{:08x}", process::id(), fastrand::u32(..))
}

fn shown(command: &process::Command) -> String {
    command.get_args().map(OsStr::to_string_lossy).collect::<Vec<_>>().join(" ")
}
