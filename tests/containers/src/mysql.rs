//! MariaDB servers: configured, started and administered.

mod admin;
mod cluster;
mod server;
mod settings;

pub use admin::MysqlAdmin;
pub use cluster::MysqlCluster;
pub use server::{MysqlServer, SharedMysql};
pub use settings::MysqlSettings;
