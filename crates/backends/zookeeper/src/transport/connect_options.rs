//! Options for new connections: credentials, TLS, timeouts, and the ACL of created znodes.

use std::{sync::Arc, time::Duration};

use tenure_core::{
    Password, Secret, Tls, TlsPem,
    spi::{BackendError, BackendErrorKind},
};
use tokio::time::sleep;
#[cfg(feature = "sasl")]
use zookeeper_client::SaslOptions;
#[cfg(feature = "tls")]
use zookeeper_client::TlsOptions;
use zookeeper_client::{Acls, Client, Connector, Error};

/// The TTL of a session that is opened only to read.
pub(crate) const READER_TTL: Duration = Duration::from_secs(10);

/// How often the credentials of an open connection are compared with the current ones.
const CREDENTIALS_CHECK_INTERVAL: Duration = Duration::from_secs(2);

/// A user and how it authenticates.
#[derive(Clone, Debug)]
pub(crate) struct Login {
    pub(crate) user: String,
    pub(crate) password: Password,
    pub(crate) scheme: AuthScheme,
}

/// How a user authenticates.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum AuthScheme {
    /// ZooKeeper's `digest` scheme. The servers keep no list of users: an id is a name and the hash of a password.
    Digest,
    /// SASL with DIGEST-MD5. The servers know the users, and the password is not transmitted.
    Sasl,
}

/// How to connect to a server.
#[derive(Debug)]
pub(crate) struct ConnectOptions {
    pub(crate) login: Option<Login>,
    pub(crate) attempt_timeout: Duration,
    pub(crate) tls: Option<Tls>,
    /// Whether created znodes belong to their creator alone, or to everybody.
    pub(crate) creator_only: bool,
    /// The znode below which elections lie.
    pub(crate) root: String,
    /// The path of [`Connection::barrier`](super::connection::Connection::barrier). No znode exists there.
    pub(crate) barrier_path: String,
}

impl ConnectOptions {
    /// The ACL of created znodes.
    pub(crate) fn acls(&self) -> Acls<'static> {
        if self.creator_only { Acls::creator_all() } else { Acls::anyone_all() }
    }

    /// The passwords to try, one item per attempt to connect.
    ///
    /// SASL takes one password per attempt. With the `digest` scheme every password makes another id, and one
    /// connection can have several ids.
    pub(crate) async fn password_attempts(&self) -> Vec<Vec<Secret>> {
        let Some(login) = &self.login else { return vec![Vec::new()] };
        let candidates = login.password.candidates().await;
        match login.scheme {
            AuthScheme::Digest => vec![candidates],
            AuthScheme::Sasl => candidates.into_iter().map(|secret| vec![secret]).collect(),
        }
    }

    /// Records that a server accepted these passwords.
    pub(crate) fn login_succeeded(&self, passwords: &[Secret]) {
        let Some(Login { password, scheme: AuthScheme::Sasl, .. }) = &self.login else { return };
        if let Some(secret) = passwords.first() {
            password.accepted(secret);
        }
    }

    /// Records that the store carried out a request that needs permission.
    pub(crate) fn request_permitted(&self) {
        if let Some(Login { password, scheme: AuthScheme::Digest, .. }) = &self.login {
            password.served();
        }
    }

    /// The error of a request. With the `digest` scheme a wrong password is not refused at login: it
    /// makes another user, whose requests are denied.
    pub(crate) fn request_error(&self, error: BackendError) -> BackendError {
        match &self.login {
            Some(Login { scheme: AuthScheme::Digest, .. }) => self.login_error(error),
            _ => error,
        }
    }

    /// The error of an attempt to log in. A refusal is not permanent while the password is in a file that may rotate
    /// (hazard G33).
    pub(crate) fn login_error(&self, error: BackendError) -> BackendError {
        if !matches!(error.kind(), BackendErrorKind::Unauthorized | BackendErrorKind::Forbidden) {
            return error;
        }
        match self.login.as_ref().and_then(|login| login.password.refused()) {
            Some(retry_hint) => {
                BackendError::new(BackendErrorKind::Unavailable, format!("{error}; {retry_hint}"))
            }
            None => error,
        }
    }

    /// Waits until the password file has changed since a `digest` connection was made with the password `before`. A
    /// SASL login is valid for as long as its connection.
    pub(crate) async fn password_changed(&self, before: Option<&Secret>) {
        let (Some(Login { password, scheme: AuthScheme::Digest, .. }), Some(before)) = (&self.login, before)
        else {
            return std::future::pending().await;
        };
        while !password.has_changed_since(before).await {
            sleep(CREDENTIALS_CHECK_INTERVAL).await;
        }
    }

    /// A possible cause of `error`: the client library does not say why a TLS connection failed.
    pub(crate) fn failure_hint(&self, error: &Error) -> &'static str {
        match error {
            Error::NoHosts | Error::ConnectionLoss if self.tls.is_some() => {
                " (it is unreachable, its certificate is not valid, or it refuses our certificate)"
            }
            _ => "",
        }
    }

    /// The certificates for a connection made now; `None` without TLS.
    pub(crate) async fn current_pem(&self) -> Option<Arc<TlsPem>> {
        match &self.tls {
            Some(tls) => Some(tls.current().await),
            None => None,
        }
    }

    /// Waits until an authority has been removed that was trusted when a connection was made with `before`.
    pub(crate) async fn authority_removed(&self, before: Option<&TlsPem>) {
        let Some(before) = before else { return std::future::pending().await };
        loop {
            sleep(CREDENTIALS_CHECK_INTERVAL).await;
            if let Some(now) = self.current_pem().await
                && now.is_newer_than(before)
                && now.distrusts(before)
            {
                return;
            }
        }
    }

    pub(crate) async fn connect(
        &self,
        connector: Connector,
        address: &str,
        pem: Option<&TlsPem>,
    ) -> Result<Client, Error> {
        #[cfg(feature = "tls")]
        if let Some(pem) = pem {
            let mut options = TlsOptions::new().with_pem_ca(pem.ca())?;
            if let Some((certificate, key)) = pem.identity() {
                options = options.with_pem_identity(certificate, key.expose())?;
            }
            return connector.with_tls(options).secure_connect(address).await;
        }
        debug_assert!(pem.is_none(), "the configuration refuses TLS without the feature");
        connector.connect(address).await
    }
}

/// Adds credentials to a connector.
pub(crate) fn with_credentials(
    connector: Connector,
    Login { user, scheme, .. }: &Login,
    passwords: &[Secret],
) -> Connector {
    passwords.iter().fold(connector, |connector, password| {
        let password = password.expose();
        match scheme {
            AuthScheme::Digest => connector.with_auth("digest", format!("{user}:{password}").as_bytes()),
            #[cfg(feature = "sasl")]
            AuthScheme::Sasl => {
                connector.with_sasl(SaslOptions::digest_md5(user.clone(), password.to_owned()))
            }
            #[cfg(not(feature = "sasl"))]
            AuthScheme::Sasl => connector,
        }
    })
}
