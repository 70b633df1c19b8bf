//! On what terms connections are made: who we are, whom we trust, and whose what we make is.

use std::{sync::Arc, time::Duration};

use tenure_core::{Tls, TlsPem};
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
pub(crate) fn proving(connector: Connector, Login { user, password, by }: &Login) -> Connector {
    let password = password.expose();
    match by {
        Proven::Digest => connector.with_auth("digest", format!("{user}:{password}").as_bytes()),
        #[cfg(feature = "sasl")]
        Proven::Sasl => connector.with_sasl(SaslOptions::digest_md5(user.clone(), password.to_owned())),
        #[cfg(not(feature = "sasl"))]
        Proven::Sasl => connector,
    }
}
