//! Redis and Valkey servers: configured, started and administered.

mod admin;
mod cluster;
mod server;
mod settings;

pub use admin::RedisAdmin;
pub use cluster::RedisCluster;
pub use server::{RedisServer, SharedRedis};
pub use settings::RedisSettings;
