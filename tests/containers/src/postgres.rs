//! PostgreSQL servers: configured, started and administered.

mod admin;
mod cluster;
mod server;
mod settings;
mod synchronous;

pub use admin::PostgresAdmin;
pub use cluster::{PostgresCluster, Replication};
pub use server::{PostgresServer, SharedPostgres};
pub use settings::PostgresSettings;
