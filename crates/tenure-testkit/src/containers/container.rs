//! One container: made, broken, mended, and removed with its data when dropped.

use std::net::TcpListener;

use super::{
    ContainerError, Version,
    docker::{docker, docker_in_drop, label, unique_name},
    network::Network,
};

/// Published ports are chosen below the range from which kernels take the ports of
/// outgoing connections: a stopped server's port stays free for its return.
const PORTS: std::ops::Range<u16> = 20_000..32_000;
const ATTEMPTS: usize = 20;

/// What to run.
#[derive(Debug, Clone)]
pub(super) struct Recipe {
    pub(super) version: Version,
    /// The port inside the container that is published on loopback.
    pub(super) port: u16,
    pub(super) program: &'static str,
    pub(super) arguments: Vec<String>,
}

/// A container that has been created. Dropping it removes it, its volume too.
#[derive(Debug)]
pub(super) struct Container {
    name: String,
    port: u16,
}

impl Container {
    /// Creates a container without starting it.
    pub(super) async fn create(recipe: &Recipe) -> Result<Self, ContainerError> {
        let container = Self { name: unique_name("server"), port: free_port()? };
        container.docker_create(recipe).await?;
        Ok(container)
    }

    /// Creates and starts a container; takes another port when somebody else took the first.
    pub(super) async fn run(recipe: &Recipe) -> Result<Self, ContainerError> {
        let mut attempt = 1;
        loop {
            let container = Self::create(recipe).await?;
            match container.start().await {
                Ok(()) => return Ok(container),
                Err(error) if attempt < ATTEMPTS && is_port_taken(&error) => attempt += 1,
                Err(error) => return Err(error),
            }
        }
    }

    async fn docker_create(&self, recipe: &Recipe) -> Result<(), ContainerError> {
        let Recipe { version, port, program, arguments } = recipe;
        let image = version.image();
        let mut command = vec![
            "create".to_owned(),
            "--pull=never".to_owned(),
            format!("--name={}", self.name),
            format!("--label={}", label()),
            format!("--publish=127.0.0.1:{}:{port}", self.port),
            format!("--mount=type=volume,target=/data,volume-label={}", label()),
            format!("--entrypoint={program}"),
            image.clone(),
        ];
        command.extend_from_slice(arguments);
        match docker(command).await {
            Err(ContainerError::Docker { message, .. }) if message.contains("No such image") => {
                Err(ContainerError::NoImage { image, variable: version.image_variable() })
            }
            created => created.map(|_| ()),
        }
    }

    /// Starts again from nothing: a new container with the same name, port and recipe, and no data.
    pub(super) async fn recreate(&self, recipe: &Recipe) -> Result<(), ContainerError> {
        self.remove().await?;
        self.docker_create(recipe).await?;
        self.start().await
    }

    /// The published address.
    pub(super) fn address(&self) -> String {
        format!("127.0.0.1:{}", self.port)
    }

    pub(super) async fn start(&self) -> Result<(), ContainerError> {
        self.docker(&["start"]).await
    }

    /// SIGKILL.
    pub(super) async fn kill(&self) -> Result<(), ContainerError> {
        self.docker(&["kill", "--signal=KILL"]).await
    }

    /// SIGTERM, and SIGKILL ten seconds later.
    pub(super) async fn stop(&self) -> Result<(), ContainerError> {
        self.docker(&["stop", "--time=10"]).await
    }

    pub(super) async fn pause(&self) -> Result<(), ContainerError> {
        self.docker(&["pause"]).await
    }

    pub(super) async fn unpause(&self) -> Result<(), ContainerError> {
        self.docker(&["unpause"]).await
    }

    pub(super) async fn join(&self, network: &Network, ip: &str) -> Result<(), ContainerError> {
        let ip = format!("--ip={ip}");
        docker(["network", "connect", &ip, network.name(), &self.name]).await.map(|_| ())
    }

    pub(super) async fn part(&self, network: &Network) -> Result<(), ContainerError> {
        docker(["network", "disconnect", network.name(), &self.name]).await.map(|_| ())
    }

    /// What the server printed last, for an error message.
    pub(super) async fn last_words(&self) -> String {
        docker(["logs", "--tail=5", &self.name]).await.unwrap_or_else(|error| error.to_string())
    }

    pub(super) fn start_in_drop(&self) {
        docker_in_drop(&["start", &self.name]);
    }

    pub(super) fn unpause_in_drop(&self) {
        docker_in_drop(&["unpause", &self.name]);
    }

    pub(super) fn join_in_drop(&self, network: &Network, ip: &str) {
        docker_in_drop(&["network", "connect", "--ip", ip, network.name(), &self.name]);
    }

    async fn remove(&self) -> Result<(), ContainerError> {
        self.docker(&["rm", "--force", "--volumes"]).await
    }

    async fn docker(&self, arguments: &[&str]) -> Result<(), ContainerError> {
        docker(arguments.iter().chain([&self.name.as_str()])).await.map(|_| ())
    }
}

impl Drop for Container {
    fn drop(&mut self) {
        docker_in_drop(&["rm", "--force", "--volumes", &self.name]);
    }
}

fn free_port() -> Result<u16, ContainerError> {
    (0..ATTEMPTS)
        .map(|_| fastrand::u16(PORTS))
        .find(|port| TcpListener::bind(("127.0.0.1", *port)).is_ok())
        .ok_or_else(|| ContainerError::Malformed(format!("no free loopback port found in {PORTS:?}")))
}

pub(super) fn is_port_taken(error: &ContainerError) -> bool {
    matches!(error, ContainerError::Docker { message, .. }
        if message.contains("port is already allocated") || message.contains("address already in use"))
}
