//! Kubernetes API servers: configured, started and administered; and candidates of client-go.

mod admin;
mod cluster;
mod go_candidate;
mod server;
mod settings;

pub use admin::KubernetesAdmin;
pub use cluster::KubernetesCluster;
pub use go_candidate::{GoCandidate, GoCandidateSettings, GoEvent};
pub use server::{KubernetesServer, SharedKubernetes};
pub use settings::KubernetesSettings;
