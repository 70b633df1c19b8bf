//! The configuration: how the API server is found, and the namespace of the Leases.

use std::{env, path::PathBuf, time::Duration};

use tenure_core::{
    CandidateId, Error, InvalidConfig, StoreUrl,
    spi::{BackendError, BackendErrorKind},
};

use crate::record::is_object_name;

const NO_POD_NAME: &str = "leader_label needs the name of this pod: set the environment variable POD_NAME by the downward API, from metadata.name";

/// A namespace of a Kubernetes cluster, in which each election has a Lease.
///
/// Contains no secret: tokens and certificates are read from files when the client connects, and again as they rotate.
#[derive(Clone, Debug)]
pub struct KubernetesConfig {
    pub(crate) namespace: Option<String>,
    pub(crate) context: Option<String>,
    pub(crate) kubeconfig: Option<PathBuf>,
    pub(crate) attempt_timeout: Duration,
    /// The name of the pod whose label shows that it leads.
    pub(crate) labeled_pod: Option<String>,
}

impl Default for KubernetesConfig {
    fn default() -> Self {
        Self::new()
    }
}

impl KubernetesConfig {
    /// In a pod: the cluster of the pod, by its service account. Elsewhere: the current context of the kubeconfig.
    ///
    /// The namespace is that of the service account or the context.
    pub fn new() -> Self {
        Self {
            namespace: None,
            context: None,
            kubeconfig: None,
            attempt_timeout: Duration::from_secs(2),
            labeled_pod: None,
        }
    }

    /// Reads a URL such as `kubernetes:///namespace?context=staging`.
    ///
    /// The path is the namespace; without one it is that of the service account or the context.
    ///
    /// | setting | meaning | default |
    /// |---|---|---|
    /// | `kubeconfig` | a kubeconfig file | in a pod its service account; elsewhere `KUBECONFIG`, or `~/.kube/config` |
    /// | `context` | a context of the kubeconfig | its current context |
    /// | `attempt_timeout` | how long the answer to a request may take, before it is sent again | 2 s |
    /// | `leader_label` | whether this pod, which `POD_NAME` names, has the [label](Self::leader_label) while it leads | `false` |
    ///
    /// # Errors
    /// [`Error::InvalidUrl`] and [`Error::InvalidConfig`], with what is wrong and what is allowed.
    pub fn from_url(url: &StoreUrl) -> Result<Self, Error> {
        Self::from_url_in_pod(url, env::var("POD_NAME").ok())
    }

    fn from_url_in_pod(url: &StoreUrl, pod: Option<String>) -> Result<Self, Error> {
        if url.scheme() != "kubernetes" {
            return Err(url.invalid("its scheme is not kubernetes").into());
        }
        if !url.hosts().is_empty() {
            let reason = "it has a host; give kubernetes:///namespace, the API server is that of the pod or of the kubeconfig";
            return Err(url.invalid(reason).into());
        }
        let mut config = Self::new();
        let namespace = url.path().trim_matches('/');
        config.namespace = (!namespace.is_empty()).then(|| namespace.to_owned());
        config.context = url.text("context").map(str::to_owned);
        config.kubeconfig = url.text("kubeconfig").map(PathBuf::from);
        config.attempt_timeout = url.duration("attempt_timeout")?.unwrap_or(config.attempt_timeout);
        if url.parsed("leader_label", "true or false")?.unwrap_or(false) {
            let pod = pod.filter(|pod| !pod.is_empty());
            config.labeled_pod = Some(pod.ok_or_else(|| url.invalid(NO_POD_NAME))?);
        }
        config.check().map_err(|error| match error {
            Error::Refused(reason) => url.invalid(reason.to_string()).into(),
            other => other,
        })?;
        Ok(config)
    }

    /// Sets the namespace of the Leases.
    #[must_use]
    pub fn namespace(mut self, namespace: impl Into<String>) -> Self {
        self.namespace = Some(namespace.into());
        self
    }

    /// Uses this context of the kubeconfig, also in a pod.
    #[must_use]
    pub fn context(mut self, context: impl Into<String>) -> Self {
        self.context = Some(context.into());
        self
    }

    /// Uses this kubeconfig file, also in a pod.
    #[must_use]
    pub fn kubeconfig(mut self, file: impl Into<PathBuf>) -> Self {
        self.kubeconfig = Some(file.into());
        self
    }

    /// Sets how long the answer to a request may take; 2 s by default. It is sent again after that, over another connection.
    #[must_use]
    pub fn attempt_timeout(mut self, time: Duration) -> Self {
        self.attempt_timeout = time;
        self
    }

    /// Gives this pod the label `tenure/leader` while it leads, so that a Service selects it. `pod` is its name, from the downward API.
    ///
    /// The pod is one of the namespace of the service account, or of the context. The value is the election, or a computed name if the
    /// election is no legal value. A hint for routing only: see [the crate documentation](crate#the-label-of-the-leaders-pod).
    #[must_use]
    pub fn leader_label(mut self, pod: impl Into<String>) -> Self {
        self.labeled_pod = Some(pod.into());
        self
    }

