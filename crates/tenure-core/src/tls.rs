//! How a store is reached over TLS: whom to trust, and who we are.

use std::{fmt, fs, sync::Arc};

use rustls_pki_types::{CertificateDer, PrivateKeyDer, pem::PemObject};

use crate::{InvalidUrl, Secret, StoreUrl};

/// TLS to a store: the authorities that vouch for its servers, and our own certificate where the
/// store asks for one. The servers' names are always checked.
///
/// Its `Debug` shows no key.
#[derive(Clone)]
pub struct Tls {
    ca: Arc<str>,
    identity: Option<(Arc<str>, Secret)>,
}

impl Tls {
    /// Trusts servers whose certificates the authorities in `ca` vouch for: certificates in PEM.
    ///
    /// # Errors
    /// When there is no certificate in it; the text says so.
    pub fn new(ca: &str) -> Result<Self, String> {
        check_certificates(ca)?;
        Ok(Self { ca: ca.into(), identity: None })
    }

    /// Shows the store a certificate of ours: a chain and its private key, in PEM.
    ///
    /// # Errors
    /// When one of them is not there; the text says which.
    pub fn with_identity(mut self, certificate: &str, key: Secret) -> Result<Self, String> {
        check_certificates(certificate)?;
        // The error's text could show part of the key.
        PrivateKeyDer::from_pem_slice(key.expose().as_bytes())
            .map_err(|_| "it has no private key in PEM".to_owned())?;
        self.identity = Some((certificate.into(), key));
        Ok(self)
    }

    /// The settings `ca`, `cert` and `key` of a store's URL, each a PEM file, read now; `None` when
    /// none is given.
    ///
    /// # Errors
    /// When a file cannot be read or has not in it what it should, or `cert` and `key` are not given together with `ca`.
    pub fn from_url(url: &StoreUrl) -> Result<Option<Self>, InvalidUrl> {
        let file = |name: &str| {
            url.text(name).map(|path| {
                fs::read_to_string(path)
                    .map(|text| (path, text))
                    .map_err(|error| url.invalid(format!("{name}={path} cannot be read: {error}")))
            })
        };
        let (ca, cert, key) = (file("ca").transpose()?, file("cert").transpose()?, file("key").transpose()?);
        let Some((ca_path, ca)) = ca else {
            if cert.is_some() || key.is_some() {
                return Err(url.invalid("it has a cert or a key but no ca; give ca=/path/to/authorities.pem"));
            }
            return Ok(None);
        };
        let tls =
            Self::new(&ca).map_err(|reason| url.invalid(format!("ca={ca_path} is not usable: {reason}")))?;
        match (cert, key) {
            (None, None) => Ok(Some(tls)),
            (Some((cert_path, cert)), Some((key_path, key))) => {
                tls.with_identity(&cert, Secret::new(key)).map(Some).map_err(|reason| {
                    url.invalid(format!("cert={cert_path} or key={key_path} is not usable: {reason}"))
                })
            }
            _ => Err(url.invalid("it has one of cert and key; give both")),
        }
    }

    /// The authorities' certificates, in PEM.
    pub fn ca(&self) -> &str {
        &self.ca
    }

    /// Our own certificates and their key, in PEM.
    pub fn identity(&self) -> Option<(&str, &Secret)> {
        self.identity.as_ref().map(|(certificate, key)| (&**certificate, key))
    }
}

fn check_certificates(pem: &str) -> Result<(), String> {
    match CertificateDer::pem_slice_iter(pem.as_bytes()).next() {
        Some(Ok(_)) => Ok(()),
        Some(Err(error)) => Err(format!("it is no PEM: {error}")),
        None => Err("it has no certificate in PEM".to_owned()),
    }
}

impl fmt::Debug for Tls {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Tls").field("identity", &self.identity.is_some()).finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const CERTIFICATE: &str = "-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n";
    const KEY: &str = "-----BEGIN PRIVATE KEY-----\nc2VjcmV0\n-----END PRIVATE KEY-----\n";

    #[test]
    fn what_is_not_there_is_said_and_no_key_is_shown() {
        assert_eq!(Tls::new("nothing").unwrap_err(), "it has no certificate in PEM");
        assert_eq!(Tls::new(KEY).unwrap_err(), "it has no certificate in PEM");
        let tls = Tls::new(CERTIFICATE).unwrap();
        let refused = tls.clone().with_identity(CERTIFICATE, Secret::new("c2VjcmV0")).unwrap_err();
        assert_eq!(refused, "it has no private key in PEM");
        let tls = tls.with_identity(CERTIFICATE, Secret::new(KEY)).unwrap();
        assert!(!format!("{tls:?}").contains("c2Vj"), "{tls:?}");
    }

    #[test]
    fn a_url_names_files() {
        let no_ca: StoreUrl = "etcd://h?cert=/nowhere/c.pem".parse().unwrap();
        assert!(
            Tls::from_url(&no_ca).unwrap_err().to_string().contains("cert=/nowhere/c.pem cannot be read")
        );
        let none: StoreUrl = "etcd://h?ttl=1s".parse().unwrap();
        assert!(Tls::from_url(&none).unwrap().is_none());
        let error = none.deny_unknown().unwrap_err().to_string();
        assert!(error.contains("allowed are ca, cert, key"), "{error}");
    }
}
