//! One etcd server.

use std::{env, sync::Arc};

use super::{
    ContainerError, EtcdAdmin, Fault, TlsFiles, Version,
    container::{Container, Recipe},
    fault::Remedy,
    health::{Health, await_health},
    tls::written,
};

pub(super) const CLIENT_PORT: u16 = 2379;
const SECURE_PORT: u16 = 2378;

/// An etcd server of a test's own, in a container. Dropping it removes it.
#[derive(Debug)]
pub struct EtcdServer {
    recipe: Recipe,
    container: Arc<Container>,
    admin: EtcdAdmin,
}

impl EtcdServer {
    /// Starts a single etcd with an empty store, and waits until it serves.
    ///
    /// # Errors
    /// When Docker or the image is missing (the error names the remedy), or the
    /// server does not serve within a minute.
    pub async fn start(version: Version) -> Result<Self, ContainerError> {
        Self::start_with(version, &[]).await
    }

    /// The same with more flags on etcd's command line: `--auth-token-ttl=2`, say.
    ///
    /// # Errors
    /// As for [`start`](Self::start).
    pub async fn start_with(version: Version, flags: &[&str]) -> Result<Self, ContainerError> {
        let mut arguments = client_flags("single");
        arguments.extend(flags.iter().map(|&flag| flag.to_owned()));
        Self::launch(Recipe::new(version, CLIENT_PORT, "etcd", arguments)).await
    }

    /// The same with files, which flags may name: each a path below `/data`, and what is in it.
    ///
    /// # Errors
    /// As for [`start`](Self::start).
    pub async fn start_with_files(
        version: Version,
        flags: &[&str],
        files: &[(&str, &str)],
    ) -> Result<Self, ContainerError> {
        let mut arguments = client_flags("single");
        arguments.extend(flags.iter().map(|&flag| flag.to_owned()));
        let script: String = files.iter().map(|(path, content)| written(path, content.as_bytes())).collect();
        Self::launch(Recipe::new(version, CLIENT_PORT, "sh", after(&script, arguments))).await
    }

    /// The same with a second endpoint where clients speak TLS and show a certificate.
    ///
    /// # Errors
    /// As for [`start`](Self::start).
    pub async fn start_tls(version: Version, files: &TlsFiles) -> Result<Self, ContainerError> {
        let mut arguments = client_flags("single");
        let both = |host: &str| format!("http://{host}:{CLIENT_PORT},https://{host}:{SECURE_PORT}");
        arguments.retain(|flag| !flag.contains("client-urls"));
        arguments.push(format!("--listen-client-urls={}", both("0.0.0.0")));
        arguments.push(format!("--advertise-client-urls={}", both("127.0.0.1")));
        arguments.push("--client-cert-auth".to_owned());
        for (flag, path) in
            [("trusted-ca-file", TlsFiles::CA), ("cert-file", TlsFiles::CERT), ("key-file", TlsFiles::KEY)]
        {
            arguments.push(format!("--{flag}={path}"));
        }
        let arguments = after(&files.script(), arguments);
        let recipe = Recipe::new(version, CLIENT_PORT, "sh", arguments);
        Self::launch(Recipe { secure_port: Some(SECURE_PORT), ..recipe }).await
    }

    async fn launch(recipe: Recipe) -> Result<Self, ContainerError> {
        let container = Container::run(&recipe).await?;
        let server = Self::new(recipe, container);
        server.await_health().await?;
        Ok(server)
    }

    pub(super) fn new(recipe: Recipe, container: Container) -> Self {
        let admin = EtcdAdmin::new(container.address());
        Self { recipe, container: Arc::new(container), admin }
    }

    /// Which etcd this is.
    pub fn version(&self) -> Version {
        self.recipe.version
    }

    /// Where it listens: `127.0.0.1:port`. Stays the same for as long as the server exists, through any fault.
    pub fn endpoint(&self) -> String {
        self.container.address()
    }

