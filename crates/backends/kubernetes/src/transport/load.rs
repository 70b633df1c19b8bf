//! Makes a client of what the configuration names: the service account of the pod, or a kubeconfig.

use kube::{
    Config,
    client::AuthError,
    config::{KubeConfigOptions, Kubeconfig, KubeconfigError},
};
use tenure_core::spi::{BackendError, BackendErrorKind};
use tokio::runtime::Handle;

use crate::config::KubernetesConfig;

/// A client, and what it was made of.
pub(super) struct Loaded {
    pub(super) kube: kube::Client,
    pub(super) cluster_url: String,
    /// The namespace of the service account or of the context.
    pub(super) default_namespace: String,
    /// Whether the credentials come from a program that is run again when they expire.
    pub(super) has_plugin: bool,
}

/// Makes a client. Blocks while it reads files and runs a credential plugin; needs a runtime. Errors of the configuration have this kind.
pub(super) fn load(config: &KubernetesConfig, kind: BackendErrorKind) -> Result<Loaded, BackendError> {
    let mut config = read(config, kind)?;
    // The client waits as the server says, and knows what was sent.
    config.default_retry = false;
    let (cluster_url, default_namespace) = (config.cluster_url.to_string(), config.default_namespace.clone());
    let has_plugin = config.auth_info.exec.is_some() || config.auth_info.auth_provider.is_some();
    let kube = kube::Client::try_from(config).map_err(|error| {
        BackendError::new(kind, format!("connecting to Kubernetes: {}", describe(&error)))
    })?;
    Ok(Loaded { kube, cluster_url, default_namespace, has_plugin })
}

fn read(config: &KubernetesConfig, kind: BackendErrorKind) -> Result<Config, BackendError> {
    if config.is_in_cluster() {
        return Config::incluster().map_err(|error| {
            BackendError::with_source(kind, "reading the service account of this pod", error)
        });
    }
    let kubeconfig = match &config.kubeconfig {
        Some(file) => Kubeconfig::read_from(file),
        None => Kubeconfig::read(),
    };
    let unreadable = |error: KubeconfigError| {
        let file = config.kubeconfig.as_ref().map(|file| format!(" {}", file.display()));
        let what = format!("reading the kubeconfig{}", file.unwrap_or_default());
        // Its text repeats lines of the file, which has credentials.
        let reason = match error {
            KubeconfigError::Parse(_) => "it is not valid YAML, or not a kubeconfig".to_owned(),
            error => error.to_string(),
        };
        BackendError::new(kind, format!("{what}: {reason}"))
    };
    let options = KubeConfigOptions { context: config.context.clone(), ..Default::default() };
    let kubeconfig = kubeconfig.map_err(unreadable)?;
    Handle::current().block_on(Config::from_custom_kubeconfig(kubeconfig, &options)).map_err(unreadable)
}

/// The error without what a credential plugin has printed.
pub(super) fn describe(error: &kube::Error) -> String {
    auth_error(error).map_or_else(|| error.to_string(), describe_auth)
}

pub(super) fn describe_auth(error: &AuthError) -> String {
    match error {
        // Nor its arguments, which may have a password.
        AuthError::AuthExecRun { out, .. } => format!("the credential plugin has failed ({})", out.status),
        AuthError::AuthExecParse(_) | AuthError::AuthExec(_) => {
            "the answer of the credential plugin is not understood".to_owned()
        }
        error => error.to_string(),
    }
}

/// The error of the credentials that is the cause of another, if one is.
pub(super) fn auth_error(error: &kube::Error) -> Option<&AuthError> {
    if let kube::Error::Auth(error) = error {
        return Some(error);
    }
    let mut cause = std::error::Error::source(error);
    while let Some(error) = cause {
        match (error.downcast_ref::<AuthError>(), error.downcast_ref::<kube::Error>()) {
            (Some(error), _) | (_, Some(kube::Error::Auth(error))) => return Some(error),
            _ => cause = error.source(),
        }
    }
    None
}
