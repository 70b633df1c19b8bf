//! What a server needs to speak TLS.

use base64::{Engine as _, prelude::BASE64_STANDARD};

/// A server's certificate and key, and the authority that vouches for its clients', all in PEM.
#[derive(Clone, Debug)]
pub struct TlsFiles {
    /// The authority.
    pub ca: String,
    /// The server's certificate, for `127.0.0.1`.
    pub certificate: String,
    /// Its key.
    pub key: String,
}

impl TlsFiles {
    pub(super) const CA: &str = "/data/ca.pem";
    pub(super) const CERT: &str = "/data/cert.pem";
    pub(super) const KEY: &str = "/data/key.pem";
    /// Certificate and key in one, as Java wants them.
    pub(super) const BOTH: &str = "/data/both.pem";

    /// What a shell does to put them in their places.
    pub(super) fn script(&self) -> String {
        let both = format!("{}{}", self.key, self.certificate);
        let files = [
            (Self::CA, &self.ca),
            (Self::CERT, &self.certificate),
            (Self::KEY, &self.key),
            (Self::BOTH, &both),
        ];
        files.map(|(path, text)| written(path, text.as_bytes())).concat()
    }
}

/// The line of a shell's script that writes a file.
pub(super) fn written(path: &str, content: &[u8]) -> String {
    format!("echo {} | base64 -d >{path}\n", BASE64_STANDARD.encode(content))
}
