//! Consul servers: started and administered.

mod admin;
mod cluster;
mod server;
mod settings;

pub use admin::{ConsulAdmin, ConsulToken};
pub use cluster::ConsulCluster;
pub use server::{ConsulServer, SharedConsul};
pub use settings::ConsulSettings;
