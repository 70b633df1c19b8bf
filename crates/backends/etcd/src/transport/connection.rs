//! The connection to one member: made when it is needed, and anew when it is worn out or our certificates have rotated.

use std::{
    sync::{
        Arc,
        atomic::{AtomicU32, Ordering::Relaxed},
    },
    time::Duration,
};

use etcd_client::{Client, GetOptions};
use tenure_core::TlsPem;
use tokio::{
    sync::Mutex,
    time::{Instant, timeout},
};
use tracing::{debug, warn};

use crate::{config::EtcdConfig, transport::connect::connect, transport::error::Failure};

/// After how many failures in a row a connection is given up for a new one. It mends
/// itself after a lost connection, but not when the runtime it was made on is gone.
const WORN_OUT: u32 = 4;

/// How long the member has to answer over a connection with other certificates.
const PROBATION: Duration = Duration::from_secs(10);
/// After how long such a connection is tried again.
const AGAIN: Duration = Duration::from_secs(10);

/// Where the connection to a member is kept.
pub(crate) struct Connection {
    config: Arc<EtcdConfig>,
    /// Of the member, with the scheme of the protocol.
    url: String,
    probe_key: Arc<str>,
    slot: Mutex<Option<Arc<Connected>>>,
    /// When a connection with other certificates was last tried.
    rotated: std::sync::Mutex<Option<Instant>>,
}

/// A client, and what it was connected with.
pub(crate) struct Connected {
    client: Arc<Client>,
    pem: Option<Arc<TlsPem>>,
    /// How many attempts have failed since the last that did not.
    failures: AtomicU32,
}

impl Connected {
    fn new(client: Client, pem: Option<Arc<TlsPem>>) -> Arc<Self> {
        Arc::new(Self { client: Arc::new(client), pem, failures: AtomicU32::new(0) })
    }

    pub(crate) fn client(&self) -> Arc<Client> {
        Arc::clone(&self.client)
    }

    /// An attempt was answered.
    pub(crate) fn served(&self) {
        self.failures.store(0, Relaxed);
    }
}

impl Connection {
    pub(crate) fn new(config: Arc<EtcdConfig>, endpoint: &str, probe_key: Arc<str>) -> Arc<Self> {
        let scheme = if config.tls.is_some() { "https" } else { "http" };
        let url = format!("{scheme}://{endpoint}");
        Arc::new(Self { config, url, probe_key, slot: Mutex::default(), rotated: Default::default() })
    }

    /// The connection, made when there is none. The caller bounds it in time.
    ///
    /// When our certificates have rotated, one with the new ones is tried beside it, and takes its place once the
    /// member has answered over it: what the store refuses to take costs no leadership while what was there before
    /// serves. Whoever was vouched for by an authority that we trust no more is left at once.
    pub(crate) async fn get(self: &Arc<Self>) -> Result<Arc<Connected>, Failure> {
        let pem = match &self.config.tls {
            Some(tls) => Some(tls.current().await),
            None => None,
        };
        let mut slot = self.slot.lock().await;
        if let Some(connected) = &*slot {
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
        *slot = None;
        let client = connect(&self.config, &self.url, pem.as_deref()).await?;
        Ok(Arc::clone(slot.insert(Connected::new(client, pem))))
    }

    /// Puts a connection with other certificates in the place of `old`, in the background and not too often.
    fn rotate(self: &Arc<Self>, old: Arc<Connected>, pem: Arc<TlsPem>) {
        {
            let mut rotated = self.rotated.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
            if rotated.is_some_and(|at| at.elapsed() < AGAIN) {
                return;
            }
            *rotated = Some(Instant::now());
        }
        let this = Arc::clone(self);
        tokio::spawn(async move {
            let why = match timeout(PROBATION, this.proven(&pem)).await {
                Ok(Ok(client)) => {
                    let mut slot = this.slot.lock().await;
                    if slot.as_ref().is_some_and(|current| Arc::ptr_eq(current, &old)) {
                        debug!(member = this.url, "connected to etcd with other certificates");
                        *slot = Some(Connected::new(client, Some(pem)));
                    }
                    return;
                }
                Ok(Err(failure)) => failure.error.to_string(),
                Err(_) => format!("no answer within {PROBATION:?}"),
            };
            warn!(
                member = this.url,
                why, "etcd does not serve us with the new certificates; those before them still are used"
            );
        });
    }

    /// A client with these certificates, that the member has answered.
    async fn proven(&self, pem: &TlsPem) -> Result<Client, Failure> {
        let client = connect(&self.config, &self.url, Some(pem)).await?;
        client.kv_client().get(&*self.probe_key, Some(GetOptions::new().with_count_only())).await?;
        Ok(client)
    }

    /// An attempt over this connection has failed: after some in a row another is made.
    pub(crate) fn failed(&self, connected: &Arc<Connected>) {
        if connected.failures.fetch_add(1, Relaxed) + 1 >= WORN_OUT {
            self.forget(Some(connected));
        }
    }

    /// Forgets the connection and its login, unless a new one is being made; only this one when one is given.
    pub(crate) fn forget(&self, only: Option<&Arc<Connected>>) {
        if let Ok(mut slot) = self.slot.try_lock()
            && only.is_none_or(|only| slot.as_ref().is_some_and(|current| Arc::ptr_eq(current, only)))
        {
            *slot = None;
        }
    }
}
