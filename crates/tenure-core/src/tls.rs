//! How a store is reached over TLS: whom to trust, and who we are.

use std::{
    fmt, fs,
    path::{Path, PathBuf},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use rustls_pki_types::{
    CertificateDer, PrivateKeyDer,
    pem::{self, PemObject},
};
use tokio::{
    task::{JoinHandle, spawn_blocking},
    time::{Instant, timeout},
};
use tracing::{info, warn};

use crate::{InvalidUrl, Secret, StoreUrl};

/// How old what was read from files may be when a connection is made.
const LOOK_EVERY: Duration = Duration::from_secs(5);

/// How long a connection waits for files to be read.
const PATIENCE: Duration = Duration::from_millis(200);

/// TLS to a store: the authorities that vouch for its servers, and our own certificate where the
/// store asks for one. The servers' names are always checked.
///
/// Where they are [files](Self::from_files), they are read again when connections are made, so that certificates can
/// rotate while a leader leads. Clones share what they read.
///
/// Its `Debug` shows no key.
#[derive(Clone)]
pub struct Tls {
    shared: Arc<Shared>,
}

struct Shared {
    files: Option<Files>,
    now: Mutex<Now>,
}

struct Now {
    pem: Arc<TlsPem>,
    looked: Instant,
    /// Whether the files are being read.
    reads: bool,
    /// Why the files as they are now are not used; what they held before is.
    refused: Option<String>,
}

#[derive(Clone)]
struct Files {
    ca: PathBuf,
    identity: Option<(PathBuf, PathBuf)>,
}

/// Certificates and a key in PEM, as they are at one time.
///
/// Its `Debug` shows no key.
pub struct TlsPem {
    /// How many there were before.
    generation: u64,
    ca: String,
    identity: Option<(String, Secret)>,
}

impl Tls {
    /// Trusts servers whose certificates the authorities in `ca` vouch for: certificates in PEM.
    ///
    /// # Errors
    /// When there is no certificate in it; the text says so.
    pub fn new(ca: &str) -> Result<Self, String> {
        let pem = TlsPem { generation: 0, ca: ca.to_owned(), identity: None };
        pem.check()?;
        Ok(Self::of(None, pem))
    }

    /// Shows the store a certificate of ours: a chain and its private key, in PEM.
    ///
    /// Nothing is read from files any more.
    ///
    /// # Errors
    /// When one of them is not there, or with the feature `tls` the key is not that of the certificate; the text says which.
    pub fn with_identity(self, certificate: &str, key: Secret) -> Result<Self, String> {
        let ca = self.now().pem.ca.clone();
        let pem = TlsPem { generation: 0, ca, identity: Some((certificate.to_owned(), key)) };
        pem.check()?;
        Ok(Self::of(None, pem))
    }

    /// Reads PEM files: the authorities to trust, and where the store asks for it a certificate of ours and its private key.
    ///
    /// They are read now, and again when connections are made: what has changed is used within
    /// some seconds. While the files as they are cannot be used, which is logged, what they held before is.
    ///
    /// # Errors
    /// When a file cannot be read or has not in it what it should; the text says which.
    pub fn from_files(ca: impl AsRef<Path>, identity: Option<(&Path, &Path)>) -> Result<Self, String> {
        let identity = identity.map(|(certificate, key)| (certificate.to_owned(), key.to_owned()));
        let files = Files { ca: ca.as_ref().to_owned(), identity };
        let pem = files.read()?;
        Ok(Self::of(Some(files), pem))
    }

    /// The settings `ca`, `cert` and `key` of a store's URL, each a PEM file; `None` when none is given.
    ///
    /// # Errors
    /// As for [`from_files`](Self::from_files), and when `cert` and `key` are not given together with `ca`.
    pub fn from_url(url: &StoreUrl) -> Result<Option<Self>, InvalidUrl> {
        let identity = match (url.text("ca"), url.text("cert"), url.text("key")) {
            (None, None, None) => return Ok(None),
            (None, ..) => {
                let reason = "it has a cert or a key but no ca; give ca=/path/to/authorities.pem";
                return Err(url.invalid(reason));
            }
            (Some(_), None, None) => None,
            (Some(_), Some(cert), Some(key)) => Some((Path::new(cert), Path::new(key))),
            (Some(_), ..) => return Err(url.invalid("it has one of cert and key; give both")),
        };
        let ca = url.text("ca").unwrap_or_default();
        Self::from_files(ca, identity).map(Some).map_err(|reason| url.invalid(reason))
    }

    /// What a connection made now is to use: the same `Arc` for as long as nothing has changed.
    ///
    /// Files are read on a thread of their own. What takes long (a file system that hangs, say) is not waited for:
    /// what was read before is used meanwhile.
    ///
    /// # Cancellation safety
    /// Nothing is lost when the future is dropped.
    pub async fn current(&self) -> Arc<TlsPem> {
        if let Some(reading) = self.read_again() {
            let _ = timeout(PATIENCE, reading).await;
        }
        Arc::clone(&self.now().pem)
    }

    /// Reads the files again, if there are any and it is time to.
    fn read_again(&self) -> Option<JoinHandle<()>> {
        self.shared.files.as_ref()?;
        {
            let mut now = self.now();
            if now.reads || now.looked.elapsed() < LOOK_EVERY {
                return None;
            }
            (now.reads, now.looked) = (true, Instant::now());
        }
        let reading = Reading(self.clone());
        Some(spawn_blocking(move || {
            let tls = &reading.0;
            let read = tls.shared.files.as_ref().map(Files::read);
            tls.take(read);
        }))
    }

    fn take(&self, read: Option<Result<TlsPem, String>>) {
        // Logged without the lock, for whoever makes connections waits for that.
        match read {
            Some(Ok(pem)) => {
                let differs = {
                    let mut now = self.now();
                    let differs = now.pem.differs(&pem);
                    if differs {
                        now.pem = Arc::new(TlsPem { generation: now.pem.generation + 1, ..pem });
                    }
                    now.refused = None;
                    differs
                };
                if differs {
                    info!(tls = ?self.shared.files, "the certificates in files have changed, and are used from now on");
                }
            }
            Some(Err(reason)) => {
                let before = self.now().refused.replace(reason.clone());
                if before.as_ref() != Some(&reason) {
                    warn!(%reason, "the certificates in files cannot be used; those before them still are");
                }
            }
            None => {}
        }
    }

    fn of(files: Option<Files>, pem: TlsPem) -> Self {
        let now = Mutex::new(Now { pem: Arc::new(pem), looked: Instant::now(), reads: false, refused: None });
        Self { shared: Arc::new(Shared { files, now }) }
    }

    fn now(&self) -> MutexGuard<'_, Now> {
        self.shared.now.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// That the files are being read; dropped with a runtime that goes before they are.
struct Reading(Tls);

impl Drop for Reading {
    fn drop(&mut self) {
        self.0.now().reads = false;
    }
}

impl Files {
    fn read(&self) -> Result<TlsPem, String> {
        let read = |name: &str, path: &Path| {
            fs::read_to_string(path)
                .map_err(|error| format!("{name}={} cannot be read: {error}", path.display()))
        };
        let ca = read("ca", &self.ca)?;
        check_certificates(&ca)
            .map_err(|reason| format!("ca={} is not usable: {reason}", self.ca.display()))?;
        let identity = match &self.identity {
            Some((certificate, key)) => Some((read("cert", certificate)?, Secret::new(read("key", key)?))),
            None => None,
        };
        let pem = TlsPem { generation: 0, ca, identity };
        pem.check().map_err(|reason| format!("{self:?} is not usable: {reason}"))?;
        Ok(pem)
    }
}

/// As a URL has it.
impl fmt::Debug for Files {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "ca={}", self.ca.display())?;
        match &self.identity {
            Some((certificate, key)) => write!(f, " cert={} key={}", certificate.display(), key.display()),
            None => Ok(()),
        }
    }
}

