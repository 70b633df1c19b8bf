//! S3 servers: SeaweedFS, and rclone, which ignores conditions. Configured, started and administered.

mod admin;
mod server;
mod settings;

pub use admin::S3Admin;
pub use server::{S3Server, SharedS3};
pub use settings::S3Settings;
