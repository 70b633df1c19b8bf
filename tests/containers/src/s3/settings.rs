//! The settings of an S3 server in tests.

use serde_json::{Value, json};

use crate::{
    s3::admin::{ACCESS_KEY, BUCKET, SECRET},
    spec::ContainerSpec,
    tls::{TlsFiles, write_file_script},
    version::Version,
};

const PORT: u16 = 8333;
const TLS_PORT: u16 = 8334;

const START: &str = include_str!("../../seaweedfs/start.sh");

/// Where the identities are.
pub(super) const IDENTITIES: &str = "/data/s3.json";

/// The settings of an S3 server in tests.
///
/// By default it knows the access key `admin` with the secret `admin-secret`, which may do everything, and has no TLS.
#[derive(Clone, Debug, Default)]
pub struct S3Settings {
    identities: Vec<Value>,
    tls: Option<TlsFiles>,
    ignores_conditions: bool,
}

impl S3Settings {
    /// Adds an access key that may do this, for example `Read:suite` and `List:suite`.
    pub fn identity(mut self, key: &str, secret: &str, actions: &[&str]) -> Self {
        self.identities.push(identity(key, secret, actions));
        self
    }

    /// Speaks TLS as well, at an endpoint of its own.
    pub fn tls(mut self, files: TlsFiles) -> Self {
        self.tls = Some(files);
        self
    }

    /// Runs rclone instead of SeaweedFS: it accepts `If-Match`, and ignores it. It knows the key of the administrator only.
    pub fn ignores_conditions(mut self) -> Self {
        self.ignores_conditions = true;
        self
    }

    pub(super) fn spec(&self, version: Version) -> ContainerSpec {
        if self.ignores_conditions {
            let script = format!(
                "mkdir -p /data/{BUCKET}\nexec rclone serve s3 --addr=:{PORT} --auth-key={ACCESS_KEY},{SECRET} /data"
            );
            return ContainerSpec::new(version, PORT, "sh", vec!["-ec".to_owned(), script]);
        }
        let mut script = String::new();
        if !self.identities.is_empty() {
            // They may have been changed before a restart.
            let write = write_file_script(IDENTITIES, self.identities_file().as_bytes());
            script = format!("test -e {IDENTITIES} || {write}");
        }
        let mut flags = Vec::new();
        if let Some(files) = &self.tls {
            script += &files.write_script();
            flags = vec![
                format!("-s3.port.https={TLS_PORT}"),
                format!("-s3.cert.file={}", TlsFiles::CERT),
                format!("-s3.key.file={}", TlsFiles::KEY),
            ];
        }
        let arguments =
            ["-ec".to_owned(), script + START, "sh".to_owned()].into_iter().chain(flags).collect();
        ContainerSpec {
            second_port: self.tls.as_ref().map(|_| TLS_PORT),
            ..ContainerSpec::new(version, PORT, "sh", arguments)
        }
    }

    /// The file with the identities.
    pub(super) fn identities_file(&self) -> String {
        let admin = identity(ACCESS_KEY, SECRET, &["Admin", "Read", "Write", "List"]);
        let identities: Vec<_> = std::iter::once(&admin).chain(&self.identities).collect();
        json!({ "identities": identities }).to_string()
    }
}

fn identity(key: &str, secret: &str, actions: &[&str]) -> Value {
    json!({ "name": key, "credentials": [{ "accessKey": key, "secretKey": secret }], "actions": actions })
}
