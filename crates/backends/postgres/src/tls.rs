//! TLS to the server, whose name is always checked.

use std::sync::Arc;

use rustls::{
    ClientConfig, RootCertStore,
    client::WebPkiServerVerifier,
    crypto::aws_lc_rs::default_provider,
    pki_types::{CertificateDer, CertificateRevocationListDer, PrivateKeyDer, pem::PemObject},
};
use tenure_core::{
    TlsPem,
    spi::{BackendError, BackendErrorKind},
};
use tokio_postgres_rustls::MakeRustlsConnect;

/// The TLS of one connection. The certificates have been checked when they were read.
pub(crate) fn connector(pem: &TlsPem) -> Result<MakeRustlsConnect, BackendError> {
    let unusable =
        |what: &str| BackendError::new(BackendErrorKind::Invalid, format!("{what} cannot be used for TLS"));
    let certificates =
        |text: &str| CertificateDer::pem_slice_iter(text.as_bytes()).collect::<Result<Vec<_>, _>>();
    let mut roots = RootCertStore::empty();
    for authority in certificates(pem.ca()).map_err(|_| unusable("an authority"))? {
        roots.add(authority).map_err(|_| unusable("an authority"))?;
    }
    let revoked =
        CertificateRevocationListDer::pem_slice_iter(pem.ca().as_bytes()).collect::<Result<Vec<_>, _>>();
    let provider = Arc::new(default_provider());
    let verifier = WebPkiServerVerifier::builder_with_provider(Arc::new(roots), Arc::clone(&provider))
        .with_crls(revoked.map_err(|_| unusable("a revocation list"))?)
        .build()
        .map_err(|_| unusable("a revocation list"))?;
    let config = ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .map_err(|_| unusable("the crypto provider"))?
        .with_webpki_verifier(verifier);
    let config = match pem.identity() {
        None => config.with_no_client_auth(),
        Some((certificate, key)) => {
            let chain = certificates(certificate).map_err(|_| unusable("the certificate"))?;
            // The error's text is not used: it could contain part of the key.
            let key =
                PrivateKeyDer::from_pem_slice(key.expose().as_bytes()).map_err(|_| unusable("the key"))?;
            config.with_client_auth_cert(chain, key).map_err(|_| unusable("the certificate"))?
        }
    };
    Ok(MakeRustlsConnect::new(config))
}
