//! The servers that all tests of a run share, and the clearing away of what tests left behind.

use std::{
    path::Path,
    process::{self, Command},
    sync::{Mutex, OnceLock},
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, bail};

use crate::{
    docker::docker,
    images::{IMAGES, Image},
    shell::{command, output, say},
};

/// The label on everything that tests make; its value is the id of the process that made it.
const LABEL: &str = "tenure-test";
const PATIENCE: Duration = Duration::from_secs(30);

/// The containers to remove when this process is interrupted.
static STARTED: Mutex<Vec<String>> = Mutex::new(Vec::new());

/// Running servers. They are removed when this is dropped, and on Ctrl-C.
pub(crate) struct Servers {
    /// The variables that tell the tests where they are.
    variables: Vec<(&'static str, String)>,
}

impl Servers {
    /// Starts one server of each image.
    ///
    /// # Errors
    /// When one does not start.
    pub(crate) fn start() -> Result<Self> {
        remove_on_interrupt()?;
        let mut servers = Self { variables: Vec::new() };
        for image in &IMAGES {
            let endpoint = start(image).with_context(|| format!("cannot run {}", image.tag()))?;
            say(format!("{} runs at {endpoint}", image.name));
            servers.variables.push((image.shared_variable, endpoint));
        }
        Ok(servers)
    }

    /// Adds to `command`'s environment where the servers are.
    pub(crate) fn tell<'a>(&self, command: &'a mut Command) -> &'a mut Command {
        command.envs(self.variables.iter().map(|(name, endpoint)| (name, endpoint)))
    }

    /// The newest server's `host:port`.
    pub(crate) fn newest(&self) -> Result<&str> {
        self.variables.last().map(|(_, endpoint)| endpoint.as_str()).context("no server was started")
    }
}

impl Drop for Servers {
    fn drop(&mut self) {
        remove_started();
        remove_leftovers();
    }
}

/// Removes the containers, networks and volumes of tests whose process is no more.
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

fn start(image: &Image) -> Result<String> {
    let name = format!("tenure-test-shared-{}-{}", image.name.replace(':', "-"), process::id());
    STARTED.lock().unwrap_or_else(std::sync::PoisonError::into_inner).push(name.clone());
    docker([
        "run",
        "--detach",
        "--pull=never",
        &format!("--name={name}"),
        &format!("--label={LABEL}={}", process::id()),
        "--publish=127.0.0.1::2379",
        // A store that nobody restarts needs no disk, and is fast without.
        "--tmpfs=/data",
        "--entrypoint=etcd",
        &image.tag(),
        "--data-dir=/data/etcd",
        "--listen-client-urls=http://0.0.0.0:2379",
        "--advertise-client-urls=http://127.0.0.1:2379",
    ])?;
    let published = docker(["port", &name, "2379/tcp"])?;
    let endpoint = published.lines().next().context("docker published no port")?.to_owned();
    wait_until_healthy(&name)?;
    Ok(endpoint)
}

fn wait_until_healthy(name: &str) -> Result<()> {
    let deadline = Instant::now() + PATIENCE;
    while let Err(error) = docker(["exec", "--env=ETCDCTL_API=3", name, "etcdctl", "endpoint", "health"]) {
        if Instant::now() > deadline {
            let said = docker(["logs", "--tail=5", name]).unwrap_or_default();
            bail!("it does not serve after {PATIENCE:?}: {error:#}\n{said}");
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