impl TlsPem {
    /// The authorities' certificates.
    pub fn ca(&self) -> &str {
        &self.ca
    }

    /// Our own certificates, and their key.
    pub fn identity(&self) -> Option<(&str, &Secret)> {
        self.identity.as_ref().map(|(certificate, key)| (certificate.as_str(), key))
    }

    /// Whether this was read later than `other`, of the same files.
    pub fn is_newer_than(&self, other: &Self) -> bool {
        self.generation > other.generation
    }

    /// Whether an authority is not trusted any more that was `before`.
    pub fn distrusts(&self, before: &Self) -> bool {
        let authorities =
            |pem: &Self| CertificateDer::pem_slice_iter(pem.ca.as_bytes()).flatten().collect::<Vec<_>>();
        let trusted = authorities(self);
        authorities(before).iter().any(|authority| !trusted.contains(authority))
    }

    fn differs(&self, other: &Self) -> bool {
        let identity =
            |pem: &Self| pem.identity.as_ref().map(|(c, key)| (c.clone(), key.expose().to_owned()));
        self.ca != other.ca || identity(self) != identity(other)
    }

    fn check(&self) -> Result<(), String> {
        check_certificates(&self.ca)?;
        if let Some((certificate, key)) = &self.identity {
            check_certificates(certificate)?;
            // The error's text could show part of the key.
            PrivateKeyDer::from_pem_slice(key.expose().as_bytes())
                .map_err(|_| "it has no private key in PEM".to_owned())?;
        }
        self.check_whole()
    }

