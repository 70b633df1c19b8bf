//! One ZooKeeper server.

mod admin;
mod ensemble;
mod wire;

use std::{env, sync::Arc};

pub use self::{
    admin::{AdminSession, Lifetime, Permitted, Znode, ZookeeperAdmin},
    ensemble::ZookeeperEnsemble,
};
use super::{
    ContainerError, Fault, TlsFiles, Version,
    container::{Container, Recipe},
    fault::Remedy,
    health::{Health, await_health},
    tls::written,
};

const CLIENT_PORT: u16 = 2181;
const SECURE_PORT: u16 = 2281;
const USERS: &str = "/data/jaas.conf";
/// Says that the files of the settings were put in their places.
const PUT: &str = "/data/put";

/// How a server of the tests is set up.
///
/// Its tick is half a second, so that it grants sessions from 1 s to 60 s; an empty container goes after a
/// second.
#[derive(Clone, Debug)]
pub struct ZookeeperSettings {
    configuration: Vec<(String, String)>,
    properties: Vec<(String, String)>,
    files: Vec<(String, Vec<u8>)>,
    tls: Option<TlsFiles>,
}

impl Default for ZookeeperSettings {
    fn default() -> Self {
        let settings =
            Self { configuration: Vec::new(), properties: Vec::new(), files: Vec::new(), tls: None };
        settings
            .set("tickTime", "500")
            .set("maxSessionTimeout", "60000")
            .set("maxClientCnxns", "0")
            .set("dataDir", "/data/zookeeper")
            .set("clientPort", CLIENT_PORT.to_string())
            .set("admin.enableServer", "false")
            .set("4lw.commands.whitelist", "*")
            .property("znode.container.checkIntervalMs", "1000")
            .property("org.slf4j.simpleLogger.defaultLogLevel", "warn")
    }
}

impl ZookeeperSettings {
    /// Sets what stands in `zoo.cfg`; the last value counts.
    pub fn set(mut self, key: impl Into<String>, value: impl Into<String>) -> Self {
        let (key, value) = (key.into(), value.into());
        self.configuration.retain(|(known, _)| *known != key);
        self.configuration.push((key, value));
        self
    }

    /// Sets what stands in `zoo.cfg` where nothing else was said of it.
    fn or(self, key: &str, value: &str) -> Self {
        if self.configuration.iter().any(|(known, _)| known == key) { self } else { self.set(key, value) }
    }

    /// Sets a property of the Java machine's.
    pub fn property(mut self, key: impl Into<String>, value: impl Into<String>) -> Self {
        self.properties.push((key.into(), value.into()));
        self
    }

    /// Puts a file at `path` in the container before the server starts for the first time: below `/data`.
    pub fn file(mut self, path: impl Into<String>, content: impl Into<Vec<u8>>) -> Self {
        self.files.push((path.into(), content.into()));
        self
    }

    /// Adds an endpoint where clients speak TLS and show a certificate.
    pub fn tls(mut self, files: TlsFiles) -> Self {
        self.tls = Some(files);
        self.set("secureClientPort", SECURE_PORT.to_string())
            .set("serverCnxnFactory", "org.apache.zookeeper.server.NettyServerCnxnFactory")
            .set("ssl.keyStore.location", TlsFiles::BOTH)
            .set("ssl.keyStore.type", "PEM")
            .set("ssl.trustStore.location", TlsFiles::CA)
            .set("ssl.trustStore.type", "PEM")
    }

    /// Knows users with their passwords by SASL's DIGEST-MD5.
    pub fn users(self, users: &[(&str, &str)]) -> Self {
        self.set("authProvider.1", "org.apache.zookeeper.server.auth.SASLAuthenticationProvider")
            .property("java.security.auth.login.config", USERS)
            .file(USERS, jaas(users))
    }

    /// What a shell does to run the server.
    fn script(&self) -> String {
        let mut script = "mkdir -p /data/zookeeper\n".to_owned();
        let configuration: String =
            self.configuration.iter().map(|(key, value)| format!("{key}={value}\n")).collect();
        script += &written("/data/zoo.cfg", configuration.as_bytes());
        let mut files = self.tls.as_ref().map(TlsFiles::script).unwrap_or_default();
        for (path, content) in &self.files {
            files += &written(path, content);
        }
        // When it is started again, what stands there by then counts.
        script += &format!("if [ ! -e {PUT} ]; then\n{files}touch {PUT}\nfi\n");
        let properties: String =
            self.properties.iter().map(|(key, value)| format!(" '-D{key}={value}'")).collect();
        // Debian's logger for the console comes first: others are in that folder too.
        let jars = "/usr/share/java/slf4j-simple.jar:/usr/share/java/*";
        let main = "org.apache.zookeeper.server.quorum.QuorumPeerMain";
        script
            + &format!(
                "exec java -Xmx256m -XX:+UseSerialGC -XX:TieredStopAtLevel=1{properties} -cp '{jars}' {main} /data/zoo.cfg"
            )
    }

