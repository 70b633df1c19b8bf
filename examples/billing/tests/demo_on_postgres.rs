//! The demo on a real PostgreSQL, which has the election and the billing database.

mod common;

use common::check_takeovers;
use tenure_containers::{SharedPostgres, Version};

/// Hazard G1: on PostgreSQL a stopped leader continues after its successor was elected.
#[tokio::test]
async fn on_postgres_leadership_moves_on_from_a_stopped_leader() {
    for version in Version::POSTGRES {
        let server = SharedPostgres::get(version).await.unwrap();
        let database = format!("billing_{:016x}", fastrand::u64(..));
        let database = server.admin().create_database(&database).await.unwrap();
        check_takeovers(&format!("{}?ttl=2s", database.url()));
    }
}
