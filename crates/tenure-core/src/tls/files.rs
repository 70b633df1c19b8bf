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
    /// The names of the settings.
    names: [&'static str; 3],
    ca: PathBuf,
    identity: Option<(PathBuf, PathBuf)>,
}

impl TlsFiles {
    pub(super) fn new(names: [&'static str; 3], ca: &Path, identity: Option<(&Path, &Path)>) -> Self {
        let identity = identity.map(|(certificate, key)| (certificate.to_owned(), key.to_owned()));
        Self { names, ca: ca.to_owned(), identity }
    }

    pub(super) fn read(&self) -> Result<TlsPem, String> {
        let [ca_name, certificate_name, key_name] = self.names;
        let read = |name: &str, path: &Path| {
            fs::read_to_string(path)
                .map_err(|error| format!("{name}={} cannot be read: {error}", path.display()))
        };
        let ca = read(ca_name, &self.ca)?;
        check_certificates(&ca)
            .map_err(|reason| format!("{ca_name}={} is not usable: {reason}", self.ca.display()))?;
        let identity = match &self.identity {
            Some((certificate, key)) => {
                Some((read(certificate_name, certificate)?, Secret::new(read(key_name, key)?)))
            }
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
        let [ca_name, certificate_name, key_name] = self.names;
        write!(f, "{ca_name}={}", self.ca.display())?;
        match &self.identity {
            Some((certificate, key)) => {
                write!(f, " {certificate_name}={} {key_name}={}", certificate.display(), key.display())
            }
            None => Ok(()),
        }
    }
}
