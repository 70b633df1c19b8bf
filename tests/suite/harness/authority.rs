//! Certificates of a test's own.

use std::{fs, path::PathBuf};

use rcgen::{
    BasicConstraints, CertificateParams, CertifiedIssuer, DnType, ExtendedKeyUsagePurpose, IsCa, KeyPair,
};
use tenure_containers::TlsFiles;

/// An authority, and who it vouches for.
#[allow(missing_debug_implementations, reason = "it holds a key")]
pub struct Authority(CertifiedIssuer<'static, KeyPair>);

impl Default for Authority {
    fn default() -> Self {
        Self::new()
    }
}

impl Authority {
    /// One of its own name and key.
    ///
    /// # Panics
    /// Never: what it is made of is legal.
    pub fn new() -> Self {
        let mut params = CertificateParams::default();
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        // ZooKeeper keeps one authority of each name.
        params.distinguished_name.push(DnType::CommonName, format!("authority {:016x}", fastrand::u64(..)));
        let key = KeyPair::generate().expect("there are random numbers");
        Self(CertifiedIssuer::self_signed(params, key).expect("an authority can vouch for itself"))
    }

    /// Its certificate in PEM.
    pub fn pem(&self) -> String {
        self.0.pem()
    }

    /// A certificate for `name` and its key, in PEM.
    ///
    /// # Panics
    /// When it is no legal name.
    pub fn vouches_for(&self, name: &str) -> (String, String) {
        let key = KeyPair::generate().expect("there are random numbers");
        let mut params = CertificateParams::new([name.to_owned()]).expect("a legal name");
        params.extended_key_usages =
            vec![ExtendedKeyUsagePurpose::ServerAuth, ExtendedKeyUsagePurpose::ClientAuth];
        let certificate = params.signed_by(&key, &self.0).expect("an authority can vouch for others");
        (certificate.pem(), key.serialize_pem())
    }

    /// What a server on this machine needs that trusts the clients of `clients`.
    pub fn server(&self, clients: &str) -> TlsFiles {
        let (certificate, key) = self.vouches_for("127.0.0.1");
        TlsFiles { ca: clients.to_owned(), certificate, key }
    }
}

/// A client's files.
#[derive(Debug)]
pub struct ClientFiles(tempfile::TempDir);

impl ClientFiles {
    /// Files for a client that trusts `ca`, in PEM, and shows a certificate with its key.
    ///
    /// # Panics
    /// When there is no room for them.
    pub fn new(ca: &str, (certificate, key): &(String, String)) -> Self {
        let client = Self(tempfile::tempdir().expect("there is room"));
        client.put("cert", certificate);
        client.put("key", key);
        client.trust(ca);
        client
    }

    /// Trusts these authorities from now on, in PEM.
    ///
    /// # Panics
    /// When there is no room for them.
    pub fn trust(&self, ca: &str) {
        self.put("ca", ca);
    }

    /// The settings of a URL that name them.
    pub fn settings(&self) -> String {
        let [ca, cert, key] = ["ca", "cert", "key"].map(|name| self.path(name).display().to_string());
        format!("ca={ca}&cert={cert}&key={key}")
    }

    /// In one step: it may be read at any time.
    fn put(&self, name: &str, text: &str) {
        let next = self.path("next");
        fs::write(&next, text).expect("there is room");
        fs::rename(next, self.path(name)).expect("the folder is ours");
    }

    fn path(&self, name: &str) -> PathBuf {
        self.0.path().join(name)
    }
}
