//! The settings of a Redis or Valkey server in tests.

use crate::{
    spec::ContainerSpec,
    tls::{TlsFiles, write_file_script},
    version::Version,
};

pub(super) const PORT: u16 = 6379;
const TLS_PORT: u16 = 6380;
const RUN: &str = "exec $(command -v valkey-server || command -v redis-server) /data/server.conf";

/// The settings of a Redis or Valkey server in tests.
///
/// By default everybody may log in without a password, nothing is written to the disk, and there is no TLS.
#[derive(Clone, Debug)]
pub struct RedisSettings {
    configuration: Vec<(String, String)>,
    is_sentinel: bool,
    tls: Option<TlsFiles>,
}

impl Default for RedisSettings {
    fn default() -> Self {
        Self { configuration: Vec::new(), is_sentinel: false, tls: None }
            .set("bind", "*")
            .set("protected-mode", "no")
            .set("dir", "/data")
            .set("save", "\"\"")
            .set("appendonly", "no")
            .set("repl-diskless-sync-delay", "0")
            .set("repl-ping-replica-period", "1")
            .set("repl-timeout", "3")
    }
}

impl RedisSettings {
    /// A Sentinel that watches nothing, instead of a server.
    pub fn sentinel() -> Self {
        let settings = Self { configuration: Vec::new(), is_sentinel: true, tls: None };
        settings.set("port", PORT.to_string()).set("protected-mode", "no").set("dir", "/data")
    }

    /// Sets a setting of `redis.conf`. The last value counts.
    pub fn set(mut self, key: impl Into<String>, value: impl Into<String>) -> Self {
        let (key, value) = (key.into(), value.into());
        self.configuration.retain(|(existing, _)| *existing != key);
        self.configuration.push((key, value));
        self
    }

    /// Clients may speak TLS, at an [endpoint](crate::Server::tls_endpoint) of its own, and have to present a certificate.
    pub fn tls(mut self, files: TlsFiles) -> Self {
        self.tls = Some(files);
        self.set("tls-port", TLS_PORT.to_string())
            .set("tls-ca-cert-file", TlsFiles::CA)
            .set("tls-cert-file", TlsFiles::CERT)
            .set("tls-key-file", TlsFiles::KEY)
    }

    pub(super) fn spec(&self, version: Version) -> ContainerSpec {
        let configuration: String =
            self.configuration.iter().map(|(key, value)| format!("{key} {value}\n")).collect();
        let configuration = write_file_script("/data/server.conf", configuration.as_bytes());
        let tls = self.tls.as_ref().map(TlsFiles::write_script).unwrap_or_default();
        let mode = if self.is_sentinel { " --sentinel" } else { "" };
        let arguments = vec!["-ec".to_owned(), format!("{configuration}{tls}{RUN}{mode}")];
        ContainerSpec {
            second_port: self.tls.as_ref().map(|_| TLS_PORT),
            ..ContainerSpec::new(version, PORT, "sh", arguments)
        }
    }
}
