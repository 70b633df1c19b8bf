//! The settings of a Consul server in tests.

use crate::{spec::ContainerSpec, tls::TlsFiles, version::Version};

pub(super) const PORT: u16 = 8500;
const TLS_PORT: u16 = 8501;

/// Servers of a test are on one machine, and so are all its clients. Elections of Raft take a second or two.
const DEFAULTS: &str = "limits { http_max_conns_per_client = 10000 } performance { raft_multiplier = 1 }";

/// The settings of a Consul server in tests.
///
/// By default everybody may read and write, and there is no TLS.
#[derive(Clone, Debug, Default)]
pub struct ConsulSettings {
    hcl: Vec<String>,
    tls: Option<TlsFiles>,
}

impl ConsulSettings {
    /// The token that may do everything, of a server with [ACLs](Self::acl).
    pub const MANAGEMENT_TOKEN: &'static str = "5e9235af-9fb9-4c3b-e9d9-37f2b1daa681";

    /// Adds to the configuration, in HCL.
    pub fn hcl(mut self, text: impl Into<String>) -> Self {
        self.hcl.push(text.into());
        self
    }

    /// Nothing is allowed without a token.
    pub fn acl(self) -> Self {
        let token = Self::MANAGEMENT_TOKEN;
        self.hcl(format!(
            "acl {{ enabled = true default_policy = \"deny\" tokens {{ master = \"{token}\" }} }}"
        ))
    }

    /// A second endpoint, where clients speak TLS and present a certificate.
    pub fn tls(mut self, files: TlsFiles) -> Self {
        self.tls = Some(files);
        self.hcl(format!(
            "ports {{ https = {TLS_PORT} }} verify_incoming_https = true ca_file = \"{}\" cert_file = \"{}\" key_file = \"{}\"",
            TlsFiles::CA,
            TlsFiles::CERT,
            TlsFiles::KEY
        ))
    }

    /// A server with further arguments on its command line.
    pub(super) fn spec(&self, version: Version, arguments: Vec<String>) -> ContainerSpec {
        let own = ["agent", "-server", "-client=0.0.0.0", "-data-dir=/data/consul", "-disable-host-node-id"];
        let ports = ["-dns-port=-1", "-grpc-port=-1"];
        let texts = [DEFAULTS.to_owned()].into_iter().chain(self.hcl.iter().cloned());
        let arguments = own.into_iter().chain(ports).map(str::to_owned).chain(arguments);
        let arguments = arguments.chain(texts.map(|text| format!("-hcl={text}")));
        match &self.tls {
            None => ContainerSpec::new(version, PORT, "consul", arguments.collect()),
            Some(files) => {
                let script = format!("{}exec consul \"$@\"", files.write_script());
                let shell = ["-ec".to_owned(), script, "sh".to_owned()];
                let spec =
                    ContainerSpec::new(version, PORT, "sh", shell.into_iter().chain(arguments).collect());
                ContainerSpec { second_port: Some(TLS_PORT), ..spec }
            }
        }
    }
}