    /// Where it listens for clients that speak TLS, when it does.
    pub fn secure_endpoint(&self) -> Option<String> {
        self.container.secure_address()
    }

    /// The server's own view of its keys, leases and users.
    pub fn admin(&self) -> &EtcdAdmin {
        &self.admin
    }

    /// Kills the server (SIGKILL): its connections end, and nobody listens. Its data stays.
    ///
    /// # Errors
    /// When it does not run.
    pub async fn kill(&self) -> Result<Fault, ContainerError> {
        self.container.kill().await?;
        Ok(self.fault(Remedy::Start))
    }

    /// Stops the server as an operator would (SIGTERM). Its data stays.
    ///
    /// # Errors
    /// When docker fails.
    pub async fn stop(&self) -> Result<Fault, ContainerError> {
        self.container.stop().await?;
        Ok(self.fault(Remedy::Start))
    }

    /// Freezes the server: its connections stay open, new ones are accepted, and nothing is answered.
    ///
    /// # Errors
    /// When it does not run.
    pub async fn pause(&self) -> Result<Fault, ContainerError> {
        self.container.pause().await?;
        Ok(self.fault(Remedy::Unpause))
    }

    /// Kills the server and starts it with an empty store at the same endpoint.
    ///
    /// # Errors
    /// When it does not serve within a minute.
    pub async fn wipe(&self) -> Result<(), ContainerError> {
        self.container.recreate(&self.recipe).await?;
        self.await_health().await
    }

    pub(super) fn container(&self) -> &Arc<Container> {
        &self.container
    }

    pub(super) fn fault(&self, remedy: Remedy) -> Fault {
        Fault::new(remedy, self.container.clone(), self.health())
    }

    pub(super) async fn await_health(&self) -> Result<(), ContainerError> {
        await_health(&self.container, &self.health()).await
    }

    fn health(&self) -> Health {
        Health::Etcd(self.admin.clone())
    }
}

/// What a shell is given to run etcd with `flags` after `script`.
fn after(script: &str, flags: Vec<String>) -> Vec<String> {
    let script = format!("{script}exec etcd \"$@\"");
    ["-ec".to_owned(), script, "sh".to_owned()].into_iter().chain(flags).collect()
}

/// The flags by which any etcd of the tests listens and stores.
pub(super) fn client_flags(name: &str) -> Vec<String> {
    vec![
        format!("--name={name}"),
        "--data-dir=/data/etcd".to_owned(),
        format!("--listen-client-urls=http://0.0.0.0:{CLIENT_PORT}"),
        format!("--advertise-client-urls=http://127.0.0.1:{CLIENT_PORT}"),
    ]
}

/// An etcd that many tests use at once, each under keys of its own. It cannot be broken.
#[derive(Debug)]
pub struct SharedEtcd {
    version: Version,
    admin: EtcdAdmin,
    own: Option<EtcdServer>,
}

impl SharedEtcd {
    /// The server that `cargo xtask test` has started for all tests, by
    /// [`Version::shared_variable`]; without one, a server of this test's own.
    ///
    /// # Errors
    /// As for [`EtcdServer::start`], and when the shared server does not answer.
    pub async fn get(version: Version) -> Result<Self, ContainerError> {
        let Ok(endpoint) = env::var(version.shared_variable()) else {
            let server = EtcdServer::start(version).await?;
            return Ok(Self { version, admin: server.admin.clone(), own: Some(server) });
        };
        let admin = EtcdAdmin::new(endpoint);
        admin.health().await?;
        Ok(Self { version, admin, own: None })
    }

    /// Which etcd this is.
    pub fn version(&self) -> Version {
        self.version
    }

    /// Where it listens: `host:port`.
    pub fn endpoint(&self) -> String {
        self.admin.endpoint().to_owned()
    }

    /// The server's own view of its keys and leases, those of other tests among them.
    pub fn admin(&self) -> &EtcdAdmin {
        &self.admin
    }

    /// Whether no other test uses this server.
    pub fn is_own(&self) -> bool {
        self.own.is_some()
    }
}
