//! The connection to one member. It is opened on demand, and replaced after repeated failures or a certificate
//! rotation.

use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU32, Ordering::Relaxed},
    },
    time::Duration,
};

use etcd_client::{Client, GetOptions};
use tenure_core::{TlsPem, internal::lock};
use tokio::{
    sync::Mutex,
    time::{Instant, timeout},
};
use tracing::{debug, warn};

use crate::{
    config::EtcdConfig,
    transport::{connect::connect, error::Failure, tls_probe::speaks_tls},
};

/// How many failures in a row until a connection is replaced. A channel reconnects by itself after a lost connection,
/// but not when the runtime on which it was created has shut down.
const MAX_CONSECUTIVE_FAILURES: u32 = 4;

/// How long the member has to answer over a connection with rotated certificates.
const ROTATION_TIMEOUT: Duration = Duration::from_secs(10);
/// The least time between two attempts to connect with rotated certificates.
const ROTATION_RETRY_INTERVAL: Duration = Duration::from_secs(10);

/// The least time between two probes whether a member speaks TLS.
const TLS_PROBE_INTERVAL: Duration = Duration::from_secs(10);
const SPEAKS_TLS: &str = "the member speaks TLS, and its authority is not configured: add the setting \
                          ca=/path/to/authorities.pem";

/// The connection to one member.
pub(crate) struct Connection {
    config: Arc<EtcdConfig>,
    /// `host:port`.
    endpoint: String,
    /// The member's URL, with the scheme.
    url: String,
    probe_key: Arc<str>,
    current: Mutex<Option<Arc<ConnectedClient>>>,
    /// When a connection with rotated certificates was last attempted.
    last_rotation: std::sync::Mutex<Option<Instant>>,
    /// Whether the member has ever answered.
    has_answered: AtomicBool,
    /// When it was last probed whether the member speaks TLS, and whether it does.
    tls_probe: Mutex<Option<(Instant, bool)>>,
}

/// A client, and the certificates that it uses.
pub(crate) struct ConnectedClient {
    client: Arc<Client>,
    pem: Option<Arc<TlsPem>>,
    consecutive_failures: AtomicU32,
}

impl ConnectedClient {
    fn new(client: Client, pem: Option<Arc<TlsPem>>) -> Arc<Self> {
        Arc::new(Self { client: Arc::new(client), pem, consecutive_failures: AtomicU32::new(0) })
    }

    pub(crate) fn client(&self) -> Arc<Client> {
        Arc::clone(&self.client)
    }
}

impl Connection {
    pub(crate) fn new(config: Arc<EtcdConfig>, endpoint: &str, probe_key: Arc<str>) -> Arc<Self> {
        let scheme = if config.tls.is_some() { "https" } else { "http" };
        let url = format!("{scheme}://{endpoint}");
        Arc::new(Self {
            config,
            endpoint: endpoint.to_owned(),
            url,
            probe_key,
            current: Mutex::default(),
            last_rotation: std::sync::Mutex::default(),
            has_answered: AtomicBool::new(false),
            tls_probe: Mutex::default(),
        })
    }

    /// The connected client; connects when there is none. The caller sets a timeout.
    ///
    /// After a certificate rotation a connection with the new certificates is tried in the background, and replaces
    /// the current one once the member has answered over it. So certificates that the store rejects cost no
    /// leadership while the current connection works. A connection is dropped immediately when it was verified by a
    /// certificate authority that is no longer trusted.
    pub(crate) async fn get(self: &Arc<Self>) -> Result<Arc<ConnectedClient>, Failure> {
        let pem = match &self.config.tls {
            Some(tls) => Some(tls.current().await),
            None => None,
        };
        let mut current = self.current.lock().await;
        if let Some(connected) = &*current {
            match (&connected.pem, &pem) {
                (Some(before), Some(now)) if now.is_newer_than(before) => {
                    if !now.distrusts(before) {
                        self.rotate(Arc::clone(connected), Arc::clone(now));
                        return Ok(Arc::clone(connected));
                    }
                }
                _ => return Ok(Arc::clone(connected)),
            }
        }
        *current = None;
        let client = connect(&self.config, &self.url, pem.as_deref()).await?;
        Ok(Arc::clone(current.insert(ConnectedClient::new(client, pem))))
    }

    /// Replaces `old` by a connection with other certificates, in the background and at most once per
    /// [`ROTATION_RETRY_INTERVAL`].
    fn rotate(self: &Arc<Self>, old: Arc<ConnectedClient>, pem: Arc<TlsPem>) {
        {
            let mut last = lock(&self.last_rotation);
            if last.is_some_and(|at| at.elapsed() < ROTATION_RETRY_INTERVAL) {
                return;
            }
            *last = Some(Instant::now());
        }
        let this = Arc::clone(self);
        tokio::spawn(async move {
            let error = match timeout(ROTATION_TIMEOUT, this.connect_and_verify(&pem)).await {
                Ok(Ok(client)) => {
                    let mut current = this.current.lock().await;
                    if current.as_ref().is_some_and(|current| Arc::ptr_eq(current, &old)) {
                        debug!(member = this.url, "reconnected to etcd with rotated certificates");
                        *current = Some(ConnectedClient::new(client, Some(pem)));
                    }
                    return;
                }
                Ok(Err(failure)) => failure.error.to_string(),
                Err(_) => format!("no answer within {ROTATION_TIMEOUT:?}"),
            };
            warn!(
                member = this.url,
                error,
                "connecting to etcd with rotated certificates failed: the previous certificates stay in use"
            );
        });
    }

    /// A client with these certificates, which the member has answered.
    async fn connect_and_verify(&self, pem: &TlsPem) -> Result<Client, Failure> {
        let client = connect(&self.config, &self.url, Some(pem)).await?;
        client.kv_client().get(&*self.probe_key, Some(GetOptions::new().with_count_only())).await?;
        Ok(client)
    }

    /// Records that an attempt over this connection was answered.
    pub(crate) fn record_success(&self, connected: &ConnectedClient) {
        connected.consecutive_failures.store(0, Relaxed);
        self.has_answered.store(true, Relaxed);
    }

    /// Why the member has never answered, if it can be found out: it speaks TLS, and this client does not.
    pub(crate) async fn explain(&self) -> Option<&'static str> {
        #[cfg(feature = "simulation")]
        if self.config.network.is_some() {
            return None;
        }
        if self.config.tls.is_some() || self.has_answered.load(Relaxed) {
            return None;
        }
        let mut last = self.tls_probe.lock().await;
        if last.is_none_or(|(at, _)| at.elapsed() >= TLS_PROBE_INTERVAL) {
            *last = Some((Instant::now(), speaks_tls(&self.endpoint).await));
        }
        last.is_some_and(|(_, speaks_tls)| speaks_tls).then_some(SPEAKS_TLS)
    }

    /// Records that an attempt over this connection failed, and drops the connection after several failures in a row.
    pub(crate) fn record_failure(&self, connected: &Arc<ConnectedClient>) {
        if connected.consecutive_failures.fetch_add(1, Relaxed) + 1 >= MAX_CONSECUTIVE_FAILURES {
            self.disconnect(Some(connected));
        }
    }

    /// Drops the connection and its login, unless a new one is being opened. With `only`, drops that connection
    /// alone.
    pub(crate) fn disconnect(&self, only: Option<&Arc<ConnectedClient>>) {
        if let Ok(mut slot) = self.current.try_lock()
            && only.is_none_or(|only| slot.as_ref().is_some_and(|current| Arc::ptr_eq(current, only)))
        {
            *slot = None;
        }
    }
}
