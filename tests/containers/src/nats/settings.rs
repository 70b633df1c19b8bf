//! The settings of a NATS server in tests.

use crate::{
    spec::ContainerSpec,
    tls::{TlsFiles, write_file_script},
    version::Version,
};

pub(super) const PORT: u16 = 4222;
const MONITORING_PORT: u16 = 8222;

/// Where the file with the configuration is.
pub(super) const FILE: &str = "/data/nats.conf";

/// The settings of a NATS server in tests.
///
/// By default it has JetStream, everybody may do everything, and there is no TLS.
#[derive(Clone, Debug, Default)]
pub struct NatsSettings {
    configuration: String,
    users: String,
    sync_always: bool,
    tls: Option<TlsFiles>,
}

impl NatsSettings {
    /// Adds lines of the server's configuration file.
    pub fn configuration(mut self, lines: &str) -> Self {
        self.configuration += lines;
        self.configuration += "\n";
        self
    }

    /// Only users with a login may connect: this one, others that are added, and the administrator. `permissions` are as in the configuration
    /// file, such as `publish: ["a.>"], subscribe: "_INBOX.>"`; without any the user may do everything.
    pub fn user(mut self, user: &str, password: &str, permissions: &str) -> Self {
        let permissions = if permissions.is_empty() {
            String::new()
        } else {
            format!(", permissions: {{ {permissions} }}")
        };
        self.users += &format!("    {{ user: \"{user}\", password: \"{password}\"{permissions} }}\n");
        self
    }

    /// Flushes each write to the disk before it is acknowledged.
    pub fn sync_always(mut self) -> Self {
        self.sync_always = true;
        self
    }

    /// Clients may speak TLS, at the same endpoint, and have to present a certificate then.
    pub fn tls(mut self, files: TlsFiles) -> Self {
        self.tls = Some(files);
        self
    }

    pub(super) fn spec(&self, version: Version) -> ContainerSpec {
        let tls = self.tls.as_ref().map(TlsFiles::write_script).unwrap_or_default();
        let configuration = write_file_script(FILE, self.text().as_bytes());
        let script = format!("{tls}{configuration}exec nats-server --config {FILE}");
        ContainerSpec {
            second_port: Some(MONITORING_PORT),
            ..ContainerSpec::new(version, PORT, "sh", vec!["-ec".to_owned(), script])
        }
    }

    /// The configuration file.
    pub(super) fn text(&self) -> String {
        let sync = if self.sync_always { "sync_interval: always" } else { "" };
        let mut text = format!(
            "listen: 0.0.0.0:{PORT}\nhttp: 0.0.0.0:{MONITORING_PORT}\njetstream {{ store_dir: /data/nats\n{sync} }}\n{}",
            self.configuration
        );
        if !self.users.is_empty() {
            text += &format!(
                "authorization {{ users: [\n    {{ user: admin, password: admin }}\n{}] }}\n",
                self.users
            );
        }
        if self.tls.is_some() {
            // The administrator speaks none.
            text += &format!(
                "tls {{ ca_file: {}, cert_file: {}, key_file: {}, verify: true }}\nallow_non_tls: true\n",
                TlsFiles::CA,
                TlsFiles::CERT,
                TlsFiles::KEY
            );
        }
        text
    }
}
