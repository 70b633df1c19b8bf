//! How one S3 server is started.

use crate::{
    error::ContainerError,
    s3::{
        admin::S3Admin,
        settings::{IDENTITIES, S3Settings},
    },
    server::{Server, SharedServer, StoreAdmin},
    spec::ContainerSpec,
    tls::write_file_script,
    version::Version,
};

/// An S3 server of the test's own, in a container. Dropping it removes it.
pub type S3Server = Server<S3Admin>;

/// An S3 server that many tests use at once, each below a prefix of its own. No fault can be injected into it.
pub type SharedS3 = SharedServer<S3Admin>;

impl StoreAdmin for S3Admin {
    const NAME: &'static str = "the S3 server";

    fn at(endpoint: String) -> Self {
        Self::new(endpoint)
    }

    fn endpoint(&self) -> &str {
        self.endpoint()
    }

    async fn health(&self) -> Result<(), ContainerError> {
        self.health().await
    }

    fn default_spec(version: Version) -> ContainerSpec {
        S3Settings::default().spec(version)
    }
}

impl S3Server {
    /// Starts a server with these settings.
    ///
    /// # Errors
    /// As for [`start`](Self::start).
    pub async fn start_with(version: Version, settings: &S3Settings) -> Result<Self, ContainerError> {
        Self::launch(settings.spec(version)).await
    }

    /// Replaces the access keys, as an operator does: those of `settings` and the administrator's are known from soon on, and after
    /// restarts too.
    ///
    /// # Errors
    /// When the server does not run.
    pub async fn set_identities(&self, settings: &S3Settings) -> Result<(), ContainerError> {
        let write = write_file_script(IDENTITIES, settings.identities_file().as_bytes());
        let script = format!("{write}kill -HUP 1");
        self.container().output(["sh", "-ec", &script].into_iter()).await.map(drop)
    }
}
