//! One container: created, stopped, restarted, and removed with its data when dropped.

use std::{
    net::TcpListener,
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use testcontainers::{
    ContainerAsync, ContainerRequest, GenericImage, ImageExt,
    bollard::{
        models::{ContainerState, NetworkConnectRequest, NetworkDisconnectRequest},
        query_parameters::KillContainerOptionsBuilder,
    },
    core::{ExecCommand, ExecResult, IntoContainerPort},
    runners::AsyncRunner,
};

use crate::{
    docker::{
        block_on_in_drop, engine, engine_failure, failure, labels, remove_container, require_image,
        unique_name,
    },
    error::ContainerError,
    network::Network,
    spec::ContainerSpec,
};

/// Published ports are chosen below the range from which kernels take the ports of outgoing connections, so that the port
/// of a stopped server is still free when the server starts again.
const PORTS: std::ops::Range<u16> = 20_000..32_000;
/// How many ports are tried until one is free.
const MAX_PORT_ATTEMPTS: usize = 20;

const EXIT_CHECK_INTERVAL: Duration = Duration::from_millis(100);
/// How often a container that was killed is checked for having ended.
const MAX_EXIT_CHECKS: usize = 600;
/// How often the engine tries to freeze a container whose processes start others.
const MAX_PAUSE_ATTEMPTS: usize = 3;

/// How long a server may take to stop before it is killed.
const STOP_TIMEOUT_SECONDS: i32 = 10;
/// How many lines of a server's log an error message quotes.
const MAX_LOG_LINES: usize = 5;

/// A container that runs, or ran until a fault. Dropping it removes it with its volume.
#[derive(Debug)]
pub(crate) struct Container {
    name: String,
    port: u16,
    second_port: Option<u16>,
    /// `None` before the first start, and while [`recreate`](Self::recreate) replaces the container.
    started: Mutex<Option<Arc<ContainerAsync<GenericImage>>>>,
}

impl Container {
    /// Creates and starts a container. Tries other ports when another process has taken the chosen one.
    pub(crate) async fn run(spec: &ContainerSpec) -> Result<Self, ContainerError> {
        require_image(spec.version).await?;
        let mut attempt = 1;
        loop {
            let second_port = spec.second_port.map(|_| free_port()).transpose()?;
            match Self::run_at(free_port()?, second_port, spec).await {
                Err(error) if attempt < MAX_PORT_ATTEMPTS && is_port_taken(&error) => attempt += 1,
                outcome => return outcome,
            }
        }
    }

    async fn run_at(
        port: u16,
        second_port: Option<u16>,
        spec: &ContainerSpec,
    ) -> Result<Self, ContainerError> {
        let container = Self { name: unique_name("server"), port, second_port, started: Mutex::new(None) };
        container.create(spec).await?;
        Ok(container)
    }

    async fn create(&self, spec: &ContainerSpec) -> Result<(), ContainerError> {
        let started = self.request(spec).start().await;
        let started = started.map_err(|error| failure(&format!("run {}", self.name), error))?;
        *self.slot() = Some(Arc::new(started));
        Ok(())
    }

    /// Sets no readiness condition: testcontainers waits for it at the first start only, and after a fault the caller has
    /// to wait in the same way.
    fn request(&self, spec: &ContainerSpec) -> ContainerRequest<GenericImage> {
        let image = spec.version.image();
        let (image, tag) = name_and_tag(&image);
        let request = GenericImage::new(image, tag)
            .with_entrypoint(spec.program)
            .with_cmd(&spec.arguments)
            .with_container_name(&self.name)
            .with_labels(labels())
            .with_mapped_port(self.port, spec.port.tcp())
            .with_host_config_modifier(spec.host_config());
        match (self.second_port, spec.second_port) {
            (Some(outside), Some(inside)) => request.with_mapped_port(outside, inside.tcp()),
            _ => request,
        }
    }

    /// Replaces the container with an empty one that has the same name, ports and spec.
    pub(crate) async fn recreate(&self, spec: &ContainerSpec) -> Result<(), ContainerError> {
        let former = self.slot().take().and_then(Arc::into_inner);
        match former {
            Some(former) => former.rm().await.map_err(|error| failure(&self.command("rm"), error))?,
            None => remove_container(&self.name).await?,
        }
        self.create(spec).await
    }

    /// The published address.
    pub(crate) fn address(&self) -> String {
        format!("127.0.0.1:{}", self.port)
    }

    /// The second published address, if the server has one.
    pub(crate) fn second_address(&self) -> Option<String> {
        self.second_port.map(|port| format!("127.0.0.1:{port}"))
    }

    pub(crate) async fn start(&self) -> Result<(), ContainerError> {
        self.started()?.start().await.map_err(|error| failure(&self.command("start"), error))
    }

    /// Sends SIGKILL, and waits until the container has ended.
    pub(crate) async fn kill(&self) -> Result<(), ContainerError> {
        match self.signal("SIGKILL").await {
            // A process that waits for a busy disk ends later than the engine waits for it.
            Err(error) if error.to_string().contains("did not receive an exit event") => {
                if self.ends_within(MAX_EXIT_CHECKS).await? { Ok(()) } else { Err(error) }
            }
            sent => sent,
        }
    }

    async fn signal(&self, signal: &str) -> Result<(), ContainerError> {
        let options = KillContainerOptionsBuilder::new().signal(signal).build();
        let sent = engine().await?.kill_container(&self.name, Some(options)).await;
        sent.map_err(|error| engine_failure(&self.command("kill"), error))
    }

    /// Sends this signal, and SIGKILL ten seconds later.
    pub(crate) async fn stop(&self, signal: &str) -> Result<(), ContainerError> {
        if signal != "SIGTERM" {
            // Older engines stop a container by the signal of its image only, which is sent after this one.
            self.signal(signal).await?;
        }
        let stopped = self.started()?.stop_with_timeout(Some(STOP_TIMEOUT_SECONDS)).await;
        stopped.map_err(|error| failure(&self.command("stop"), error))
    }

    pub(crate) async fn pause(&self) -> Result<(), ContainerError> {
        let started = self.started()?;
        let mut attempt = 1;
        loop {
            let paused = started.pause().await.map_err(|error| failure(&self.command("pause"), error));
            match paused {
                // A process that starts another one at the same time escapes.
                Err(ContainerError::Docker { message, .. })
                    if attempt < MAX_PAUSE_ATTEMPTS && message.contains("unable to freeze") =>
                {
                    attempt += 1;
                }
                outcome => return outcome,
            }
        }
    }

    pub(crate) async fn unpause(&self) -> Result<(), ContainerError> {
        self.started()?.unpause().await.map_err(|error| failure(&self.command("unpause"), error))
    }

    pub(crate) async fn connect(&self, network: &Network, ip: &str) -> Result<(), ContainerError> {
        let request = NetworkConnectRequest {
            container: self.name.clone(),
            endpoint_config: Some(Network::endpoint(ip)),
        };
        let connected = engine().await?.connect_network(network.name(), request).await;
        connected.map_err(|error| engine_failure(&self.command("network connect"), error))
    }

    pub(crate) async fn disconnect(&self, network: &Network) -> Result<(), ContainerError> {
        let request = NetworkDisconnectRequest { container: self.name.clone(), force: None };
        let disconnected = engine().await?.disconnect_network(network.name(), request).await;
        disconnected.map_err(|error| engine_failure(&self.command("network disconnect"), error))
    }

    /// Runs a program in the container, beside the server.
    pub(crate) async fn exec<'a>(
        &self,
        command: impl Iterator<Item = &'a str>,
    ) -> Result<ExecResult, ContainerError> {
        let command = ExecCommand::new(command.map(str::to_owned));
        let running = self.started()?.exec(command).await;
        running.map_err(|error| failure(&self.command("exec"), error))
    }

    /// Runs a program in the container, and returns what it printed.
    pub(crate) async fn output<'a>(
        &self,
        command: impl Iterator<Item = &'a str>,
    ) -> Result<String, ContainerError> {
        let failed = |error| failure(&self.command("exec"), error);
        let mut running = self.exec(command).await?;
        let output = running.stdout_to_vec().await.map_err(failed)?;
        let said = running.stderr_to_vec().await.map_err(failed)?;
        match running.exit_code().await.map_err(failed)? {
            Some(0) => Ok(String::from_utf8_lossy(&output).into_owned()),
            _ => {
                let message = String::from_utf8_lossy(&said).trim().to_owned();
                Err(ContainerError::Docker { command: self.command("exec"), message })
            }
        }
    }

    /// Runs a shell script in the container, and waits for its end.
    pub(crate) async fn run_script(&self, script: &str) -> Result<(), ContainerError> {
        let whole = format!("exec 2>&1\n{script}\necho all done");
        let mut running = self.exec(["sh", "-ec", &whole].into_iter()).await?;
        let output = running.stdout_to_vec().await.map_err(|error| failure(&self.command("exec"), error))?;
        let output = String::from_utf8_lossy(&output);
        match output.trim_end().ends_with("all done") {
            true => Ok(()),
            false => {
                Err(ContainerError::Docker { command: self.command("exec"), message: last_lines(&output) })
            }
        }
    }

    /// Runs a script that may end the server. Returns whether the server still runs.
    pub(crate) async fn run_script_if_running(&self, script: &str) -> Result<bool, ContainerError> {
        let Err(error) = self.run_script(script).await else { return Ok(true) };
        // The script ends with the server, and the engine notices a little later.
        match self.ends_within(30).await? {
            true => Ok(false),
            false => Err(error),
        }
    }

    /// Whether the container has ended after at most so many checks.
    async fn ends_within(&self, checks: usize) -> Result<bool, ContainerError> {
        for _ in 0..checks {
            if !self.is_running().await? {
                return Ok(true);
            }
            tokio::time::sleep(EXIT_CHECK_INTERVAL).await;
        }
        Ok(false)
    }

    /// Whether the engine reports the container as running. A paused one is.
    pub(crate) async fn is_running(&self) -> Result<bool, ContainerError> {
        Ok(self.state().await?.running.unwrap_or(false))
    }

    /// Whether the engine reports the container as paused.
    pub(crate) async fn is_paused(&self) -> Result<bool, ContainerError> {
        Ok(self.state().await?.paused.unwrap_or(false))
    }

    async fn state(&self) -> Result<ContainerState, ContainerError> {
        let found = engine().await?.inspect_container(&self.name, None).await;
        let found = found.map_err(|error| engine_failure(&self.command("inspect"), error))?;
        Ok(found.state.unwrap_or_default())
    }

    /// The last lines that the server printed, for an error message.
    pub(crate) async fn last_log_lines(&self) -> String {
        let started = match self.started() {
            Ok(started) => started,
            Err(error) => return error.to_string(),
        };
        match started.stderr_to_vec().await {
            Ok(printed) => last_lines(&String::from_utf8_lossy(&printed)),
            Err(error) => error.to_string(),
        }
    }

    fn started(&self) -> Result<Arc<ContainerAsync<GenericImage>>, ContainerError> {
        let started = self.slot().clone();
        started.ok_or_else(|| ContainerError::Unexpected(format!("{} has not been started", self.name)))
    }

    fn slot(&self) -> std::sync::MutexGuard<'_, Option<Arc<ContainerAsync<GenericImage>>>> {
        self.started.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn command(&self, verb: &str) -> String {
        format!("{verb} {}", self.name)
    }
}