    fn recipe(&self, version: Version) -> Recipe {
        let arguments = vec!["-ec".to_owned(), self.script()];
        let secure_port = self.tls.as_ref().map(|_| SECURE_PORT);
        Recipe { secure_port, ..Recipe::new(version, CLIENT_PORT, "sh", arguments) }
    }
}

/// Users and passwords, as Java's login modules want them.
fn jaas(users: &[(&str, &str)]) -> String {
    let users: String = users.iter().map(|(user, password)| format!(" user_{user}=\"{password}\"")).collect();
    format!("Server {{ org.apache.zookeeper.server.auth.DigestLoginModule required{users}; }};\n")
}

/// A ZooKeeper server of a test's own, in a container. Dropping it removes it.
#[derive(Debug)]
pub struct ZookeeperServer {
    recipe: Recipe,
    container: Arc<Container>,
    admin: ZookeeperAdmin,
}

impl ZookeeperServer {
    /// Starts a single server with an empty store, and waits until it serves.
    ///
    /// # Errors
    /// When Docker or the image is missing (the error names the remedy), or the
    /// server does not serve within a minute.
    pub async fn start(version: Version) -> Result<Self, ContainerError> {
        Self::start_with(version, &ZookeeperSettings::default()).await
    }

    /// The same with settings of its own.
    ///
    /// # Errors
    /// As for [`start`](Self::start).
    pub async fn start_with(version: Version, settings: &ZookeeperSettings) -> Result<Self, ContainerError> {
        let recipe = settings.recipe(version);
        let container = Container::run(&recipe).await?;
        let server = Self::new(recipe, container);
        server.await_health().await?;
        Ok(server)
    }

    fn new(recipe: Recipe, container: Container) -> Self {
        let admin = ZookeeperAdmin::new(container.address());
        Self { recipe, container: Arc::new(container), admin }
    }

    /// Which ZooKeeper this is.
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

    /// The server's own view of its znodes and sessions.
    pub fn admin(&self) -> &ZookeeperAdmin {
        &self.admin
    }

    /// Replaces the users that it knows by SASL once it is started again.
    ///
    /// # Errors
    /// When the server does not run.
    pub async fn replace_users(&self, users: &[(&str, &str)]) -> Result<(), ContainerError> {
        self.container.shell(&written(USERS, jaas(users).as_bytes())).await
    }

    /// The same for what it needs to speak TLS.
    ///
    /// # Errors
    /// When the server does not run.
    pub async fn replace_tls(&self, files: &TlsFiles) -> Result<(), ContainerError> {
        self.container.shell(&files.script()).await
    }

    /// Runs a program inside the server's container, where ZooKeeper listens at `127.0.0.1:2181`, and
    /// gives what it prints, line by line as it comes.
    ///
    /// # Errors
    /// When it cannot be run.
    pub async fn run(&self, command: &[&str]) -> Result<super::Program, ContainerError> {
        super::Program::run(&self.container, command).await
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

    fn container(&self) -> &Arc<Container> {
        &self.container
    }

    fn fault(&self, remedy: Remedy) -> Fault {
        Fault::new(remedy, self.container.clone(), self.health())
    }

    fn health(&self) -> Health {
        Health::Zookeeper(self.admin.clone())
    }

    async fn await_health(&self) -> Result<(), ContainerError> {
        await_health(&self.container, &self.health()).await
    }
}

/// A ZooKeeper that many tests use at once, each below a znode of its own. It cannot be broken.
#[derive(Debug)]
pub struct SharedZookeeper {
    version: Version,
    admin: ZookeeperAdmin,
    own: Option<ZookeeperServer>,
}

impl SharedZookeeper {
    /// The server that `cargo xtask test` has started for all tests, by
    /// [`Version::shared_variable`]; without one, a server of this test's own.
    ///
    /// # Errors
    /// As for [`ZookeeperServer::start`], and when the shared server does not answer.
    pub async fn get(version: Version) -> Result<Self, ContainerError> {
        let Ok(endpoint) = env::var(version.shared_variable()) else {
            let server = ZookeeperServer::start(version).await?;
            return Ok(Self { version, admin: server.admin.clone(), own: Some(server) });
        };
        let admin = ZookeeperAdmin::new(endpoint);
        admin.health().await?;
        Ok(Self { version, admin, own: None })
    }

    /// Which ZooKeeper this is.
    pub fn version(&self) -> Version {
        self.version
    }

    /// Where it listens: `host:port`.
    pub fn endpoint(&self) -> String {
        self.admin.endpoint().to_owned()
    }

    /// The server's own view of its znodes and sessions, those of other tests among them.
    pub fn admin(&self) -> &ZookeeperAdmin {
        &self.admin
    }

    /// Whether no other test uses this server.
    pub fn is_own(&self) -> bool {
        self.own.is_some()
    }
}
