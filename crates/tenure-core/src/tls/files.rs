//! The PEM files that a [`Tls`](super::Tls) configuration is read from.

use std::{
    fmt, fs,
    path::{Path, PathBuf},
};

use super::pem::{TlsPem, check_certificates};
use crate::Secret;

/// The paths of the files.
#[derive(Clone)]
pub(super) struct TlsFiles {
    ca: PathBuf,
    identity: Option<(PathBuf, PathBuf)>,
}

impl TlsFiles {
    pub(super) fn new(ca: &Path, identity: Option<(&Path, &Path)>) -> Self {
        let identity = identity.map(|(certificate, key)| (certificate.to_owned(), key.to_owned()));
        Self { ca: ca.to_owned(), identity }
    }

    pub(super) fn read(&self) -> Result<TlsPem, String> {
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
        let pem = TlsPem::new(ca, identity);
        pem.check().map_err(|reason| format!("{self:?} is not usable: {reason}"))?;
        Ok(pem)
    }
}

/// Prints the paths as the settings of a URL.
impl fmt::Debug for TlsFiles {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "ca={}", self.ca.display())?;
        match &self.identity {
            Some((certificate, key)) => write!(f, " cert={} key={}", certificate.display(), key.display()),
            None => Ok(()),
        }
    }
}
