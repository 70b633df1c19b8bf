//! The backend.

use std::{
    collections::BTreeSet,
    sync::{Arc, Mutex, OnceLock},
    time::Duration,
};

use async_stream::try_stream;
use async_trait::async_trait;
use tenure_core::{
    BootClock, Candidate, Diagnosis, ElectionName, Error,
    internal::lock,
    spi::{
        Backend, BackendError, BackendErrorKind, BackendSession, Capabilities, Observation, SessionOptions,
        SessionScope,
    },
};
use tokio::time::timeout;

use crate::{
    config::KubernetesConfig,
    election::{Candidacy, ElectionLease, Observer},
    label::PodLabel,
    observed::Sightings,
    session::LeaseSession,
    transport::Client,
};

/// How long observers wait for the token of a new leader, which it publishes by a second write.
const TOKEN_WAIT: Duration = Duration::from_millis(500);
/// The drift bound of observers. It decides what they are shown, and nothing else.
const OBSERVERS_DRIFT: f64 = 0.1;

/// Elections by the Leases of a namespace of a Kubernetes cluster.
///
/// The [crate documentation](crate) lists the guarantees and the assumptions.
#[derive(Debug)]
pub struct KubernetesBackend {
    client: Arc<Client>,
    /// What candidates have seen, by the engine's clock. It decides who takes over.
    seen_by_candidates: OnceLock<Arc<Sightings>>,
    /// What observers have seen, by the machine's clock: they have no session, and so no other.
    seen_by_observers: Arc<Sightings>,
    warned: Arc<Mutex<BTreeSet<String>>>,
    /// The label of this pod, once a session was opened.
    label: Mutex<Option<Arc<PodLabel>>>,
}

impl KubernetesBackend {
    /// A backend for the namespace that `config` describes. Does not connect yet.
    ///
    /// # Errors
    /// When `config` has a name, a file or a time that is not allowed.
    pub fn new(config: KubernetesConfig) -> Result<Self, Error> {
        config.check()?;
        Ok(Self {
            client: Arc::new(Client::new(config)),
            seen_by_candidates: OnceLock::new(),
            seen_by_observers: Arc::new(Sightings::new(Arc::new(BootClock), OBSERVERS_DRIFT)),
            warned: Arc::default(),
            label: Mutex::default(),
        })
    }

    /// The label of this pod, if it is asked for. Needs a runtime.
    fn label(&self) -> Option<Arc<PodLabel>> {
        let pod = self.client.config().labeled_pod.as_ref()?;
        let mut label = lock(&self.label);
        Some(Arc::clone(label.get_or_insert_with(|| Arc::new(PodLabel::start(&self.client, pod)))))
    }

    /// The Lease of an election, for observers.
    fn lease(&self, election: &ElectionName) -> ElectionLease {
        ElectionLease::new(&self.client, &self.seen_by_observers, &self.warned, election)
    }
}

#[async_trait]
impl Backend for KubernetesBackend {
    fn capabilities(&self) -> Capabilities {
        Capabilities::QUEUE
            .ordered(false)
            .early_token(false)
            .shows_waiting(false)
            .session_scope(SessionScope::Election)
    }

    fn store_name(&self) -> String {
        let config = self.client.config();
        let namespace = config.namespace.as_ref().map(|it| format!(", namespace {it}")).unwrap_or_default();
        let context = config.context.as_ref().map(|it| format!(", context {it}")).unwrap_or_default();
        format!("Kubernetes{namespace}{context}")
    }

    async fn open_session(&self, options: &SessionOptions) -> Result<Box<dyn BackendSession>, BackendError> {
        let Some(election) = &options.election else {
            let text = "a session of Kubernetes serves one election, and none is named";
            return Err(BackendError::new(BackendErrorKind::Invalid, text));
        };
        let new = || Arc::new(Sightings::new(Arc::clone(&options.clock), options.drift));
        let sightings = self.seen_by_candidates.get_or_init(new);
        let lease = ElectionLease::new(&self.client, sightings, &self.warned, election);
        let id = format!("{:016x}", fastrand::u64(..));
        let candidacy = Candidacy::new(lease, id.clone(), whole_seconds(options.ttl)?, self.label());
        Ok(Box::new(LeaseSession::new(id, options.drift, candidacy)))
    }

    async fn candidates(&self, election: &ElectionName) -> Result<Vec<Candidate>, BackendError> {
        Ok(self.lease(election).leader().await?.into_iter().collect())
    }

    async fn elections(&self) -> Result<Vec<ElectionName>, BackendError> {
        let mut elections = Vec::new();
        for record in self.client.list().await? {
            let Some(election) = record.election().filter(|_| record.payload().is_some()) else { continue };
            if self.lease(&election).leader_seen(&record).is_some() {
                elections.push(election);
            }
        }
        Ok(elections)
    }

    async fn observe(&self, election: &ElectionName) -> Result<Observation, BackendError> {
        let lease = self.lease(election);
        Ok(Box::pin(try_stream! {
            let mut observer = Observer::start(lease).await?;
            loop {
                if observer.lacks_token() {
                    timeout(TOKEN_WAIT, observer.changed()).await.unwrap_or(Ok(()))?;
                }
                yield observer.leader();
                observer.changed().await?;
            }
        }))
    }

    async fn request_resign(&self, election: &ElectionName) -> Result<Option<Candidate>, BackendError> {
        self.lease(election).request_resign().await
    }

    async fn diagnose(&self) -> Vec<Diagnosis> {
        crate::diagnose::diagnose(&self.client).await
    }

    async fn close(&self) {
        let label = lock(&self.label).take();
        if let Some(label) = label {
            label.close().await;
        }
        self.client.disconnect();
    }
}

/// The duration of a Lease has whole seconds: the TTL, rounded up.
fn whole_seconds(ttl: Duration) -> Result<i32, BackendError> {
    let seconds = ttl.as_secs() + u64::from(ttl.subsec_nanos() > 0);
    i32::try_from(seconds).ok().filter(|seconds| *seconds > 0).ok_or_else(|| {
        let text =
            format!("the TTL {ttl:?} is not allowed: the duration of a lease is from 1 s to 2³¹ - 1 s");
        BackendError::new(BackendErrorKind::Invalid, text)
    })
}