impl Drop for Container {
    fn drop(&mut self) {
        let started = self.slot().take();
        block_on_in_drop(async {
            match started {
                Some(started) => drop(started),
                None => drop(remove_container(&self.name).await),
            }
        });
    }
}

fn name_and_tag(image: &str) -> (&str, &str) {
    match image.rsplit_once(':') {
        Some((name, tag)) if !tag.contains('/') => (name, tag),
        _ => (image, "latest"),
    }
}

fn last_lines(printed: &str) -> String {
    let lines: Vec<_> = printed.lines().collect();
    lines[lines.len().saturating_sub(MAX_LOG_LINES)..].join("\n")
}

fn free_port() -> Result<u16, ContainerError> {
    (0..MAX_PORT_ATTEMPTS)
        .map(|_| fastrand::u16(PORTS))
        .find(|port| TcpListener::bind(("127.0.0.1", *port)).is_ok())
        .ok_or_else(|| ContainerError::Unexpected(format!("no free loopback port found in {PORTS:?}")))
}

fn is_port_taken(error: &ContainerError) -> bool {
    matches!(error, ContainerError::Docker { message, .. }
        if message.contains("port is already allocated") || message.contains("address already in use"))
}

#[cfg(test)]
mod tests {
    use crate::version::Version;

    use super::*;

    #[tokio::test]
    async fn a_port_that_is_taken_is_reported_and_no_container_is_left() {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let port = listener.local_addr().unwrap().port();
        let spec = ContainerSpec::new(Version::Etcd35, 2379, "etcd", Vec::new());

        let container =
            Container { name: unique_name("server"), port, second_port: None, started: Mutex::new(None) };
        let refused = container.create(&spec).await.unwrap_err();
        assert!(is_port_taken(&refused), "{refused}");

        let name = container.name.clone();
        drop(container);
        assert!(engine().await.unwrap().inspect_container(&name, None).await.is_err());
    }

    #[test]
    fn an_image_is_named_with_and_without_a_tag() {
        assert_eq!(name_and_tag("tenure-test/etcd:3.5"), ("tenure-test/etcd", "3.5"));
        assert_eq!(name_and_tag("registry:5000/etcd"), ("registry:5000/etcd", "latest"));
    }
}
