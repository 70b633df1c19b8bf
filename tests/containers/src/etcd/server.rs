//! How one etcd server is started.

use crate::{
    error::ContainerError,
    etcd::admin::EtcdAdmin,
    server::{Server, SharedServer, StoreAdmin},
    spec::ContainerSpec,
    tls::{TlsFiles, write_file_script},
    version::Version,
};

pub(super) const CLIENT_PORT: u16 = 2379;
const TLS_PORT: u16 = 2378;
/// Where etcd listens behind a grpc-proxy.
const PROXIED_PORT: u16 = 2377;

/// An etcd server of the test's own, in a container. Dropping it removes it.
pub type EtcdServer = Server<EtcdAdmin>;

/// An etcd server that many tests use at once, each with keys of its own. No fault can be injected into it.
pub type SharedEtcd = SharedServer<EtcdAdmin>;

impl StoreAdmin for EtcdAdmin {
    const NAME: &'static str = "etcd";

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
        ContainerSpec::new(version, CLIENT_PORT, "etcd", client_flags("single"))
    }
}

impl EtcdServer {
    /// Starts a server with additional flags on etcd's command line, for example `--auth-token-ttl=2`.
    ///
    /// # Errors
    /// As for [`start`](Self::start).
    pub async fn start_with(version: Version, flags: &[&str]) -> Result<Self, ContainerError> {
        let mut arguments = client_flags("single");
        arguments.extend(flags.iter().map(|&flag| flag.to_owned()));
        Self::launch(ContainerSpec::new(version, CLIENT_PORT, "etcd", arguments)).await
    }

    /// Starts a server with additional flags, and with files that the flags may name: each a path below `/data` and its
    /// content.
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
        let script: String =
            files.iter().map(|(path, content)| write_file_script(path, content.as_bytes())).collect();
        let arguments = shell_arguments(&script, arguments);
        Self::launch(ContainerSpec::new(version, CLIENT_PORT, "sh", arguments)).await
    }

    /// Starts a server that clients reach only through etcd's own grpc-proxy.
    ///
    /// # Errors
    /// As for [`start`](Self::start).
    pub async fn start_behind_grpc_proxy(version: Version) -> Result<Self, ContainerError> {
        let mut arguments = client_flags("single");
        arguments.retain(|flag| !flag.contains("client-urls"));
        for flag in ["listen", "advertise"] {
            arguments.push(format!("--{flag}-client-urls=http://127.0.0.1:{PROXIED_PORT}"));
        }
        let script = format!(
            "etcd \"$@\" & exec etcd grpc-proxy start --endpoints=127.0.0.1:{PROXIED_PORT} \
             --listen-addr=0.0.0.0:{CLIENT_PORT}"
        );
        let shell = ["-ec".to_owned(), script, "sh".to_owned()].into_iter().chain(arguments).collect();
        Self::launch(ContainerSpec::new(version, CLIENT_PORT, "sh", shell)).await
    }

    /// Starts a server with a second endpoint, where clients speak TLS and present a certificate.
    ///
    /// # Errors
    /// As for [`start`](Self::start).
    pub async fn start_tls(version: Version, files: &TlsFiles) -> Result<Self, ContainerError> {
        let mut arguments = client_flags("single");
        let urls = |host: &str| format!("http://{host}:{CLIENT_PORT},https://{host}:{TLS_PORT}");
        arguments.retain(|flag| !flag.contains("client-urls"));
        arguments.push(format!("--listen-client-urls={}", urls("0.0.0.0")));
        arguments.push(format!("--advertise-client-urls={}", urls("127.0.0.1")));
        arguments.push("--client-cert-auth".to_owned());
        for (flag, path) in
            [("trusted-ca-file", TlsFiles::CA), ("cert-file", TlsFiles::CERT), ("key-file", TlsFiles::KEY)]
        {
            arguments.push(format!("--{flag}={path}"));
        }
        let arguments = shell_arguments(&files.write_script(), arguments);
        let spec = ContainerSpec::new(version, CLIENT_PORT, "sh", arguments);
        Self::launch(ContainerSpec { second_port: Some(TLS_PORT), ..spec }).await
    }
}

/// The arguments of a shell that runs `script`, and then etcd with `flags`.
fn shell_arguments(script: &str, flags: Vec<String>) -> Vec<String> {
    let script = format!("{script}exec etcd \"$@\"");
    ["-ec".to_owned(), script, "sh".to_owned()].into_iter().chain(flags).collect()
}

/// The flags of every etcd server in tests: its name, data directory and client URLs.
pub(crate) fn client_flags(name: &str) -> Vec<String> {
    vec![
        format!("--name={name}"),
        "--data-dir=/data/etcd".to_owned(),
        format!("--listen-client-urls=http://0.0.0.0:{CLIENT_PORT}"),
        format!("--advertise-client-urls=http://127.0.0.1:{CLIENT_PORT}"),
    ]
}
