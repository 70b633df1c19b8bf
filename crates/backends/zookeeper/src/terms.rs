//! On what terms connections are made: who we are, whom we trust, and whose what we make is.

use std::{sync::Arc, time::Duration};

use tenure_core::{
    Secret, Tls, TlsPem,
    spi::{BackendError, BackendErrorKind},
};
use tokio::time::sleep;
#[cfg(feature = "sasl")]
use zookeeper_client::SaslOptions;
#[cfg(feature = "tls")]
use zookeeper_client::TlsOptions;
use zookeeper_client::{Acls, Client, Connector, Error};

use crate::config::{Login, Proven};

/// How often it is looked whether the authorities of a standing connection are trusted still.
const LOOK_EVERY: Duration = Duration::from_secs(2);

/// How connections are made.
#[derive(Debug)]
pub(crate) struct Terms {
    pub(crate) login: Option<Login>,
    pub(crate) attempt_timeout: Duration,
    pub(crate) tls: Option<Tls>,
    pub(crate) creator_only: bool,
    /// A path at which nothing ever is.
    pub(crate) nowhere: String,
}

impl Terms {
    /// Who may do what with a znode that is made by us: everybody, or us alone.
    pub(crate) fn acls(&self) -> Acls<'static> {
        if self.creator_only { Acls::creator_all() } else { Acls::anyone_all() }
    }

    /// The passwords to prove who we are with, those of each try together. To SASL one password at a time is shown; for
    /// ZooKeeper's own scheme every password is a user of its own, and a connection can prove that it is several.
    pub(crate) async fn proofs(&self) -> Vec<Vec<Secret>> {
        let Some(login) = &self.login else { return vec![Vec::new()] };
        let candidates = login.password.candidates().await;
        match login.by {
            Proven::Digest => vec![candidates],
            Proven::Sasl => candidates.into_iter().map(|secret| vec![secret]).collect(),
        }
    }

    /// A connection was made with these passwords.
    pub(crate) fn accepted(&self, proof: &[Secret]) {
        if let (Some(Login { password, by: Proven::Sasl, .. }), Some(secret)) = (&self.login, proof.first()) {
            password.accepted(secret);
        }
    }

    /// The store did what only who may enter is permitted.
    pub(crate) fn served(&self) {
        if let Some(Login { password, by: Proven::Digest, .. }) = &self.login {
            password.served();
        }
    }

    /// The error for whoever asked something of the store. A user of ZooKeeper's own scheme whose password is not the right one
    /// is let in, as another user, and is not permitted what it asks for.
    pub(crate) fn not_permitted(&self, error: BackendError) -> BackendError {
        match &self.login {
            Some(Login { by: Proven::Digest, .. }) => self.not_let_in(error),
            _ => error,
        }
    }

    /// The error for whoever connects: a refusal is not final while the password lies in a file that may rotate (hazard G33).
    pub(crate) fn not_let_in(&self, error: BackendError) -> BackendError {
        if error.kind() != BackendErrorKind::Unauthorized {
            return error;
        }
        match self.login.as_ref().and_then(|login| login.password.refused()) {
            Some(words) => BackendError::new(BackendErrorKind::Unavailable, format!("{error}; {words}")),
            None => error,
        }
    }

    /// Returns once the password file holds another than when a connection was made with `before`, and the connection
    /// proves no more who we are. What SASL has proved stands for as long as the connection does.
    pub(crate) async fn rotated(&self, before: Option<&Secret>) {
        let (Some(Login { password, by: Proven::Digest, .. }), Some(before)) = (&self.login, before) else {
            return std::future::pending().await;
        };
        while !password.has_changed_since(before).await {
            sleep(LOOK_EVERY).await;
        }
    }

    /// What may be the matter when the client library says nothing of it: it keeps to itself why a connection was not made.
    pub(crate) fn hint(&self, error: &Error) -> &'static str {
        match error {
            Error::NoHosts | Error::ConnectionLoss if self.tls.is_some() => {
                " (it is not there, its certificate does not hold, or it takes none of ours)"
            }
            _ => "",
        }
    }

    /// What a connection made now shows and trusts; nothing without TLS.
    pub(crate) async fn pem(&self) -> Option<Arc<TlsPem>> {
        match &self.tls {
            Some(tls) => Some(tls.current().await),
            None => None,
        }
    }

    /// Returns once an authority is trusted no more that was when a connection was made with `before`.
    pub(crate) async fn distrusts(&self, before: Option<&TlsPem>) {
        let Some(before) = before else { return std::future::pending().await };
        loop {
            sleep(LOOK_EVERY).await;
            if let Some(now) = self.pem().await
                && now.is_newer_than(before)
                && now.distrusts(before)
            {
                return;
            }
        }
    }

    #[cfg(feature = "tls")]
    pub(crate) async fn connect(
        &self,
        connector: Connector,
        server: &str,
        pem: Option<&TlsPem>,
    ) -> Result<Client, Error> {
        let Some(pem) = pem else { return connector.connect(server).await };
        let mut options = TlsOptions::new().with_pem_ca(pem.ca())?;
        if let Some((certificate, key)) = pem.identity() {
            options = options.with_pem_identity(certificate, key.expose())?;
        }
        connector.with_tls(options).secure_connect(server).await
    }

    #[cfg(not(feature = "tls"))]
    pub(crate) async fn connect(
        &self,
        connector: Connector,
        server: &str,
        pem: Option<&TlsPem>,
    ) -> Result<Client, Error> {
        debug_assert!(pem.is_none(), "refused with the configuration");
        connector.connect(server).await
    }
}

/// A connector that says who we are.
pub(crate) fn proving(connector: Connector, Login { user, by, .. }: &Login, proof: &[Secret]) -> Connector {
    proof.iter().fold(connector, |connector, password| {
        let password = password.expose();
        match by {
            Proven::Digest => connector.with_auth("digest", format!("{user}:{password}").as_bytes()),
            #[cfg(feature = "sasl")]
            Proven::Sasl => connector.with_sasl(SaslOptions::digest_md5(user.clone(), password.to_owned())),
            #[cfg(not(feature = "sasl"))]
            Proven::Sasl => connector,
        }
    })
}
