//! The servers that all tests of a run share, and the removal of containers that earlier tests left.

use std::{
    path::Path,
    process::{self, Command},
    sync::{Mutex, OnceLock},
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, bail};

use crate::{
    catalog::{Image, Server},
    docker::docker,
    shell::{command, output, say},
};

/// The label on everything that tests make; its value is the id of the process that made it.
const LABEL: &str = "tenure-test";
const HEALTH_TIMEOUT: Duration = Duration::from_secs(30);

/// The containers to remove when this process is interrupted.
static STARTED: Mutex<Vec<String>> = Mutex::new(Vec::new());

/// Where a server keeps its data.
#[derive(Clone, Copy)]
pub(crate) enum Storage {
    /// In memory: it is never restarted, so that it needs no disk.
    Memory,
    /// On the disk, with this variable in its environment, which may make it flush what it writes.
    Disk(&'static str),
}

/// Running servers. They are removed when this is dropped, and on Ctrl-C.
pub(crate) struct Servers {
    /// The variables that tell the tests where they are.
    variables: Vec<(&'static str, String)>,
}

impl Servers {
    /// Starts one server of each of these images that have one.
    ///
    /// # Errors
    /// When one does not start.
    pub(crate) fn start(images: &[&Image]) -> Result<Self> {
        let images: Vec<_> = images.iter().map(|image| (*image, Storage::Memory)).collect();
        Self::start_with(&images)
    }

    /// The same, with each server's data where it is to be.
    ///
    /// # Errors
    /// When one does not start.
    pub(crate) fn start_with(images: &[(&Image, Storage)]) -> Result<Self> {
        remove_on_interrupt()?;
        let mut servers = Self { variables: Vec::new() };
        for (image, storage) in images {
            let Some(server) = &image.server else { continue };
            let address =
                start(image, server, *storage).with_context(|| format!("cannot run {}", image.tag()))?;
            say(format!("{} runs at {address}", image.name));
            servers.variables.push((server.shared_variable, address));
        }
        Ok(servers)
    }

    /// Puts the addresses of the servers into the environment of `command`.
    pub(crate) fn announce_to<'a>(&self, command: &'a mut Command) -> &'a mut Command {
        command.envs(self.variables.iter().map(|(name, address)| (name, address)))
    }

    /// Where the server of this image is.
    ///
    /// # Errors
    /// When none was started.
    pub(crate) fn address_of(&self, image: &Image) -> Result<&str> {
        let name = image.server.as_ref().map(|server| server.shared_variable);
        let found = self.variables.iter().find(|(variable, _)| Some(*variable) == name);
        found.map(|(_, address)| address.as_str()).with_context(|| format!("no {} was started", image.name))
    }

    /// Runs a program in the container of this image's server, and returns what it printed.
    ///
    /// # Errors
    /// When it fails.
    #[expect(clippy::unused_self, reason = "the server runs while this value lives")]
    pub(crate) fn run_in(&self, image: &Image, program: &[&str]) -> Result<String> {
        docker(["exec", &container_name(image)].iter().chain(program))
    }
}

impl Drop for Servers {
    fn drop(&mut self) {
        remove_started();
        remove_leftovers();
    }
}

/// Removes the containers, networks and volumes of tests whose process has ended.
pub(crate) fn remove_leftovers() {
    let filter = format!("--filter=label={LABEL}");
    let format = |id| format!("--format={{{{.{id}}}}} {{{{.Label \"{LABEL}\"}}}}");
    for (list, id, remove) in [
        (&["ps", "--all"][..], "Names", &["rm", "--force", "--volumes"][..]),
        (&["network", "ls"][..], "Name", &["network", "rm"][..]),
        (&["volume", "ls"][..], "Name", &["volume", "rm"][..]),
    ] {
        let listed = docker(list.iter().copied().chain([filter.as_str(), &format(id)]));
        for line in listed.unwrap_or_default().lines() {
            let Some((id, owner)) = line.split_once(' ') else { continue };
            if is_running(owner) {
                continue;
            }
            say(format!("removing {id}, left behind by process {owner}"));
            // A frozen container answers to nothing but this. A process that waits for a stalled disk cannot be killed.
            let _ = docker(["unpause", id]);
            let _ = docker(["exec", id, "fsfreeze", "-u", "/data"]);
            if let Err(error) = docker(remove.iter().copied().chain([id])) {
                say(format!("  it stays: {error:#}"));
            }
        }
    }
}

fn is_running(process: &str) -> bool {
    if Path::new("/proc/self").exists() {
        return Path::new("/proc").join(process).exists();
    }
    output(&mut command("ps", ["-p", process])).is_ok()
}

fn container_name(image: &Image) -> String {
    format!("tenure-test-shared-{}-{}", image.name.replace(':', "-"), process::id())
}

fn start(image: &Image, server: &Server, storage: Storage) -> Result<String> {
    let name = container_name(image);
    STARTED.lock().unwrap_or_else(std::sync::PoisonError::into_inner).push(name.clone());
    let (program, arguments) = server.command.split_first().context("no program is named")?;
    let mut run = command("docker", ["run", "--detach", "--pull=never"]);
    match storage {
        Storage::Memory => run.arg("--tmpfs=/data"),
        Storage::Disk(variable) => run.arg("--volume=/data").arg(format!("--env={variable}")),
    };
    run.arg(format!("--name={name}"))
        .arg(format!("--label={LABEL}={}", process::id()))
        .arg(format!("--publish=127.0.0.1::{}", server.port))
        .arg(format!("--user={}", server.user))
        .arg(format!("--entrypoint={program}"))
        .arg(image.tag())
        .args(arguments);
    output(&mut run)?;
    let published = docker(["port", &name, &server.port.to_string()])?;
    let endpoint = published.lines().next().context("docker published no port")?.to_owned();
    wait_until_healthy(&name, server.health)?;
    Ok(endpoint)
}

fn wait_until_healthy(name: &str, health: &[&str]) -> Result<()> {
    let deadline = Instant::now() + HEALTH_TIMEOUT;
    // A server that has just started may accept a connection and never answer.
    let bounded = ["exec", name, "timeout", "5"];
    while let Err(error) = docker(bounded.iter().chain(health)) {
        if Instant::now() > deadline {
            let said = docker(["logs", "--tail=5", name]).unwrap_or_default();
            bail!("it does not serve after {HEALTH_TIMEOUT:?}: {error:#}\n{said}");
        }
        thread::sleep(Duration::from_millis(100));
    }
    Ok(())
}

fn remove_started() {
    let names = std::mem::take(&mut *STARTED.lock().unwrap_or_else(std::sync::PoisonError::into_inner));
    for name in names {
        if let Err(error) = docker(["rm", "--force", "--volumes", &name]) {
            say(format!("{name} stays: {error:#}"));
        }
    }
}

fn remove_on_interrupt() -> Result<()> {
    static SET: OnceLock<()> = OnceLock::new();
    if SET.set(()).is_ok() {
        ctrlc::set_handler(|| {
            say("interrupted: removing the servers");
            remove_started();
            process::exit(130);
        })
        .context("cannot listen for Ctrl-C")?;
    }
    Ok(())
}
