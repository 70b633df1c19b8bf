//! A client of one member, and what its connection is made with.

use std::{sync::Once, time::Duration};

#[cfg(feature = "tls")]
use etcd_client::{Certificate, Identity, TlsOptions};
use etcd_client::{Client, ConnectOptions};
use tenure_core::{
    Secret, TlsPem,
    spi::{BackendError, BackendErrorKind},
};
use tracing::warn;

use crate::{
    config::EtcdConfig,
    transport::error::{Failure, asks_for_no_login, is_wrong_password},
};

/// etcd counts pings that come faster than every 5 s as abuse and then closes the
/// connection (`--grpc-keepalive-min-time`); it allows them only while a stream is open.
const PING_EVERY: Duration = Duration::from_secs(6);
const PING_TIMEOUT: Duration = Duration::from_secs(3);

/// A client of the member at `url`, by the certificates of `pem` when it is to speak TLS. The caller bounds it in time.
///
/// Without a login nothing is sent here: the channel connects on its first request. A password in a file is read again
/// when it may have changed, and a refused one is to be tried again for a while (hazard G33).
pub(crate) async fn connect(config: &EtcdConfig, url: &str, pem: Option<&TlsPem>) -> Result<Client, Failure> {
    let Some((user, password)) = &config.login else {
        return Ok(open(config, url, options(config, pem, None)).await?);
    };
    let mut refused = None;
    for secret in password.candidates().await {
        match open(config, url, options(config, pem, Some((user, &secret)))).await {
            Ok(client) => {
                password.accepted(&secret);
                return Ok(client);
            }
            // The server's auth may be switched off; Go's client goes on without it too.
            Err(error) if asks_for_no_login(&error) => {
                static WARNED: Once = Once::new();
                WARNED.call_once(|| {
                    warn!(url, "etcd asks nobody who they are: its auth is off, and the login unused")
                });
                return Ok(open(config, url, options(config, pem, None)).await?);
            }
            Err(error) if is_wrong_password(&error) => refused = Some(Failure::from(error).error),
            Err(error) => return Err(error.into()),
        }
    }
    let error = refused.unwrap_or_else(|| BackendError::new(BackendErrorKind::Unauthorized, "no password"));
    Err(match password.refused() {
        Some(words) => BackendError::new(BackendErrorKind::Unavailable, format!("{error}; {words}")).into(),
        None => error.into(),
    })
}

#[cfg(not(feature = "simulation"))]
async fn open(_: &EtcdConfig, url: &str, options: ConnectOptions) -> Result<Client, etcd_client::Error> {
    Client::connect([url], Some(options)).await
}

#[cfg(feature = "simulation")]
async fn open(config: &EtcdConfig, url: &str, options: ConnectOptions) -> Result<Client, etcd_client::Error> {
    let Some(network) = &config.network else {
        return Client::connect([url], Some(options)).await;
    };
    let reach = crate::simulation::Reach {
        url,
        connect_timeout: config.connect_timeout,
        ping_every: PING_EVERY,
        ping_timeout: PING_TIMEOUT,
    };
    Client::from_channel(network.reach(&reach), Some(options)).await
}

/// What to connect with. Never kept or printed: its `Debug` shows the password.
fn options(config: &EtcdConfig, pem: Option<&TlsPem>, login: Option<(&String, &Secret)>) -> ConnectOptions {
    let options = ConnectOptions::new()
        .with_connect_timeout(config.connect_timeout)
        .with_keep_alive(PING_EVERY, PING_TIMEOUT)
        .with_keep_alive_while_idle(false)
        .with_tcp_keepalive(Duration::from_secs(10))
        .with_require_leader(true)
        .with_auto_token_refresh(true);
    #[cfg(feature = "tls")]
    let options = match pem {
        Some(pem) => options.with_tls(tls_options(pem)),
        None => options,
    };
    #[cfg(not(feature = "tls"))]
    debug_assert!(pem.is_none(), "refused with the configuration");
    match login {
        Some((user, password)) => options.with_user(user, password.expose()),
        None => options,
    }
}

/// The name to check is that of the member's URL.
#[cfg(feature = "tls")]
fn tls_options(pem: &TlsPem) -> TlsOptions {
    let options = TlsOptions::new().ca_certificate(Certificate::from_pem(pem.ca()));
    match pem.identity() {
        Some((certificate, key)) => options.identity(Identity::from_pem(certificate, key.expose())),
        None => options,
    }
}
