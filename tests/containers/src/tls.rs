//! The files that a server needs for TLS.

use base64::{Engine as _, prelude::BASE64_STANDARD};

/// A server's certificate and key, and the authority that signs client certificates, in PEM.
#[derive(Clone, Debug)]
pub struct TlsFiles {
    /// The authority's certificate.
    pub ca: String,
    /// The server's certificate, for `127.0.0.1`.
    pub certificate: String,
    /// The server's private key.
    pub key: String,
}

impl TlsFiles {
    pub(crate) const CA: &str = "/data/ca.pem";
    pub(crate) const CERT: &str = "/data/cert.pem";
    pub(crate) const KEY: &str = "/data/key.pem";
    /// Certificate and key in one file, the form that Java reads.
    pub(crate) const KEY_AND_CERT: &str = "/data/both.pem";

    /// A shell script that writes the files.
    pub(crate) fn write_script(&self) -> String {
        let key_and_cert = format!("{}{}", self.key, self.certificate);
        let files = [
            (Self::CA, &self.ca),
            (Self::CERT, &self.certificate),
            (Self::KEY, &self.key),
            (Self::KEY_AND_CERT, &key_and_cert),
        ];
        files.map(|(path, text)| write_file_script(path, text.as_bytes())).concat()
    }
}

/// A line of a shell script that writes a file.
pub(crate) fn write_file_script(path: &str, content: &[u8]) -> String {
    format!("echo {} | base64 -d >{path}\n", BASE64_STANDARD.encode(content))
}
