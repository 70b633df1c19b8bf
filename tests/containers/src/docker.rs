//! Requests to the Docker engine that testcontainers has no function for.
//!
//! Testcontainers creates, starts, stops, pauses and removes containers. It does not kill a container, does not
//! connect one to a network at a fixed address or disconnect it, pulls a missing image, leaks a container that was created
//! but failed to start, and panics when it removes one outside a runtime. These functions use its engine client directly.

use std::{collections::HashMap, io, process, thread, time::Duration};

use testcontainers::{
    TestcontainersError,
    bollard::{Docker, errors::Error as EngineError, query_parameters::RemoveContainerOptionsBuilder},
    core::{
        client::docker_client_instance,
        error::{ClientError, WaitContainerError},
    },
};
use tokio::runtime;

use crate::{
    error::{ContainerError, with_sources},
    version::Version,
};

/// The request timeout that testcontainers sets.
const REQUEST_TIMEOUT: Duration = Duration::from_secs(120);

const NOT_FOUND: u16 = 404;

/// The label of everything that tests create; its value is the id of their process.
const LABEL: &str = "tenure-test";

/// The client of the engine that testcontainers uses.
pub(crate) async fn engine() -> Result<Docker, ContainerError> {
    docker_client_instance().await.map_err(|error| client_failure("connect", error))
}

/// Fails when the image does not exist, so that testcontainers does not try to pull it.
pub(crate) async fn require_image(version: Version) -> Result<(), ContainerError> {
    let image = version.image();
    match engine().await?.inspect_image(&image).await {
        Ok(_) => Ok(()),
        Err(EngineError::DockerResponseServerError { status_code: NOT_FOUND, .. }) => {
            Err(ContainerError::NoImage { image, variable: version.image_variable() })
        }
        Err(error) => Err(engine_failure(&format!("image inspect {image}"), error)),
    }
}

/// Removes a container in any state, with its volume. Succeeds if the container does not exist.
pub(crate) async fn remove_container(name: &str) -> Result<(), ContainerError> {
    let options = RemoveContainerOptionsBuilder::new().force(true).v(true).build();
    match engine().await?.remove_container(name, Some(options)).await {
        Ok(()) | Err(EngineError::DockerResponseServerError { status_code: NOT_FOUND, .. }) => Ok(()),
        Err(error) => Err(engine_failure(&format!("rm {name}"), error)),
    }
}

/// Runs `work` to its end from a destructor, and blocks meanwhile. Failures are not reported.
///
/// Uses a thread and a runtime of its own: the caller may have no runtime, or be on the thread that drives it.
pub(crate) fn block_on_in_drop(work: impl Future<Output = ()> + Send) {
    let work = || {
        if let Ok(runtime) = runtime::Builder::new_current_thread().enable_all().build() {
            runtime.block_on(work);
        }
    };
    thread::scope(|scope| {
        if let Ok(worker) = thread::Builder::new().spawn_scoped(scope, work) {
            let _ = worker.join();
        }
    });
}

/// The label that marks what this process creates.
pub(crate) fn labels() -> HashMap<String, String> {
    HashMap::from([(LABEL.to_owned(), process::id().to_string())])
}

/// A unique name for a container or network.
pub(crate) fn unique_name(what: &str) -> String {
    format!("tenure-test-{what}-{}-{:08x}", process::id(), fastrand::u32(..))
}

/// Converts an error of testcontainers; `command` is the `docker` command that does the same.
pub(crate) fn failure(command: &str, error: TestcontainersError) -> ContainerError {
    match error {
        TestcontainersError::Client(error) => client_failure(command, error),
        TestcontainersError::WaitContainer(WaitContainerError::StartupTimeout) => timed_out(command),
        error => ContainerError::Docker { command: command.to_owned(), message: with_sources(&error) },
    }
}

fn client_failure(command: &str, error: ClientError) -> ContainerError {
    match error {
        ClientError::Init(error)
        | ClientError::CreateContainer(error)
        | ClientError::RemoveContainer(error)
        | ClientError::StartContainer(error)
        | ClientError::StopContainer(error)
        | ClientError::PauseContainer(error)
        | ClientError::UnpauseContainer(error)
        | ClientError::InspectContainer(error) => engine_failure(command, error),
        error => ContainerError::Docker { command: command.to_owned(), message: with_sources(&error) },
    }
}

/// Converts an error of the engine; `command` is the `docker` command that does the same.
pub(crate) fn engine_failure(command: &str, error: EngineError) -> ContainerError {
    match error {
        EngineError::SocketNotFoundError(path) => {
            ContainerError::NoDocker(io::Error::new(io::ErrorKind::NotFound, path))
        }
        EngineError::HyperLegacyError { .. } | EngineError::IOError { .. } => {
            ContainerError::NoEngine(with_sources(&error))
        }
        EngineError::RequestTimeoutError => timed_out(command),
        EngineError::DockerResponseServerError { message, .. } => {
            ContainerError::Docker { command: command.to_owned(), message }
        }
        error => ContainerError::Docker { command: command.to_owned(), message: with_sources(&error) },
    }
}

fn timed_out(command: &str) -> ContainerError {
    let (what, last) = (format!("`docker {command}`"), "no answer".to_owned());
    ContainerError::TimedOut { what, waited: REQUEST_TIMEOUT, last }
}
