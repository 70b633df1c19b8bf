//! TLS to a store: trusted authorities and the client certificate, given as text or as files that may rotate.

mod files;
mod pem;

use std::{
    fmt,
    path::Path,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use tokio::{
    task::{JoinHandle, spawn_blocking},
    time::{Instant, timeout},
};
use tracing::{info, warn};

use crate::{InvalidUrl, Secret, StoreUrl, internal::lock};
use files::TlsFiles;
pub use pem::TlsPem;

/// The age after which files are read again when a connection is made.
const MAX_AGE: Duration = Duration::from_secs(5);

/// How long a connection waits for files to be read.
const READ_TIMEOUT: Duration = Duration::from_millis(200);

/// The names of the settings.
const SETTINGS: [&str; 3] = ["ca", "cert", "key"];

/// TLS to a store: the authorities that sign its servers' certificates, and a client certificate if the store requires one.
/// The names of the servers are always checked.
///
/// [Files](Self::from_files) are read again when connections are made, so that certificates can rotate during a
/// leadership. Clones share what was read.
///
/// Its `Debug` shows no key.
#[derive(Clone)]
pub struct Tls {
    shared: Arc<Shared>,
}

struct Shared {
    files: Option<TlsFiles>,
    state: Mutex<State>,
}

struct State {
    pem: Arc<TlsPem>,
    last_read: Instant,
    is_reading: bool,
    /// The reason why the current files cannot be used, if so. Their previous content is used then.
    unusable: Option<String>,
}

/// Caches a client, and makes a new one when the certificates have changed.
///
/// For the backends of this project only.
#[derive(Debug)]
pub struct ClientCache<C> {
    cached: Mutex<Option<(Option<Arc<TlsPem>>, C)>>,
}

impl<C: Clone> ClientCache<C> {
    /// The client for the current certificates of `tls`. `make` makes one, if there is none or they have changed.
    ///
    /// # Errors
    /// Those of `make`.
    pub async fn get<E>(
        &self,
        tls: Option<&Tls>,
        make: impl FnOnce(Option<&TlsPem>) -> Result<C, E> + Send,
    ) -> Result<C, E> {
        let pem = match tls {
            Some(tls) => Some(tls.current().await),
            None => None,
        };
        let mut cached = lock(&self.cached);
        match &*cached {
            Some((made_for, client))
                if made_for.as_ref().map(Arc::as_ptr) == pem.as_ref().map(Arc::as_ptr) =>
            {
                Ok(client.clone())
            }
            _ => {
                let client = make(pem.as_deref())?;
                Ok(cached.insert((pem, client)).1.clone())
            }
        }
    }

    /// Drops the client, which closes the connections that no request uses.
    pub fn clear(&self) {
        *lock(&self.cached) = None;
    }
}

impl<C> Default for ClientCache<C> {
    fn default() -> Self {
        Self { cached: Mutex::default() }
    }
}

impl Tls {
    /// Trusts servers whose certificates are signed by one of the authorities in `ca`, certificates in PEM.
    ///
    /// # Errors
    /// When `ca` contains no valid certificate. The text is the reason.
    pub fn new(ca: &str) -> Result<Self, String> {
        let pem = TlsPem::new(ca.to_owned(), None);
        pem.check()?;
        Ok(Self::with_pem(None, pem))
    }

    /// Adds a client certificate: a certificate chain and its private key, in PEM.
    ///
    /// The result no longer reads files.
    ///
    /// # Errors
    /// When the certificate or the key is missing, or, with the feature `tls`, when the key is not that of the
    /// certificate. The text is the reason.
    pub fn with_identity(self, certificate: &str, key: Secret) -> Result<Self, String> {
        let ca = self.state().pem.ca().to_owned();
        let pem = TlsPem::new(ca, Some((certificate.to_owned(), key)));
        pem.check()?;
        Ok(Self::with_pem(None, pem))
    }

    /// Reads PEM files: the trusted authorities, and optionally a client certificate and its private key.
    ///
    /// The files are read now, and again when connections are made: a change is used within seconds. While the files
    /// cannot be used, a warning is logged and their previous content is used.
    ///
    /// # Errors
    /// When a file cannot be read or its content is invalid. The text names the file.
    pub fn from_files(ca: impl AsRef<Path>, identity: Option<(&Path, &Path)>) -> Result<Self, String> {
        Self::from_named_files(SETTINGS, ca.as_ref(), identity)
    }

    fn from_named_files(
        names: [&'static str; 3],
        ca: &Path,
        identity: Option<(&Path, &Path)>,
    ) -> Result<Self, String> {
        let files = TlsFiles::new(names, ca, identity);
        let pem = files.read()?;
        Ok(Self::with_pem(Some(files), pem))
    }

    /// Reads the settings `ca`, `cert` and `key` of a store URL, each a PEM file. `None` when none of them is given.
    ///
    /// # Errors
    /// As [`from_files`](Self::from_files), and when `cert` and `key` are not given together with `ca`.
    pub fn from_url(url: &StoreUrl) -> Result<Option<Self>, InvalidUrl> {
        Self::from_settings(url, SETTINGS)
    }

    /// As [`from_url`](Self::from_url), for a store whose users know these settings by other names: of the authorities, the certificate and
    /// the key.
    ///
    /// # Errors
    /// As [`from_url`](Self::from_url).
    pub fn from_settings(url: &StoreUrl, names: [&'static str; 3]) -> Result<Option<Self>, InvalidUrl> {
        let [ca, cert, key] = names;
        let (ca, identity) = match (url.text(ca), url.text(cert), url.text(key)) {
            (None, None, None) => return Ok(None),
            (None, ..) => {
                let reason =
                    format!("it has a {cert} or a {key} but no {ca}; give {ca}=/path/to/authorities.pem");
                return Err(url.invalid(reason));
            }
            (Some(ca), None, None) => (ca, None),
            (Some(ca), Some(cert), Some(key)) => (ca, Some((Path::new(cert), Path::new(key)))),
            (Some(_), ..) => return Err(url.invalid(format!("it has one of {cert} and {key}; give both"))),
        };
        Self::from_named_files(names, Path::new(ca), identity).map(Some).map_err(|reason| url.invalid(reason))
    }

    /// The certificates for a connection that is made now: the same `Arc` as long as nothing has changed.
    ///
    /// Files are read on a separate thread. A read that takes long, for example because the file system hangs, is not
    /// waited for: the previous content is returned.
    ///
    /// # Cancellation safety
    /// Dropping the future has no effect.
    pub async fn current(&self) -> Arc<TlsPem> {
        if let Some(reading) = self.start_reading() {
            let _ = timeout(READ_TIMEOUT, reading).await;
        }
        Arc::clone(&self.state().pem)
    }

    /// Starts to read the files, if there are any and they were last read long enough ago.
    fn start_reading(&self) -> Option<JoinHandle<()>> {
        self.shared.files.as_ref()?;
        {
            let mut state = self.state();
            if state.is_reading || state.last_read.elapsed() < MAX_AGE {
                return None;
            }
            (state.is_reading, state.last_read) = (true, Instant::now());
        }
        let reading = ReadingGuard(self.clone());
        Some(spawn_blocking(move || {
            let tls = &reading.0;
            let read = tls.shared.files.as_ref().map(TlsFiles::read);
            tls.apply(read);
        }))
    }

    fn apply(&self, read: Option<Result<TlsPem, String>>) {
        // Logged without holding the lock, because new connections wait for the lock.
        match read {
            Some(Ok(pem)) => {
                let differs = {
                    let mut state = self.state();
                    let differs = state.pem.differs(&pem);
                    if differs {
                        state.pem = Arc::new(pem.succeeding(&state.pem));
                    }
                    state.unusable = None;
                    differs
                };
                if differs {
                    info!(tls = ?self.shared.files, "the certificate files have changed; using their new content");
                }
            }
            Some(Err(reason)) => {
                let before = self.state().unusable.replace(reason.clone());
                if before.as_ref() != Some(&reason) {
                    warn!(%reason, "the certificate files cannot be used; using their previous content");
                }
            }
            None => {}
        }
    }

    fn with_pem(files: Option<TlsFiles>, pem: TlsPem) -> Self {
        let state = Mutex::new(State {
            pem: Arc::new(pem),
            last_read: Instant::now(),
            is_reading: false,
            unusable: None,
        });
        Self { shared: Arc::new(Shared { files, state }) }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.shared.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Marks that the files are being read. Also dropped when the runtime is shut down before they were read.
struct ReadingGuard(Tls);

impl Drop for ReadingGuard {
    fn drop(&mut self) {
        self.0.state().is_reading = false;
    }
}

impl fmt::Debug for Tls {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Tls").field("files", &self.shared.files).field("pem", &self.state().pem).finish()
    }
}

#[cfg(test)]
mod tests {
    use std::{fs, path::PathBuf};

    use rcgen::{CertificateParams, KeyPair};
    use tempfile::TempDir;
    use tokio::time::advance;

    use super::*;

    /// A self-signed certificate, and its key.
    pub(super) fn generate_identity() -> (String, String) {
        let key = KeyPair::generate().unwrap();
        let certificate = CertificateParams::new(["h".to_owned()]).unwrap().self_signed(&key).unwrap();
        (certificate.pem(), key.serialize_pem())
    }

    struct TlsFolder(TempDir);

    impl TlsFolder {
        fn new(ca: &str, (certificate, key): (&str, &str)) -> Self {
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
    fn missing_parts_are_reported_and_no_key_is_shown() {
        let (certificate, key) = generate_identity();
        assert_eq!(Tls::new("nothing").unwrap_err(), "it has no certificate in PEM");
        assert_eq!(Tls::new(&key).unwrap_err(), "it has no certificate in PEM");
        let tls = Tls::new(&certificate).unwrap();
        let error = tls.clone().with_identity(&certificate, Secret::new("c2VjcmV0")).unwrap_err();
        assert_eq!(error, "it has no private key in PEM");
        // A key without line breaks in the place of a certificate.
        let without_breaks = key.replace('\n', "");
        let cut = key.replace("\n-----END", "-----END").replace("END PRIVATE KEY-----", "END");
        for (given, number) in [(&without_breaks, "77, 73"), (&cut, "77, 73")] {
            let error = Tls::new(given).unwrap_err();
            assert!(!error.contains(&key[40..60]) && !error.contains(number), "{error}");
        }
        let tls = tls.with_identity(&certificate, Secret::new(key.clone())).unwrap();
        let secret = key.lines().nth(1).unwrap();
        assert!(!format!("{tls:?}").contains(secret), "{tls:?}");
    }

    /// The key of another certificate, and invalid certificates and revocation lists.
    #[cfg(feature = "tls")]
    #[test]
    fn a_key_of_another_certificate_is_refused() {
        let ((certificate, _), (_, other)) = (generate_identity(), generate_identity());
        let tls = Tls::new(&certificate).unwrap();
        let error = tls.with_identity(&certificate, Secret::new(other)).unwrap_err();
        assert_eq!(error, "the private key is not that of the certificate");
        let invalid = "-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n";
        assert!(Tls::new(invalid).unwrap_err().starts_with("a certificate of an authority is invalid"));
        let list = format!("{certificate}-----BEGIN X509 CRL-----\nAAAA\n-----END X509 CRL-----\n");
        assert!(Tls::new(&list).unwrap_err().starts_with("a certificate revocation list is invalid"));
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

    /// Certificates rotate during a leadership; an incomplete or invalid rotation changes nothing.
    #[tokio::test(start_paused = true)]
    async fn files_are_read_again() {
        let (first, second) = (generate_identity(), generate_identity());
        let folder = TlsFolder::new(&first.0, (&first.0, &first.1));
        let tls = folder.tls().unwrap();
        let before = tls.current().await;
        assert!(Arc::ptr_eq(&before, &tls.clone().current().await));
        folder.write(&first.0, (&second.0, &second.1));
        assert!(Arc::ptr_eq(&before, &tls.current().await), "read too early");
        advance(MAX_AGE).await;
        let after = tls.clone().current().await;
        assert_eq!(after.identity().map(|(certificate, _)| certificate), Some(second.0.as_str()));
        assert!(Arc::ptr_eq(&after, &tls.current().await));
        assert!(after.is_newer_than(&before) && !before.is_newer_than(&after));
        for invalid in [("nothing", second.1.as_str()), (second.0.as_str(), "nothing")] {
            folder.write(&first.0, invalid);
            advance(MAX_AGE).await;
            assert!(Arc::ptr_eq(&after, &tls.current().await), "the previous content is used");
            assert!(tls.state().unusable.is_some());
        }
        fs::remove_file(folder.path("key")).unwrap();
        advance(MAX_AGE).await;
        assert!(Arc::ptr_eq(&after, &tls.current().await));
        folder.write(&second.0, (&second.0, &second.1));
        advance(MAX_AGE).await;
        assert_eq!(tls.current().await.ca(), second.0);
        assert!(tls.state().unusable.is_none());
    }
}