    pub(crate) fn check(&self) -> Result<(), Error> {
        if let Some(namespace) = &self.namespace {
            let is_plain = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit() || byte == b'-';
            let is_legal = (1..=63).contains(&namespace.len())
                && namespace.bytes().all(is_plain)
                && !namespace.starts_with('-')
                && !namespace.ends_with('-');
            if !is_legal {
                let reason = format!(
                    "the namespace {namespace:?} is not allowed: it has 1 to 63 of a-z 0-9 -, and begins and ends with a letter or digit"
                );
                return Err(BackendError::new(BackendErrorKind::Invalid, reason).into());
            }
        }
        if let Some(pod) = self.labeled_pod.as_ref().filter(|pod| !is_object_name(pod)) {
            let reason =
                format!("the pod {pod:?} of the leader's label is not allowed: it is no name of an object");
            return Err(BackendError::new(BackendErrorKind::Invalid, reason).into());
        }
        if let Some(file) = &self.kubeconfig
            && let Err(error) = std::fs::File::open(file)
        {
            let reason = format!("kubeconfig={} cannot be read", file.display());
            return Err(BackendError::with_source(BackendErrorKind::Invalid, reason, error).into());
        }
        let given = self.attempt_timeout;
        if given < Duration::from_millis(100) || given > Duration::from_secs(60) {
            let (setting, allowed) = ("attempt_timeout", "from 100ms to 1m");
            return Err(InvalidConfig::Time { setting, given, allowed }.into());
        }
        Ok(())
    }

    /// Whether the service account of the pod is used.
    pub(crate) fn is_in_cluster(&self) -> bool {
        let is_in_pod = env::var_os("KUBERNETES_SERVICE_HOST").is_some();
        self.context.is_none() && self.kubeconfig.is_none() && is_in_pod
    }
}

/// The id of a candidate in a pod: `NAME_UID`, of the environment variables `POD_NAME` and `POD_UID`. `None` if one of them is not set.
///
/// The pod's specification sets them by the downward API, from `metadata.name` and `metadata.uid`.
pub fn pod_identity() -> Option<CandidateId> {
    identity_of(&env::var("POD_NAME").ok()?, &env::var("POD_UID").ok()?)
}

fn identity_of(name: &str, uid: &str) -> Option<CandidateId> {
    if name.is_empty() || uid.is_empty() {
        return None;
    }
    // Of a name that is too long, the start.
    let name = name.get(..name.len().min(200))?;
    CandidateId::new(&format!("{name}_{uid}")).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn config(url: &str) -> Result<KubernetesConfig, Error> {
        KubernetesConfig::from_url(&url.parse().unwrap())
    }

    #[test]
    fn a_url_sets_everything() {
        let file = tempfile::NamedTempFile::new().unwrap();
        let path = file.path().display();
        let url = format!("kubernetes:///team-1?context=staging&kubeconfig={path}&attempt_timeout=3s");
        let config = config(&url).unwrap();
        assert_eq!(config.namespace.as_deref(), Some("team-1"));
        assert_eq!(config.context.as_deref(), Some("staging"));
        assert_eq!(config.kubeconfig, Some(file.path().to_owned()));
        assert_eq!(config.attempt_timeout, Duration::from_secs(3));
        assert!(!config.is_in_cluster());
    }

    #[test]
    fn the_leaders_label_needs_the_name_of_the_pod() {
        let labeled = |url: &str, pod: Option<&str>| {
            KubernetesConfig::from_url_in_pod(&url.parse().unwrap(), pod.map(str::to_owned))
        };
        let url = "kubernetes:///a?leader_label=true";
        assert_eq!(labeled(url, Some("billing-0")).unwrap().labeled_pod.as_deref(), Some("billing-0"));
        for (pod, reason) in
            [(None, NO_POD_NAME), (Some(""), NO_POD_NAME), (Some("a/b"), "it is no name of an object")]
        {
            let error = labeled(url, pod).unwrap_err().to_string();
            assert!(error.contains(reason), "{error}");
        }
        for url in ["kubernetes:///a", "kubernetes:///a?leader_label=false"] {
            assert_eq!(labeled(url, Some("billing-0")).unwrap().labeled_pod, None);
        }
    }

    #[test]
    fn a_url_needs_no_namespace() {
        for url in ["kubernetes:", "kubernetes:///", "kubernetes:///?attempt_timeout=3s"] {
            assert_eq!(config(url).unwrap().namespace, None, "{url}");
        }
    }

    #[test]
    fn invalid_settings_are_refused_with_a_reason() {
        for (url, reason) in [
            ("k8s:///a", "its scheme is not kubernetes"),
            ("kubernetes://host/a", "it has a host; give kubernetes:///namespace"),
            ("kubernetes:///A", "the namespace \"A\" is not allowed: it has 1 to 63 of a-z 0-9 -"),
            ("kubernetes:///a/b", "the namespace \"a/b\" is not allowed"),
            ("kubernetes:///-a", "and begins and ends with a letter or digit"),
            ("kubernetes:///a?kubeconfig=/nowhere/config", "kubeconfig=/nowhere/config cannot be read"),
            ("kubernetes:///a?attempt_timeout=1ms", "attempt_timeout 1ms is not allowed"),
            ("kubernetes:///a?leader_label=1", "true or false"),
            (
                "kubernetes:///a?leader_label=true",
                "set the environment variable POD_NAME by the downward API",
            ),
        ] {
            let error = config(url).unwrap_err().to_string();
            assert!(error.contains(reason), "{url}: {error}");
        }
    }

    #[test]
    fn a_pod_is_identified_by_its_name_and_its_uid() {
        let id = identity_of("billing-7d4f9-x2x", "6f1c").unwrap();
        assert_eq!(id.as_str(), "billing-7d4f9-x2x_6f1c");
        assert_eq!(identity_of("", "6f1c"), None);
        assert_eq!(identity_of("a", ""), None);
        assert!(identity_of(&"x".repeat(253), &"u".repeat(36)).is_some());
    }
}
