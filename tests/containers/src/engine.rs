//! Docker's engine, for what testcontainers has no function for.
//!
//! Testcontainers creates, starts, stops, freezes and removes containers. It cannot
//! kill one, knows no networks with fixed addresses and no parting from one, pulls an
//! image that is missing, forgets a container that was created but did not start, and
//! panics when it removes one where no runtime is. Its engine's client, which is used here, can.

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

use super::{ContainerError, Version, health::described};

/// Testcontainers' own bound for one request to the engine.
const PATIENCE: Duration = Duration::from_secs(120);

const NOT_FOUND: u16 = 404;

/// The label of everything that tests make; its value is the id of their process.
const LABEL: &str = "tenure-test";

/// The engine, wherever testcontainers finds it.
pub(super) async fn engine() -> Result<Docker, ContainerError> {
    docker_client_instance().await.map_err(|error| client_failure("connect", error))
}

/// Fails when there is no such image, so that nothing tries to pull it.
pub(super) async fn expect_image(version: Version) -> Result<(), ContainerError> {
    let image = version.image();
    match engine().await?.inspect_image(&image).await {
        Ok(_) => Ok(()),
        Err(EngineError::DockerResponseServerError { status_code: NOT_FOUND, .. }) => {
            Err(ContainerError::NoImage { image, variable: version.image_variable() })
        }
        Err(error) => Err(engine_failure(&format!("image inspect {image}"), error)),
    }
}

/// Removes a container with its volume, in whatever state it is; succeeds also when there is none.
pub(super) async fn remove_container(name: &str) -> Result<(), ContainerError> {
    let options = RemoveContainerOptionsBuilder::new().force(true).v(true).build();
    match engine().await?.remove_container(name, Some(options)).await {
        Ok(()) | Err(EngineError::DockerResponseServerError { status_code: NOT_FOUND, .. }) => Ok(()),
        Err(error) => Err(engine_failure(&format!("rm {name}"), error)),
    }
}

/// Does `work` from a destructor: blocks, and has nobody to tell of a failure.
///
/// On a thread and a runtime of its own: there may be no other, or it may be the one that is blocked.
pub(super) fn in_drop(work: impl Future<Output = ()> + Send) {
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

/// The label that marks what this process makes.
pub(super) fn labels() -> HashMap<String, String> {
    HashMap::from([(LABEL.to_owned(), process::id().to_string())])
}

/// A name that nothing else has.
pub(super) fn unique_name(what: &str) -> String {
    format!("tenure-test-{what}-{}-{:08x}", process::id(), fastrand::u32(..))
}

/// Why testcontainers failed at what `docker {command}` does.
pub(super) fn failure(command: &str, error: TestcontainersError) -> ContainerError {
    match error {
        TestcontainersError::Client(error) => client_failure(command, error),
        TestcontainersError::WaitContainer(WaitContainerError::StartupTimeout) => no_answer(command),
        error => ContainerError::Docker { command: command.to_owned(), message: described(&error) },
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
        error => ContainerError::Docker { command: command.to_owned(), message: described(&error) },
    }
}

/// Why the engine failed at what `docker {command}` does.
pub(super) fn engine_failure(command: &str, error: EngineError) -> ContainerError {
    match error {
        EngineError::SocketNotFoundError(path) => {
            ContainerError::NoDocker(io::Error::new(io::ErrorKind::NotFound, path))
        }
        EngineError::HyperLegacyError { .. } | EngineError::IOError { .. } => {
            ContainerError::NoEngine(described(&error))
        }
        EngineError::RequestTimeoutError => no_answer(command),
        EngineError::DockerResponseServerError { message, .. } => {
            ContainerError::Docker { command: command.to_owned(), message }
        }
        error => ContainerError::Docker { command: command.to_owned(), message: described(&error) },
    }
}

fn no_answer(command: &str) -> ContainerError {
    let (what, last) = (format!("`docker {command}`"), "no answer".to_owned());
    ContainerError::TimedOut { what, waited: PATIENCE, last }
}
