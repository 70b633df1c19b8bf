//! The settings of a ZooKeeper server in tests.

use crate::{
    spec::ContainerSpec,
    tls::{TlsFiles, write_file_script},
    version::Version,
};

const CLIENT_PORT: u16 = 2181;
const TLS_PORT: u16 = 2281;
const JAAS_FILE: &str = "/data/jaas.conf";
/// Exists once the files of the settings have been written.
const FILES_WRITTEN_MARKER: &str = "/data/files-written";

/// The settings of a ZooKeeper server in tests.
///
/// By default the tick is half a second and the server grants sessions from 1 s to 60 s; it deletes an empty container
/// znode after a second.
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
    /// Sets a key of `zoo.cfg`. The last value counts.
    pub fn set(mut self, key: impl Into<String>, value: impl Into<String>) -> Self {
        let (key, value) = (key.into(), value.into());
        self.configuration.retain(|(existing, _)| *existing != key);
        self.configuration.push((key, value));
        self
    }

    /// Sets a key of `zoo.cfg` that has no value yet.
    pub(super) fn set_default(self, key: &str, value: &str) -> Self {
        let is_set = self.configuration.iter().any(|(existing, _)| existing == key);
        if is_set { self } else { self.set(key, value) }
    }

    /// Sets a system property of the Java virtual machine.
    pub fn property(mut self, key: impl Into<String>, value: impl Into<String>) -> Self {
        self.properties.push((key.into(), value.into()));
        self
    }

    /// Writes a file before the server starts for the first time. `path` is below `/data`.
    pub fn file(mut self, path: impl Into<String>, content: impl Into<Vec<u8>>) -> Self {
        self.files.push((path.into(), content.into()));
        self
    }

    /// Adds an endpoint where clients speak TLS and present a certificate.
    pub fn tls(mut self, files: TlsFiles) -> Self {
        self.tls = Some(files);
        self.set("secureClientPort", TLS_PORT.to_string())
            .set("serverCnxnFactory", "org.apache.zookeeper.server.NettyServerCnxnFactory")
            .set("ssl.keyStore.location", TlsFiles::KEY_AND_CERT)
            .set("ssl.keyStore.type", "PEM")
            .set("ssl.trustStore.location", TlsFiles::CA)
            .set("ssl.trustStore.type", "PEM")
    }

    /// Adds users who log in with SASL's DIGEST-MD5, with their passwords.
    pub fn sasl_users(self, users: &[(&str, &str)]) -> Self {
        self.set("authProvider.1", "org.apache.zookeeper.server.auth.SASLAuthenticationProvider")
            .property("java.security.auth.login.config", JAAS_FILE)
            .file(JAAS_FILE, jaas_configuration(users))
    }

    /// A shell script that writes the files and runs the server.
    fn start_script(&self) -> String {
        let mut script = "mkdir -p /data/zookeeper\n".to_owned();
        let configuration: String =
            self.configuration.iter().map(|(key, value)| format!("{key}={value}\n")).collect();
        script += &write_file_script("/data/zoo.cfg", configuration.as_bytes());
        let mut files = self.tls.as_ref().map(TlsFiles::write_script).unwrap_or_default();
        for (path, content) in &self.files {
            files += &write_file_script(path, content);
        }
        // A restart keeps what a test has replaced meanwhile.
        script +=
            &format!("if [ ! -e {FILES_WRITTEN_MARKER} ]; then\n{files}touch {FILES_WRITTEN_MARKER}\nfi\n");
        let properties: String =
            self.properties.iter().map(|(key, value)| format!(" '-D{key}={value}'")).collect();
        // Debian's console logger has to come first: the folder has others too.
        let jars = "/usr/share/java/slf4j-simple.jar:/usr/share/java/*";
        let main = "org.apache.zookeeper.server.quorum.QuorumPeerMain";
        script
            + &format!(
                "exec java -Xmx256m -XX:+UseSerialGC -XX:TieredStopAtLevel=1{properties} -cp '{jars}' {main} /data/zoo.cfg"
            )
    }

    pub(super) fn spec(&self, version: Version) -> ContainerSpec {
        let arguments = vec!["-ec".to_owned(), self.start_script()];
        let second_port = self.tls.as_ref().map(|_| TLS_PORT);
        ContainerSpec { second_port, ..ContainerSpec::new(version, CLIENT_PORT, "sh", arguments) }
    }
}

/// A JAAS configuration with these users and passwords.
fn jaas_configuration(users: &[(&str, &str)]) -> String {
    let users: String = users.iter().map(|(user, password)| format!(" user_{user}=\"{password}\"")).collect();
    format!("Server {{ org.apache.zookeeper.server.auth.DigestLoginModule required{users}; }};\n")
}

/// A shell script that replaces the users of [`ZookeeperSettings::sasl_users`].
pub(super) fn replace_users_script(users: &[(&str, &str)]) -> String {
    write_file_script(JAAS_FILE, jaas_configuration(users).as_bytes())
}