    /// Whether a connection can be made with it, but for what the server says.
    #[cfg(feature = "tls")]
    fn check_whole(&self) -> Result<(), String> {
        use rustls::{
            ClientConfig, Error, InconsistentKeys, RootCertStore, client::WebPkiServerVerifier,
            crypto::aws_lc_rs, pki_types::CertificateRevocationListDer,
        };

        let certificates = |pem: &str| -> Result<Vec<_>, String> {
            CertificateDer::pem_slice_iter(pem.as_bytes()).collect::<Result<_, _>>().map_err(no_pem)
        };
        let mut roots = RootCertStore::empty();
        for authority in certificates(&self.ca)? {
            roots
                .add(authority)
                .map_err(|error| format!("a certificate of the authorities is none: {error}"))?;
        }
        let provider = Arc::new(aws_lc_rs::default_provider());
        // ZooKeeper's client heeds lists of what was revoked.
        let revoked = CertificateRevocationListDer::pem_slice_iter(self.ca.as_bytes());
        let revoked = revoked.collect::<Result<Vec<_>, _>>().map_err(no_pem)?;
        WebPkiServerVerifier::builder_with_provider(Arc::new(roots.clone()), Arc::clone(&provider))
            .with_crls(revoked)
            .build()
            .map_err(|error| format!("a list of revoked certificates is none: {error}"))?;
        let Some((certificate, key)) = &self.identity else { return Ok(()) };
        let key = PrivateKeyDer::from_pem_slice(key.expose().as_bytes())
            .map_err(|_| "it has no private key in PEM".to_owned())?;
        let config = ClientConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()
            .map_err(|error| error.to_string())?
            .with_root_certificates(roots)
            .with_client_auth_cert(certificates(certificate)?, key);
        match config {
            Ok(_) => Ok(()),
            Err(Error::InconsistentKeys(InconsistentKeys::KeyMismatch)) => {
                Err("the private key is not that of the certificate".to_owned())
            }
            Err(Error::InvalidCertificate(error)) => Err(format!("the certificate is none: {error}")),
            Err(_) => Err("the private key is of no kind that is known".to_owned()),
        }
    }

    #[cfg(not(feature = "tls"))]
    fn check_whole(&self) -> Result<(), String> {
        Ok(())
    }
}

fn check_certificates(pem: &str) -> Result<(), String> {
    match CertificateDer::pem_slice_iter(pem.as_bytes()).next() {
        Some(Ok(_)) => Ok(()),
        Some(Err(error)) => Err(no_pem(error)),
        None => Err("it has no certificate in PEM".to_owned()),
    }
}

/// The library's own words repeat a line, which may be a key's.
fn no_pem(_: pem::Error) -> String {
    "it is no PEM, or not all of it".to_owned()
}

impl fmt::Debug for Tls {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Tls").field("files", &self.shared.files).field("pem", &self.now().pem).finish()
    }
}

