//! The settings of a Redis or Valkey server in tests.

use crate::{
    spec::ContainerSpec,
    tls::{TlsFiles, write_file_script},
    version::Version,
};

pub(super) const PORT: u16 = 6379;
const TLS_PORT: u16 = 6380;

/// The settings of a Redis or Valkey server in tests.
///
/// By default everybody may log in without a password, nothing is written to the disk, and there is no TLS.
#[derive(Clone, Debug)]
pub struct RedisSettings {
    configuration: Vec<(String, String)>,
    tls: Option<TlsFiles>,
}

impl Default for RedisSettings {
    fn default() -> Self {
        Self { configuration: Vec::new(), tls: None }
            .set("bind", "*")
            .set("protected-mode", "no")
            .set("dir", "/data")
            .set("save", "\"\"")
            .set("appendonly", "no")
            .set("repl-diskless-sync-delay", "0")
    }
}

impl RedisSettings {
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
        let run = "exec $(command -v valkey-server redis-server | head -n 1) /data/server.conf";
        let arguments = vec!["-ec".to_owned(), format!("{configuration}{tls}{run}")];
        ContainerSpec {
            second_port: self.tls.as_ref().map(|_| TLS_PORT),
            ..ContainerSpec::new(version, PORT, "sh", arguments)
        }
    }
}
