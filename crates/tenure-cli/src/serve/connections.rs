//! Accepts connections, each for one request, and bounds what they may cost.

use std::{convert::Infallible, sync::Arc, time::Duration};

use axum::Router;
use hyper::server::conn::http1;
use hyper_util::{
    rt::{TokioIo, TokioTimer},
    service::TowerToHyperService,
};
use tokio::{
    io::{AsyncRead, AsyncWrite},
    sync::Semaphore,
    time::{sleep, timeout},
};
use tracing::debug;

use super::{address::Listener, api, events};
use crate::messages;

/// How many connections are served at once; more are accepted when one of them ends. More than four requests for each lease, the
/// subscribers and the viewers together, so that renewals are not kept waiting by them.
const MAX_CONNECTIONS: usize = 512;
/// How long the header of a request may take to arrive.
const HEADER_TIMEOUT: Duration = Duration::from_secs(5);
const MAX_HEADER_BYTES: usize = 16 * 1024;
const MAX_HEADERS: usize = 64;
/// How long a connection lasts at most: the longest subscription, and time to send what is left.
const MAX_CONNECTION: Duration = events::MAX_SUBSCRIPTION.saturating_add(api::MAX_WAIT);
/// The pause after the system has refused a connection, for example because too many files are open.
const RETRY_ACCEPT: Duration = Duration::from_millis(100);

/// How long the end waits for answers that are being sent.
const END_TIMEOUT: Duration = Duration::from_secs(2);

/// The connections that are served.
#[derive(Debug)]
pub(super) struct Connections(Arc<Semaphore>);

impl Connections {
    pub(super) fn new() -> Self {
        Self(Arc::new(Semaphore::new(MAX_CONNECTIONS)))
    }

    /// Waits, within bounds, until every request has been answered. No connection is accepted any more.
    pub(super) async fn ended(&self) {
        let _ = timeout(END_TIMEOUT, self.0.acquire_many(MAX_CONNECTIONS as u32)).await;
    }
}

/// Serves connections for ever.
pub(super) async fn accept(listener: &Listener, router: Router, connections: &Connections) -> Infallible {
    let mut has_failed = false;
    loop {
        let Ok(permit) = Arc::clone(&connections.0).acquire_owned().await else {
            unreachable!("it is never closed")
        };
        let router = router.clone();
        let accepted = match listener {
            Listener::Tcp(listener) => listener.accept().await.map(|(stream, _)| {
                // Answers are short.
                let _ = stream.set_nodelay(true);
                tokio::spawn(async move {
                    serve_one(stream, router).await;
                    drop(permit);
                });
            }),
            Listener::Unix(listener, _) => listener.accept().await.map(|(stream, _)| {
                tokio::spawn(async move {
                    serve_one(stream, router).await;
                    drop(permit);
                });
            }),
        };
        match accepted {
            Ok(()) => has_failed = false,
            Err(error) => {
                // Once until one is accepted again.
                if !has_failed {
                    messages::try_print(&format!(
                        "cannot accept connections, so that no lease is renewed: {error}"
                    ));
                }
                has_failed = true;
                sleep(RETRY_ACCEPT).await;
            }
        }
    }
}

/// Serves one request. A client that sends nothing, or does not read the answer, holds a permit for a bounded time.
async fn serve_one(stream: impl AsyncRead + AsyncWrite + Unpin, router: Router) {
    let connection = http1::Builder::new()
        .timer(TokioTimer::new())
        .keep_alive(false)
        .header_read_timeout(HEADER_TIMEOUT)
        .max_header_size(MAX_HEADER_BYTES)
        .max_headers(MAX_HEADERS)
        .serve_connection(TokioIo::new(stream), TowerToHyperService::new(router));
    match timeout(MAX_CONNECTION, connection).await {
        Ok(Ok(())) => {}
        Ok(Err(error)) => debug!(%error, "a connection has failed"),
        Err(_) => debug!("a connection has lasted too long"),
    }
}
