//! The label of the leader's pod, by which a Service selects it.
//!
//! It is a hint for routing, and no part of the election: a pod may have it for a while after it has lost, and lack it although it leads.
//! Whatever fails here is logged once and tried again, and delays no election.

use std::{
    sync::{Arc, Mutex},
    time::Duration,
};

use serde_json::{Value, json};
use tenure_core::{
    ElectionName,
    internal::lock,
    spi::{BackendError, BackendErrorKind::Unavailable},
};
use tokio::{
    sync::watch,
    task::JoinHandle,
    time::{sleep, timeout},
};
use tracing::warn;

use crate::{record::label_value, transport::Client};

/// The label. Its value is that of [`label_value`].
const LABEL: &str = "tenure/leader";
/// How often a leader looks for its label, and for other pods that have it.
const CHECK_INTERVAL: Duration = Duration::from_secs(60);
/// The pauses after a failure: the first, and the longest.
const PAUSES: (Duration, Duration) = (Duration::from_millis(500), Duration::from_secs(60));
/// How long closing waits for the removal.
const CLOSING_TIME: Duration = Duration::from_secs(2);

/// Keeps the label of this pod in step with what it leads, by a task of its own.
#[derive(Debug)]
pub(crate) struct PodLabel {
    wanted: Arc<watch::Sender<Wanted>>,
    task: Mutex<Option<JoinHandle<()>>>,
}

/// What the label has to show.
#[derive(Debug, Default)]
struct Wanted {
    /// The values of the elections that this pod leads, the earliest first. A label has one value, that of the first.
    values: Vec<String>,
    is_closing: bool,
}

/// Shows the election by the label until it is dropped.
#[derive(Debug)]
pub(crate) struct Shown {
    wanted: Arc<watch::Sender<Wanted>>,
    value: String,
}

impl PodLabel {
    /// Begins to remove what an earlier container of this pod has left. Needs a runtime.
    pub(crate) fn start(client: &Arc<Client>, pod: &str) -> Self {
        let wanted = Arc::new(watch::Sender::new(Wanted::default()));
        let labeler = Labeler {
            client: Arc::clone(client),
            pod: pod.to_owned(),
            wanted: wanted.subscribe(),
            uid: None,
            shown: None,
        };
        Self { wanted, task: Mutex::new(Some(tokio::spawn(labeler.run()))) }
    }

    /// Shows that this pod leads the election.
    pub(crate) fn show(&self, election: &ElectionName) -> Shown {
        let value = label_value(election);
        self.wanted.send_modify(|wanted| wanted.values.push(value.clone()));
        Shown { wanted: Arc::clone(&self.wanted), value }
    }

    /// Removes the label, and ends the task.
    pub(crate) async fn close(&self) {
        self.wanted.send_modify(|wanted| *wanted = Wanted { is_closing: true, values: Vec::new() });
        let task = lock(&self.task).take();
        if let Some(mut task) = task
            && timeout(CLOSING_TIME, &mut task).await.is_err()
        {
            task.abort();
        }
    }
}

impl Drop for PodLabel {
    fn drop(&mut self) {
        if let Some(task) = lock(&self.task).take() {
            task.abort();
        }
    }
}

impl Drop for Shown {
    fn drop(&mut self) {
        self.wanted.send_modify(|wanted| {
            if let Some(at) = wanted.values.iter().position(|value| *value == self.value) {
                wanted.values.remove(at);
            }
        });
    }
}

/// The task.
struct Labeler {
    client: Arc<Client>,
    pod: String,
    wanted: watch::Receiver<Wanted>,
    /// The uid of the pod, once it was read.
    uid: Option<String>,
    /// What the label was set to last, if that is known; within it, the value.
    shown: Option<Option<String>>,
}

impl Labeler {
    async fn run(mut self) {
        let (mut failures, mut is_warned, mut is_warned_of_several) = (0_u32, false, false);
        loop {
            let (value, is_closing, elections) = {
                let wanted = self.wanted.borrow_and_update();
                (wanted.values.first().cloned(), wanted.is_closing, wanted.values.len())
            };
            if elections > 1 && !is_warned_of_several {
                is_warned_of_several = true;
                warn!(
                    pod = self.pod,
                    elections,
                    "this pod leads several elections, and its label {LABEL} names the earliest only"
                );
            }
            let result = self.apply(value.as_deref()).await;
            if is_closing {
                return;
            }
            let pause = match result {
                Ok(()) => {
                    (failures, is_warned) = (0, false);
                    value.is_some().then_some(CHECK_INTERVAL)
                }
                Err(error) => {
                    if !is_warned {
                        is_warned = true;
                        warn!(pod = self.pod, %error, "the label {LABEL} of this pod cannot be kept; it is tried again");
                    }
                    failures += 1;
                    let (first, longest) = PAUSES;
                    Some((first * (1 << (failures - 1).min(7))).min(longest))
                }
            };
            let pausing = async {
                match pause {
                    Some(pause) => sleep(pause.mul_f64(0.5 + fastrand::f64() / 2.0)).await,
                    None => std::future::pending().await,
                }
            };
            tokio::select! {
                changed = self.wanted.changed() => match changed {
                    Ok(()) => failures = 0,
                    Err(_) => return,
                },
                () = pausing => {}
            }
        }
    }

    /// Makes the label of this pod show `value`, and removes it from other pods.
    async fn apply(&mut self, value: Option<&str>) -> Result<(), BackendError> {
        if self.uid.is_none() {
            let pod = self.client.pod(&self.pod).await?;
            self.shown = Some(pod.labels.and_then(|mut labels| labels.remove(LABEL)));
            self.uid = pod.uid;
        }
        if self.shown.as_ref().is_none_or(|shown| shown.as_deref() != value) {
            self.set(value).await?;
        }
        let Some(value) = value else { return Ok(()) };
        let pods = self.client.pods_with(LABEL, value).await?;
        // Somebody has removed it, as a leader does that comes or goes at the same time.
        if !pods.iter().any(|pod| pod.name.as_deref() == Some(&*self.pod)) {
            self.set(Some(value)).await?;
        }
        for pod in pods {
            let Some(name) = pod.name.filter(|name| *name != self.pod) else { continue };
            if self.wanted.borrow().values.first().is_none_or(|first| first != value) {
                break;
            }
            // Not if the pod was changed meanwhile: it may have won again.
            let version = json!(pod.resource_version);
            let metadata = json!({ "resourceVersion": version, "labels": { LABEL: null } });
            self.client.patch_pod(&name, &metadata).await?;
        }
        Ok(())
    }

    /// Patches the label of this pod, and not of another one that has its name now.
    async fn set(&mut self, value: Option<&str>) -> Result<(), BackendError> {
        self.shown = None;
        let metadata: Value = json!({ "uid": self.uid, "labels": { LABEL: value } });
        if !self.client.patch_pod(&self.pod, &metadata).await? {
            let pod = self.client.pod(&self.pod).await?;
            if pod.uid == self.uid {
                return Err(BackendError::new(Unavailable, "the API server refuses a patch of the label"));
            }
            // Another pod has this one's name: this one has ended.
        }
        self.shown = Some(value.map(str::to_owned));
        Ok(())
    }
}
