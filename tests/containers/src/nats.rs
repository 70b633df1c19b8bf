//! NATS servers: configured, started and administered.

mod admin;
mod cluster;
mod server;
mod settings;

pub use admin::NatsAdmin;
pub use cluster::NatsCluster;
pub use server::{NatsServer, SharedNats};
pub use settings::NatsSettings;
