//! A candidate of client-go's `leaderelection`, in a container of its own.

use std::{sync::Arc, time::Duration};

use serde::Deserialize;

use crate::{
    container::Container,
    error::ContainerError,
    fault::{Fault, Undo},
    health::HealthCheck,
    kubernetes::{cluster::KubernetesCluster, settings::PORT},
    network::Network,
    program::Program,
    spec::ContainerSpec,
    tls::write_file_script,
};

/// What client-go calls `LeaderElectionConfig`. By default short times, in the proportions of client-go's own, and
/// `ReleaseOnCancel`.
#[derive(Clone, Debug)]
pub struct GoCandidateSettings {
    /// For how long the others wait until they take a Lease over that is not renewed.
    pub lease_duration: Duration,
    /// For how long a leader tries to renew before it gives up.
    pub renew_deadline: Duration,
    /// The pause between two attempts.
    pub retry_period: Duration,
    /// Whether a leader that is told to end empties the Lease.
    pub release_on_cancel: bool,
}

impl Default for GoCandidateSettings {
    fn default() -> Self {
        Self {
            lease_duration: Duration::from_secs(6),
            renew_deadline: Duration::from_secs(4),
            retry_period: Duration::from_millis(500),
            release_on_cancel: true,
        }
    }
}

/// What a candidate of client-go reports.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(tag = "event", content = "identity", rename_all = "lowercase")]
pub enum GoEvent {
    /// The candidate with this identity campaigns.
    Campaigns(String),
    /// The candidate with this identity leads.
    Started(String),
    /// The candidate with this identity does not lead any more, or never did, and ends.
    Stopped(String),
    /// It has seen that the one with this identity leads.
    Leader(String),
}

/// A candidate of client-go's `leaderelection`. Dropping it kills it.
#[derive(Debug)]
pub struct GoCandidate {
    // Fields are dropped in this order: a network can be removed only after its containers.
    program: Program,
    container: Arc<Container>,
    peers: Arc<Network>,
    ip: String,
}

impl GoCandidate {
    /// Starts a candidate for a Lease, as the user `admin` of the API server with the number `server`. Returns once it campaigns.
    ///
    /// # Errors
    /// When Docker fails, or the candidate does not start.
    pub async fn start(
        cluster: &KubernetesCluster,
        server: usize,
        (namespace, lease): (&str, &str),
        identity: &str,
        settings: &GoCandidateSettings,
    ) -> Result<Self, ContainerError> {
        let admin = cluster.server(server).admin();
        let endpoint = format!("{}:{PORT}", cluster.servers().ip(server));
        let kubeconfig = admin.kubeconfig(&endpoint, "admin-token", namespace).await?;
        let version = cluster.server(server).version();
        let spec = ContainerSpec::new(version, PORT, "sleep", vec!["infinity".to_owned()]);
        let container = Arc::new(Container::run(&spec).await?);
        let (peers, ip) = cluster.join(&container).await?;
        container.run_script(&write_file_script("/data/kubeconfig", kubeconfig.as_bytes())).await?;
        let program = Program::run(
            &container,
            &[
                "go-candidate",
                "--kubeconfig=/data/kubeconfig",
                &format!("--namespace={namespace}"),
                &format!("--lease={lease}"),
                &format!("--identity={identity}"),
                &format!("--lease-duration={}ms", settings.lease_duration.as_millis()),
                &format!("--renew-deadline={}ms", settings.renew_deadline.as_millis()),
                &format!("--retry-period={}ms", settings.retry_period.as_millis()),
                &format!("--release-on-cancel={}", settings.release_on_cancel),
            ],
        )
        .await?;
        let mut candidate = Self { program, container, peers, ip };
        candidate.wait_for(&GoEvent::Campaigns(identity.to_owned())).await?;
        Ok(candidate)
    }

    /// The next event; `None` once the candidate has ended.
    pub async fn next_event(&mut self) -> Option<GoEvent> {
        while let Some(line) = self.program.next_line().await {
            // The others are messages for people.
            if let Ok(event) = serde_json::from_str(&line) {
                return Some(event);
            }
        }
        None
    }

    /// Waits for this event, and ignores the others before it.
    ///
    /// # Errors
    /// When the candidate ends first; the error quotes what it printed.
    pub async fn wait_for(&mut self, event: &GoEvent) -> Result<(), ContainerError> {
        let mut output = Vec::new();
        while let Some(line) = self.program.next_line().await {
            if serde_json::from_str::<GoEvent>(&line).is_ok_and(|found| found == *event) {
                return Ok(());
            }
            output.push(line);
        }
        Err(ContainerError::Unexpected(format!("no {event:?} in {}", output.join("\n"))))
    }

    /// Kills the candidate (SIGKILL), and waits until it has ended.
    ///
    /// # Errors
    /// When it has ended already.
    pub async fn kill(self) -> Result<(), ContainerError> {
        self.program.kill().await
    }

    /// Tells the candidate to end (SIGTERM). A leader releases the Lease, if it was started so.
    ///
    /// # Errors
    /// When it has ended already.
    pub async fn terminate(&self) -> Result<(), ContainerError> {
        self.program.signal("TERM").await
    }

    /// Freezes the candidate: its connections stay open, and its clock goes on.
    ///
    /// # Errors
    /// When Docker fails.
    pub async fn pause(&self) -> Result<Fault, ContainerError> {
        self.container.pause().await?;
        Ok(self.fault(Undo::Unpause))
    }

    /// Cuts the candidate off from the API servers.
    ///
    /// # Errors
    /// When Docker fails.
    pub async fn isolate(&self) -> Result<Fault, ContainerError> {
        self.container.disconnect(&self.peers).await?;
        Ok(self.fault(Undo::ConnectNetwork { network: Arc::clone(&self.peers), ip: self.ip.clone() }))
    }

    fn fault(&self, undo: Undo) -> Fault {
        let always = HealthCheck::new("client-go", || async { Ok(()) });
        Fault::new(undo, Arc::clone(&self.container), always)
    }
}
