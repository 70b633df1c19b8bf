//! Certificates and a key in PEM, and their checks.

use std::fmt;

use rustls_pki_types::{
    CertificateDer, PrivateKeyDer,
    pem::{self, PemObject},
};

use crate::Secret;

/// Certificates and a key in PEM, as they were read at one time.
///
/// Its `Debug` shows no key.
pub struct TlsPem {
    /// The number of changes before this one.
    generation: u64,
    ca: String,
    identity: Option<(String, Secret)>,
}

impl TlsPem {
    pub(super) fn new(ca: String, identity: Option<(String, Secret)>) -> Self {
        Self { generation: 0, ca, identity }
    }

    /// The certificates of the trusted authorities.
    pub fn ca(&self) -> &str {
        &self.ca
    }

    /// The client certificate chain and its private key.
    pub fn identity(&self) -> Option<(&str, &Secret)> {
        self.identity.as_ref().map(|(certificate, key)| (certificate.as_str(), key))
    }

    /// Whether this was read later than `other`, from the same files.
    pub fn is_newer_than(&self, other: &Self) -> bool {
        self.generation > other.generation
    }

    /// Whether an authority that was trusted `before` is no longer trusted.
    pub fn distrusts(&self, before: &Self) -> bool {
        let authorities =
            |pem: &Self| CertificateDer::pem_slice_iter(pem.ca.as_bytes()).flatten().collect::<Vec<_>>();
        let trusted = authorities(self);
        authorities(before).iter().any(|authority| !trusted.contains(authority))
    }

    pub(super) fn differs(&self, other: &Self) -> bool {
        let identity =
            |pem: &Self| pem.identity.as_ref().map(|(c, key)| (c.clone(), key.expose().to_owned()));
        self.ca != other.ca || identity(self) != identity(other)
    }

    /// This PEM, as the successor of `previous`.
    pub(super) fn succeeding(self, previous: &Self) -> Self {
        Self { generation: previous.generation + 1, ..self }
    }

    pub(super) fn check(&self) -> Result<(), String> {
        check_certificates(&self.ca)?;
        if let Some((certificate, key)) = &self.identity {
            check_certificates(certificate)?;
            // The error's text is not used: it could contain part of the key.
            PrivateKeyDer::from_pem_slice(key.expose().as_bytes())
                .map_err(|_| "it has no private key in PEM".to_owned())?;
        }
        #[cfg(feature = "tls")]
        self.client_config()?;
        Ok(())
    }

    /// A client of rustls with these certificates and the key, for backends whose client library takes one.
    ///
    /// # Errors
    /// What is wrong with them, without any part of the key. They were checked when they were read.
    #[cfg(feature = "tls")]
    #[doc(hidden)]
    pub fn client_config(&self) -> Result<rustls::ClientConfig, String> {
        use std::sync::Arc;

        use rustls::{
            ClientConfig, Error, InconsistentKeys, RootCertStore, client::WebPkiServerVerifier,
            crypto::aws_lc_rs, pki_types::CertificateRevocationListDer,
        };

        let certificates = |pem: &str| -> Result<Vec<_>, String> {
            CertificateDer::pem_slice_iter(pem.as_bytes()).collect::<Result<_, _>>().map_err(invalid_pem)
        };
        let mut roots = RootCertStore::empty();
        for authority in certificates(&self.ca)? {
            roots
                .add(authority)
                .map_err(|error| format!("a certificate of an authority is invalid: {error}"))?;
        }
        let provider = Arc::new(aws_lc_rs::default_provider());
        let revoked = CertificateRevocationListDer::pem_slice_iter(self.ca.as_bytes());
        let revoked = revoked.collect::<Result<Vec<_>, _>>().map_err(invalid_pem)?;
        let verifier = WebPkiServerVerifier::builder_with_provider(Arc::new(roots), Arc::clone(&provider))
            .with_crls(revoked)
            .build()
            .map_err(|error| format!("a certificate revocation list is invalid: {error}"))?;
        let config = ClientConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()
            .map_err(|error| error.to_string())?
            .with_webpki_verifier(verifier);
        let Some((certificate, key)) = &self.identity else { return Ok(config.with_no_client_auth()) };
        let key = PrivateKeyDer::from_pem_slice(key.expose().as_bytes())
            .map_err(|_| "it has no private key in PEM".to_owned())?;
        config.with_client_auth_cert(certificates(certificate)?, key).map_err(|error| match error {
            Error::InconsistentKeys(InconsistentKeys::KeyMismatch) => {
                "the private key is not that of the certificate".to_owned()
            }
            Error::InvalidCertificate(error) => format!("the certificate is invalid: {error}"),
            _ => "the type of the private key is not supported".to_owned(),
        })
    }
}

impl fmt::Debug for TlsPem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("TlsPem").field("identity", &self.identity.is_some()).finish_non_exhaustive()
    }
}

pub(super) fn check_certificates(pem: &str) -> Result<(), String> {
    match CertificateDer::pem_slice_iter(pem.as_bytes()).next() {
        Some(Ok(_)) => Ok(()),
        Some(Err(error)) => Err(invalid_pem(error)),
        None => Err("it has no certificate in PEM".to_owned()),
    }
}

/// The library's own text is not used: it repeats a line, which may be part of a key.
fn invalid_pem(_: pem::Error) -> String {
    "it is not valid PEM, or incomplete".to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::tls::tests::generate_identity;

    /// A removed authority is reported; an added one is not.
    #[test]
    fn a_removed_authority_is_no_longer_trusted() {
        let (first, second) = (generate_identity().0, generate_identity().0);
        let both = TlsPem::new(format!("{second}{first}"), None);
        let first = TlsPem::new(first, None);
        assert!(!both.distrusts(&first) && first.distrusts(&both) && !first.distrusts(&first));
    }
}
