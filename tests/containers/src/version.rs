//! The versions of servers that tests run, and their images.

use std::{env, fmt};

/// A store and its version. These are the versions in Debian 11 to 13, or, where Debian has none, those in the Python package index, so
/// that the images can be built on any Debian machine.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Version {
    /// etcd 3.4.
    Etcd34,
    /// etcd 3.5.
    Etcd35,
    /// ZooKeeper 3.8, with kazoo and Curator.
    Zookeeper38,
    /// ZooKeeper 3.9, with kazoo.
    Zookeeper39,
    /// PostgreSQL 15.
    Postgres15,
    /// PostgreSQL 17, with PgBouncer. Faults can be injected into its members.
    Postgres17,
    /// MariaDB 10.11.
    Mariadb1011,
    /// A Kubernetes API server 1.20, with its etcd, kubectl, and a candidate of client-go.
    Kubernetes120,
    /// Consul 1.8. Faults can be injected into its members.
    Consul18,
    /// NATS 2.15.
    Nats215,
    /// SeaweedFS 4.48 with its S3 API, and rclone.
    Seaweedfs4,
    /// Redis 7.0.
    Redis70,
    /// Valkey 8.1.
    Valkey81,
}

impl Version {
    /// Every version of etcd.
    pub const ETCD: [Self; 2] = [Self::Etcd34, Self::Etcd35];

    /// Every version of ZooKeeper.
    pub const ZOOKEEPER: [Self; 2] = [Self::Zookeeper38, Self::Zookeeper39];

    /// Every version of PostgreSQL.
    pub const POSTGRES: [Self; 2] = [Self::Postgres15, Self::Postgres17];

    /// Every version of Redis and Valkey.
    pub const REDIS: [Self; 2] = [Self::Redis70, Self::Valkey81];

    /// The image's name: `tenure-test/etcd:3.5`, or the value of the [image variable](Self::image_variable).
    pub fn image(self) -> String {
        env::var(self.image_variable()).unwrap_or_else(|_| format!("tenure-test/{self}"))
    }

    /// The environment variable that overrides the image's name.
    pub fn image_variable(self) -> &'static str {
        match self {
            Self::Etcd34 => "TENURE_TEST_IMAGE_ETCD_3_4",
            Self::Etcd35 => "TENURE_TEST_IMAGE_ETCD_3_5",
            Self::Zookeeper38 => "TENURE_TEST_IMAGE_ZOOKEEPER_3_8",
            Self::Zookeeper39 => "TENURE_TEST_IMAGE_ZOOKEEPER_3_9",
            Self::Postgres15 => "TENURE_TEST_IMAGE_POSTGRES_15",
            Self::Postgres17 => "TENURE_TEST_IMAGE_POSTGRES_17",
            Self::Mariadb1011 => "TENURE_TEST_IMAGE_MARIADB_10_11",
            Self::Kubernetes120 => "TENURE_TEST_IMAGE_KUBERNETES_1_20",
            Self::Consul18 => "TENURE_TEST_IMAGE_CONSUL_1_8",
            Self::Nats215 => "TENURE_TEST_IMAGE_NATS_2_15",
            Self::Seaweedfs4 => "TENURE_TEST_IMAGE_SEAWEEDFS_4",
            Self::Redis70 => "TENURE_TEST_IMAGE_REDIS_7_0",
            Self::Valkey81 => "TENURE_TEST_IMAGE_VALKEY_8_1",
        }
    }

    /// The environment variable with the `host:port` of a running server that tests share; `cargo xtask test` sets it.
    pub fn shared_variable(self) -> &'static str {
        match self {
            Self::Etcd34 => "TENURE_TEST_ETCD_3_4",
            Self::Etcd35 => "TENURE_TEST_ETCD_3_5",
            Self::Zookeeper38 => "TENURE_TEST_ZOOKEEPER_3_8",
            Self::Zookeeper39 => "TENURE_TEST_ZOOKEEPER_3_9",
            Self::Postgres15 => "TENURE_TEST_POSTGRES_15",
            Self::Postgres17 => "TENURE_TEST_POSTGRES_17",
            Self::Mariadb1011 => "TENURE_TEST_MARIADB_10_11",
            Self::Kubernetes120 => "TENURE_TEST_KUBERNETES_1_20",
            Self::Consul18 => "TENURE_TEST_CONSUL_1_8",
            Self::Nats215 => "TENURE_TEST_NATS_2_15",
            Self::Seaweedfs4 => "TENURE_TEST_SEAWEEDFS_4",
            Self::Redis70 => "TENURE_TEST_REDIS_7_0",
            Self::Valkey81 => "TENURE_TEST_VALKEY_8_1",
        }
    }
}

impl fmt::Display for Version {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Etcd34 => "etcd:3.4",
            Self::Etcd35 => "etcd:3.5",
            Self::Zookeeper38 => "zookeeper:3.8",
            Self::Zookeeper39 => "zookeeper:3.9",
            Self::Postgres15 => "postgres:15",
            Self::Postgres17 => "postgres:17",
            Self::Mariadb1011 => "mariadb:10.11",
            Self::Kubernetes120 => "kubernetes:1.20",
            Self::Consul18 => "consul:1.8",
            Self::Nats215 => "nats:2.15",
            Self::Seaweedfs4 => "seaweedfs:4",
            Self::Redis70 => "redis:7.0",
            Self::Valkey81 => "valkey:8.1",
        })
    }
}
