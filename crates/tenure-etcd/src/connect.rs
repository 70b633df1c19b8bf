//! A client of one member, and what its connection is made with.

use std::time::Duration;

#[cfg(feature = "tls")]
use etcd_client::{Certificate, Identity, TlsOptions};
use etcd_client::{Client, ConnectOptions};
#[cfg(feature = "tls")]
use tenure_core::Tls;

use crate::{
    config::EtcdConfig,
    error::{Failure, asks_for_no_login},
};

/// etcd counts pings that come faster than every 5 s as abuse and then closes the
/// connection (`--grpc-keepalive-min-time`); it allows them only while a stream is open.
const PING_EVERY: Duration = Duration::from_secs(6);
const PING_TIMEOUT: Duration = Duration::from_secs(3);

/// A client of the member at `url`. The caller bounds it in time.
///
/// Without a login nothing is sent here: the channel connects on its first request.
pub(crate) async fn connect(config: &EtcdConfig, url: &str) -> Result<Client, Failure> {
    let client = match open(config, url, options(config, true)).await {
        // The server's auth may be switched off; Go's client goes on without it too.
        Err(error) if asks_for_no_login(&error) => open(config, url, options(config, false)).await,
        outcome => outcome,
    };
    Ok(client?)
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
fn options(config: &EtcdConfig, with_login: bool) -> ConnectOptions {
    let options = ConnectOptions::new()
        .with_connect_timeout(config.connect_timeout)
        .with_keep_alive(PING_EVERY, PING_TIMEOUT)
        .with_keep_alive_while_idle(false)
        .with_tcp_keepalive(Duration::from_secs(10))
        .with_require_leader(true)
        .with_auto_token_refresh(true);
    #[cfg(feature = "tls")]
    let options = match &config.tls {
        Some(tls) => options.with_tls(tls_options(tls)),
        None => options,
    };
    match &config.login {
        Some((user, password)) if with_login => options.with_user(user, password.expose()),
        _ => options,
    }
}

/// The name to check is that of the member's URL.
#[cfg(feature = "tls")]
fn tls_options(tls: &Tls) -> TlsOptions {
    let options = TlsOptions::new().ca_certificate(Certificate::from_pem(tls.ca()));
    match tls.identity() {
        Some((certificate, key)) => options.identity(Identity::from_pem(certificate, key.expose())),
        None => options,
    }
}
