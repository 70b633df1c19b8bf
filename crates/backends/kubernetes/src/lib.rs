//! Leader election on Kubernetes.
mod backend;
mod config;
mod diagnose;
mod election;
mod observed;
mod record;
mod session;
mod transport;

pub use crate::{
    backend::KubernetesBackend,
    config::{KubernetesConfig, pod_identity},
};
