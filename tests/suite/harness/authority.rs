//! Certificate authorities and certificates for one test.

use std::{
    fs,
    path::PathBuf,
    time::{SystemTime, UNIX_EPOCH},
};

use rcgen::{
    BasicConstraints, CertificateParams, CertifiedIssuer, DnType, ExtendedKeyUsagePurpose, IsCa, KeyPair,
    date_time_ymd,
};
use tenure_containers::TlsFiles;

/// A certificate authority.
#[allow(missing_debug_implementations, reason = "it holds a key")]
pub struct Authority(CertifiedIssuer<'static, KeyPair>);

impl Default for Authority {
    fn default() -> Self {
        Self::new()
    }
}

impl Authority {
    /// An authority with a random name and key.
    ///
    /// # Panics
    /// Never: its parameters are valid.
    pub fn new() -> Self {
        let mut params = CertificateParams::default();
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        // ZooKeeper keeps only one authority of each name.
        params.distinguished_name.push(DnType::CommonName, format!("authority {:016x}", fastrand::u64(..)));
        let key = KeyPair::generate().expect("a key can be generated");
        Self(CertifiedIssuer::self_signed(params, key).expect("an authority can sign its own certificate"))
    }

    /// The authority's certificate in PEM.
    pub fn pem(&self) -> String {
        self.0.pem()
    }

    /// Issues a certificate for `name`; returns it and its key, in PEM.
    ///
    /// # Panics
    /// When the name is invalid.
    pub fn issue(&self, name: &str) -> (String, String) {
        self.issue_until(name, None)
    }

    /// Issues a certificate for `name` that expires at the given time.
    ///
    /// # Panics
    /// When the name or the time is invalid.
    pub fn issue_until(&self, name: &str, expires: Option<SystemTime>) -> (String, String) {
        let key = KeyPair::generate().expect("a key can be generated");
        let mut params = CertificateParams::new([name.to_owned()]).expect("the name is valid");
        params.distinguished_name.push(DnType::CommonName, name);
        params.extended_key_usages =
            vec![ExtendedKeyUsagePurpose::ServerAuth, ExtendedKeyUsagePurpose::ClientAuth];
        if let Some(expires) = expires {
            let since_epoch = expires.duration_since(UNIX_EPOCH).expect("the time is after 1970");
            params.not_after = date_time_ymd(1970, 1, 1) + since_epoch;
        }
        let certificate = params.signed_by(&key, &self.0).expect("an authority can sign certificates");
        (certificate.pem(), key.serialize_pem())
    }

    /// The files of a server at 127.0.0.1 that accepts clients of the authority `client_ca`, in PEM.
    pub fn server_files(&self, client_ca: &str) -> TlsFiles {
        self.server_files_for("127.0.0.1", client_ca)
    }

    /// The files of a server whose certificate names another host.
    pub fn server_files_for(&self, name: &str, client_ca: &str) -> TlsFiles {
        let (certificate, key) = self.issue(name);
        TlsFiles { ca: client_ca.to_owned(), certificate, key }
    }
}

/// A client's TLS files, in a temporary directory.
#[derive(Debug)]
pub struct ClientFiles(tempfile::TempDir);

impl ClientFiles {
    /// The files of a client that trusts the authority `ca` and presents `identity`, a certificate and its key, in PEM.
    ///
    /// # Panics
    /// When the files cannot be written.
    pub fn new(ca: &str, identity: &(String, String)) -> Self {
        let client = Self(tempfile::tempdir().expect("a temporary directory can be created"));
        client.replace_identity(identity);
        client.replace_ca(ca);
        client
    }

    /// Replaces the trusted authorities, in PEM.
    ///
    /// # Panics
    /// When the file cannot be written.
    pub fn replace_ca(&self, ca: &str) {
        self.replace("ca", ca);
    }

    /// Replaces the certificate and its key.
    ///
    /// # Panics
    /// When the files cannot be written.
    pub fn replace_identity(&self, (certificate, key): &(String, String)) {
        self.replace_certificate(certificate);
        self.replace("key", key);
    }

    /// Replaces the certificate and leaves the key.
    ///
    /// # Panics
    /// When the file cannot be written.
    pub fn replace_certificate(&self, certificate: &str) {
        self.replace("cert", certificate);
    }

    /// The URL settings that name the files.
    pub fn settings(&self) -> String {
        let [ca, cert, key] = ["ca", "cert", "key"].map(|name| self.path(name).display().to_string());
        format!("ca={ca}&cert={cert}&key={key}")
    }

    /// The path of the file `ca`, `cert` or `key`.
    pub fn path(&self, name: &str) -> PathBuf {
        self.0.path().join(name)
    }

    /// Replaces a file atomically: it may be read at any time.
    fn replace(&self, name: &str, text: &str) {
        let next = self.path("next");
        fs::write(&next, text).expect("the file can be written");
        fs::rename(next, self.path(name)).expect("the file can be renamed");
    }
}
