//! One container: made, broken, mended, and removed with its data when dropped.

use std::{
    net::TcpListener,
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use testcontainers::{
    ContainerAsync, ContainerRequest, GenericImage, ImageExt,
    bollard::{
        models::{
            HostConfig, Mount, MountType, MountVolumeOptions, NetworkConnectRequest, NetworkDisconnectRequest,
        },
        query_parameters::KillContainerOptionsBuilder,
    },
    core::{ExecCommand, ExecResult, IntoContainerPort},
    runners::AsyncRunner,
};

use super::{
    ContainerError, Version,
    engine::{engine, engine_failure, expect_image, failure, in_drop, labels, remove_container, unique_name},
    harm,
    network::Network,
};

/// Published ports are chosen below the range from which kernels take the ports of
/// outgoing connections: a stopped server's port stays free for its return.
const PORTS: std::ops::Range<u16> = 20_000..32_000;
const ATTEMPTS: usize = 20;

/// How long a server that is stopped may take until it is killed.
const STOP_SECONDS: i32 = 10;
const LAST_LINES: usize = 5;

/// What to run.
#[derive(Debug, Clone)]
pub(super) struct Recipe {
    pub(super) version: Version,
    /// The port inside the container that is published on loopback.
    pub(super) port: u16,
    /// Another one, where clients speak TLS.
    pub(super) secure_port: Option<u16>,
    pub(super) program: &'static str,
    pub(super) arguments: Vec<String>,
    /// Whether it has a disk of its own, and may drop packets.
    pub(super) breakable: bool,
}

impl Recipe {
    /// A server that listens at `port` and keeps its data below `/data`.
    pub(super) fn new(version: Version, port: u16, program: &'static str, arguments: Vec<String>) -> Self {
        Self { version, port, secure_port: None, program, arguments, breakable: false }
    }
}

/// A container that runs, or ran until a fault. Dropping it removes it, its volume too.
#[derive(Debug)]
pub(super) struct Container {
    name: String,
    port: u16,
    secure_port: Option<u16>,
    /// `None` until it has started, also while another takes its place.
    started: Mutex<Option<Arc<ContainerAsync<GenericImage>>>>,
}

impl Container {
    /// Creates and starts a container; takes another port when somebody else took the first.
    pub(super) async fn run(recipe: &Recipe) -> Result<Self, ContainerError> {
        expect_image(recipe.version).await?;
        let mut attempt = 1;
        loop {
            let secure_port = recipe.secure_port.map(|_| free_port()).transpose()?;
            match Self::run_at(free_port()?, secure_port, recipe).await {
                Err(error) if attempt < ATTEMPTS && is_port_taken(&error) => attempt += 1,
                outcome => return outcome,
            }
        }
    }

    async fn run_at(port: u16, secure_port: Option<u16>, recipe: &Recipe) -> Result<Self, ContainerError> {
        let container = Self { name: unique_name("server"), port, secure_port, started: Mutex::new(None) };
        container.create(recipe).await?;
        Ok(container)
    }

    async fn create(&self, recipe: &Recipe) -> Result<(), ContainerError> {
        let started = self.request(recipe).start().await;
        let started = started.map_err(|error| failure(&format!("run {}", self.name), error))?;
        *self.slot() = Some(Arc::new(started));
        Ok(())
    }

    /// No condition to wait for is named: testcontainers waits at the first start only,
    /// and a server that was broken must be waited for in the same way.
    fn request(&self, recipe: &Recipe) -> ContainerRequest<GenericImage> {
        let image = recipe.version.image();
        let (image, tag) = name_and_tag(&image);
        let request = GenericImage::new(image, tag)
            .with_entrypoint(recipe.program)
            .with_cmd(&recipe.arguments)
            .with_container_name(&self.name)
            .with_labels(labels())
            .with_mapped_port(self.port, recipe.port.tcp())
            .with_host_config_modifier(host_config(recipe));
        match (self.secure_port, recipe.secure_port) {
            (Some(outside), Some(inside)) => request.with_mapped_port(outside, inside.tcp()),
            _ => request,
        }
    }

    /// Starts again from nothing: a new container with the same name, port and recipe, and no data.
    pub(super) async fn recreate(&self, recipe: &Recipe) -> Result<(), ContainerError> {
        let former = self.slot().take().and_then(Arc::into_inner);
        match former {
            Some(former) => former.rm().await.map_err(|error| failure(&self.command("rm"), error))?,
            None => remove_container(&self.name).await?,
        }
        self.create(recipe).await
    }

    /// The published address.
    pub(super) fn address(&self) -> String {
        format!("127.0.0.1:{}", self.port)
    }

    /// The published address where clients speak TLS.
    pub(super) fn secure_address(&self) -> Option<String> {
        self.secure_port.map(|port| format!("127.0.0.1:{port}"))
    }

    pub(super) async fn start(&self) -> Result<(), ContainerError> {
        self.started()?.start().await.map_err(|error| failure(&self.command("start"), error))
    }

    /// SIGKILL.
    pub(super) async fn kill(&self) -> Result<(), ContainerError> {
        let options = KillContainerOptionsBuilder::new().signal("KILL").build();
        let killed = engine().await?.kill_container(&self.name, Some(options)).await;
        killed.map_err(|error| engine_failure(&self.command("kill"), error))
    }

    /// SIGTERM, and SIGKILL ten seconds later.
    pub(super) async fn stop(&self) -> Result<(), ContainerError> {
        let stopped = self.started()?.stop_with_timeout(Some(STOP_SECONDS)).await;
        stopped.map_err(|error| failure(&self.command("stop"), error))
    }

    pub(super) async fn pause(&self) -> Result<(), ContainerError> {
        self.started()?.pause().await.map_err(|error| failure(&self.command("pause"), error))
    }

    pub(super) async fn unpause(&self) -> Result<(), ContainerError> {
        self.started()?.unpause().await.map_err(|error| failure(&self.command("unpause"), error))
    }

    pub(super) async fn join(&self, network: &Network, ip: &str) -> Result<(), ContainerError> {
        let request = NetworkConnectRequest {
            container: self.name.clone(),
            endpoint_config: Some(Network::endpoint(ip)),
        };
        let joined = engine().await?.connect_network(network.name(), request).await;
        joined.map_err(|error| engine_failure(&self.command("network connect"), error))
    }

    pub(super) async fn part(&self, network: &Network) -> Result<(), ContainerError> {
        let request = NetworkDisconnectRequest { container: self.name.clone(), force: None };
        let parted = engine().await?.disconnect_network(network.name(), request).await;
        parted.map_err(|error| engine_failure(&self.command("network disconnect"), error))
    }

    /// Runs a program beside the server.
    pub(super) async fn exec<'a>(
        &self,
        command: impl Iterator<Item = &'a str>,
    ) -> Result<ExecResult, ContainerError> {
        let command = ExecCommand::new(command.map(str::to_owned));
        let running = self.started()?.exec(command).await;
        running.map_err(|error| failure(&self.command("exec"), error))
    }

    /// Runs a script of the shell's beside the server, to its end.
    pub(super) async fn shell(&self, script: &str) -> Result<(), ContainerError> {
        let whole = format!("exec 2>&1\n{script}\necho all done");
        let mut running = self.exec(["sh", "-ec", &whole].into_iter()).await?;
        let said = running.stdout_to_vec().await.map_err(|error| failure(&self.command("exec"), error))?;
        let said = String::from_utf8_lossy(&said);
        match said.trim_end().ends_with("all done") {
            true => Ok(()),
            false => {
                Err(ContainerError::Docker { command: self.command("exec"), message: last_lines(&said) })
            }
        }
    }

    /// The same, for a script of which the server may end: whether it still runs.
    pub(super) async fn shell_while_running(&self, script: &str) -> Result<bool, ContainerError> {
        let Err(error) = self.shell(script).await else { return Ok(true) };
        // The script ends with the server, and the engine knows of it a little later.
        for _ in 0..30 {
            if !self.is_running().await? {
                return Ok(false);
            }
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
        Err(error)
    }

    /// Whether the engine says that it runs.
    pub(super) async fn is_running(&self) -> Result<bool, ContainerError> {
        let found = engine().await?.inspect_container(&self.name, None).await;
        let found = found.map_err(|error| engine_failure(&self.command("inspect"), error))?;
        Ok(found.state.and_then(|state| state.running).unwrap_or(false))
    }

    /// What the server printed last, for an error message.
    pub(super) async fn last_words(&self) -> String {
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
        started.ok_or_else(|| ContainerError::Malformed(format!("{} has not been started", self.name)))
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
        in_drop(async {
            match started {
                Some(started) => drop(started),
                None => drop(remove_container(&self.name).await),
            }
        });
    }
}

/// Testcontainers would publish the port on every address, and could not label the volume.
fn host_config(recipe: &Recipe) -> impl Fn(&mut HostConfig) + Send + Sync + use<> {
    let breakable = recipe.breakable;
    move |config| {
        let bindings = config.port_bindings.iter_mut().flat_map(|ports| ports.values_mut());
        for binding in bindings.flatten().flatten() {
            binding.host_ip = Some("127.0.0.1".to_owned());
        }
        // Without a name, so that it goes with the container.
        let volume = Mount {
            target: Some(if breakable { harm::DISK } else { "/data" }.to_owned()),
            typ: Some(MountType::VOLUME),
            volume_options: Some(MountVolumeOptions { labels: Some(labels()), ..Default::default() }),
            ..Default::default()
        };
        config.mounts = Some(vec![volume]);
        if breakable {
            harm::permit(config);
        }
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
    lines[lines.len().saturating_sub(LAST_LINES)..].join("\n")
}

fn free_port() -> Result<u16, ContainerError> {
    (0..ATTEMPTS)
        .map(|_| fastrand::u16(PORTS))
        .find(|port| TcpListener::bind(("127.0.0.1", *port)).is_ok())
        .ok_or_else(|| ContainerError::Malformed(format!("no free loopback port found in {PORTS:?}")))
}

fn is_port_taken(error: &ContainerError) -> bool {
    matches!(error, ContainerError::Docker { message, .. }
        if message.contains("port is already allocated") || message.contains("address already in use"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_port_that_somebody_took_meanwhile_is_told_and_nothing_is_left() {
        let somebody = TcpListener::bind("127.0.0.1:0").unwrap();
        let port = somebody.local_addr().unwrap().port();
        let recipe = Recipe::new(Version::Etcd35, 2379, "etcd", Vec::new());

        let container =
            Container { name: unique_name("server"), port, secure_port: None, started: Mutex::new(None) };
        let refused = container.create(&recipe).await.unwrap_err();
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
