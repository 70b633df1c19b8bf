//! Connects a client to one member.

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
    transport::error::{AUTH_DISABLED, Failure, WRONG_PASSWORD, status_contains},
};

/// How often a connection with an open stream is pinged.
///
/// etcd counts pings more often than every 5 s as abuse and then closes the connection
/// (`--grpc-keepalive-min-time`). It allows pings only while a stream is open.
const PING_INTERVAL: Duration = Duration::from_secs(6);
const PING_TIMEOUT: Duration = Duration::from_secs(3);
const TCP_KEEPALIVE: Duration = Duration::from_secs(10);

/// A client of the member at `url`. It uses the certificates of `pem` when TLS is configured. The caller sets a
/// timeout.
///
/// Without a login this sends nothing: the channel connects on its first request. A password file is read again when
/// it may have changed, and a rejected password is retried for a while (hazard G33).
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
            // Authentication may be disabled on the server. Go's client continues without it as well.
            Err(error) if status_contains(&error, AUTH_DISABLED) => {
                static WARNED: Once = Once::new();
                WARNED.call_once(|| {
                    warn!(url, "etcd authentication is disabled: the configured login is not used");
                });
                return Ok(open(config, url, options(config, pem, None)).await?);
            }
            Err(error) if status_contains(&error, WRONG_PASSWORD) => {
                refused = Some(Failure::from(error).error)
            }
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
    let endpoint = crate::test_support::Endpoint {
        url,
        connect_timeout: config.connect_timeout,
        ping_interval: PING_INTERVAL,
        ping_timeout: PING_TIMEOUT,
    };
    Client::from_channel(network.connect(&endpoint), Some(options)).await
}

/// The options of a connection. Never stored or printed: their `Debug` shows the password.
fn options(config: &EtcdConfig, pem: Option<&TlsPem>, login: Option<(&String, &Secret)>) -> ConnectOptions {
    let options = ConnectOptions::new()
        .with_connect_timeout(config.connect_timeout)
        .with_keep_alive(PING_INTERVAL, PING_TIMEOUT)
        .with_keep_alive_while_idle(false)
        .with_tcp_keepalive(TCP_KEEPALIVE)
        .with_require_leader(true)
        .with_auto_token_refresh(true);
    #[cfg(feature = "tls")]
    let options = match pem {
        Some(pem) => options.with_tls(tls_options(pem)),
        None => options,
    };
    #[cfg(not(feature = "tls"))]
    debug_assert!(pem.is_none(), "EtcdConfig::check rejects TLS without the feature");
    match login {
        Some((user, password)) => options.with_user(user, password.expose()),
        None => options,
    }
}

/// Without a domain name: the certificate is checked against the host name in the member's URL.
#[cfg(feature = "tls")]
fn tls_options(pem: &TlsPem) -> TlsOptions {
    let options = TlsOptions::new().ca_certificate(Certificate::from_pem(pem.ca()));
    match pem.identity() {
        Some((certificate, key)) => options.identity(Identity::from_pem(certificate, key.expose())),
        None => options,
    }
}