impl fmt::Debug for TlsPem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("TlsPem").field("identity", &self.identity.is_some()).finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use std::path::PathBuf;

    use rcgen::{CertificateParams, KeyPair};
    use tempfile::TempDir;
    use tokio::time::advance;

    use super::*;

    /// A certificate that vouches for itself, and its key.
    fn identity() -> (String, String) {
        let key = KeyPair::generate().unwrap();
        let certificate = CertificateParams::new(["h".to_owned()]).unwrap().self_signed(&key).unwrap();
        (certificate.pem(), key.serialize_pem())
    }

    struct Folder(TempDir);

    impl Folder {
        fn of(ca: &str, (certificate, key): (&str, &str)) -> Self {
            let folder = Self(tempfile::tempdir().unwrap());
            folder.write(ca, (certificate, key));
            folder
        }

        fn write(&self, ca: &str, (certificate, key): (&str, &str)) {
            for (name, text) in [("ca", ca), ("cert", certificate), ("key", key)] {
                fs::write(self.path(name), text).unwrap();
            }
        }

        fn path(&self, name: &str) -> PathBuf {
            self.0.path().join(name)
        }

        fn tls(&self) -> Result<Tls, String> {
            Tls::from_files(self.path("ca"), Some((&self.path("cert"), &self.path("key"))))
        }
    }

    #[test]
    fn what_is_not_there_is_said_and_no_key_is_shown() {
        let (certificate, key) = identity();
        assert_eq!(Tls::new("nothing").unwrap_err(), "it has no certificate in PEM");
        assert_eq!(Tls::new(&key).unwrap_err(), "it has no certificate in PEM");
        let tls = Tls::new(&certificate).unwrap();
        let refused = tls.clone().with_identity(&certificate, Secret::new("c2VjcmV0")).unwrap_err();
        assert_eq!(refused, "it has no private key in PEM");
        // A key whose lines were lost, where a certificate belongs.
        let joined = key.replace('\n', "");
        let cut = key.replace("\n-----END", "-----END").replace("END PRIVATE KEY-----", "END");
        for (given, number) in [(&joined, "77, 73"), (&cut, "77, 73")] {
            let said = Tls::new(given).unwrap_err();
            assert!(!said.contains(&key[40..60]) && !said.contains(number), "{said}");
        }
        let tls = tls.with_identity(&certificate, Secret::new(key.clone())).unwrap();
        let secret = key.lines().nth(1).unwrap();
        assert!(!format!("{tls:?}").contains(secret), "{tls:?}");
    }

    /// Somebody has put the wrong key beside a certificate, or no certificate where one belongs.
    #[cfg(feature = "tls")]
    #[test]
    fn what_does_not_belong_together_is_refused() {
        let ((certificate, _), (_, other)) = (identity(), identity());
        let tls = Tls::new(&certificate).unwrap();
        let refused = tls.with_identity(&certificate, Secret::new(other)).unwrap_err();
        assert_eq!(refused, "the private key is not that of the certificate");
        let none = "-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n";
        assert!(Tls::new(none).unwrap_err().starts_with("a certificate of the authorities is none"));
        let list = format!("{certificate}-----BEGIN X509 CRL-----\nAAAA\n-----END X509 CRL-----\n");
        assert!(Tls::new(&list).unwrap_err().starts_with("a list of revoked certificates is none"));
    }

    #[test]
    fn a_url_names_files() {
        let no_ca: StoreUrl = "etcd://h?ca=/nowhere/c.pem".parse().unwrap();
        assert!(Tls::from_url(&no_ca).unwrap_err().to_string().contains("ca=/nowhere/c.pem cannot be read"));
        let none: StoreUrl = "etcd://h?ttl=1s".parse().unwrap();
        assert!(Tls::from_url(&none).unwrap().is_none());
        let error = none.deny_unknown().unwrap_err().to_string();
        assert!(error.contains("allowed are ca, cert, key"), "{error}");
    }

    /// An authority that is not trusted any more is noticed, and one more is none that is missing.
    #[test]
    fn authorities_come_and_go() {
        let (first, second) = (identity().0, identity().0);
        let pem = |ca: String| TlsPem { generation: 0, ca, identity: None };
        let both = pem(format!("{second}{first}"));
        let first = pem(first);
        assert!(!both.distrusts(&first) && first.distrusts(&both) && !first.distrusts(&first));
    }

    /// Certificates rotate while a leader leads; half a rotation, or a broken one, changes nothing.
    #[tokio::test(start_paused = true)]
    async fn what_is_in_the_files_is_read_again() {
        let (first, second) = (identity(), identity());
        let folder = Folder::of(&first.0, (&first.0, &first.1));
        let tls = folder.tls().unwrap();
        let before = tls.current().await;
        assert!(Arc::ptr_eq(&before, &tls.clone().current().await));
        folder.write(&first.0, (&second.0, &second.1));
        assert!(Arc::ptr_eq(&before, &tls.current().await), "not yet");
        advance(LOOK_EVERY).await;
        let after = tls.clone().current().await;
        assert_eq!(after.identity().map(|(certificate, _)| certificate), Some(second.0.as_str()));
        assert!(Arc::ptr_eq(&after, &tls.current().await));
        assert!(after.is_newer_than(&before) && !before.is_newer_than(&after));
        for broken in [("nothing", second.1.as_str()), (second.0.as_str(), "nothing")] {
            folder.write(&first.0, broken);
            advance(LOOK_EVERY).await;
            assert!(Arc::ptr_eq(&after, &tls.current().await), "what was there is used");
            assert!(tls.now().refused.is_some());
        }
        fs::remove_file(folder.path("key")).unwrap();
        advance(LOOK_EVERY).await;
        assert!(Arc::ptr_eq(&after, &tls.current().await));
        folder.write(&second.0, (&second.0, &second.1));
        advance(LOOK_EVERY).await;
        assert_eq!(tls.current().await.ca(), second.0);
        assert!(tls.now().refused.is_none());
    }
}
