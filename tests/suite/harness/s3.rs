//! S3 in the conformance suite: a prefix on a real server.

use std::time::Duration;

use tenure::{
    Secret,
    s3::{S3Backend, S3Config, S3Store},
};
use tenure_containers::{SharedS3, Version};

use crate::cas::{Cas, CasServer};

/// A test's prefix on an S3 server that tests share.
#[derive(Debug)]
pub struct S3 {
    server: SharedS3,
    prefix: String,
    attempt_timeout: Duration,
}

impl S3 {
    /// A new prefix on the shared server.
    ///
    /// # Panics
    /// When the server cannot be used; the message names the remedy.
    pub async fn new() -> Self {
        let server = SharedS3::get(Version::Seaweedfs4).await.unwrap_or_else(|error| panic!("{error}"));
        let prefix = format!("suite-{:016x}", fastrand::u64(..));
        Self { server, prefix, attempt_timeout: Duration::from_secs(1) }
    }

    /// The same, with requests that may take this long. In SeaweedFS, a conditional write that meets another one of the same object waits
    /// for a second, and again if there is yet another.
    #[must_use]
    pub fn with_attempt_timeout(mut self, time: Duration) -> Self {
        self.attempt_timeout = time;
        self
    }

    /// The harness of a new prefix.
    ///
    /// # Panics
    /// When the server cannot be used; the message names the remedy.
    pub async fn harness() -> Cas<Self> {
        Cas::new(Self::new().await)
    }

    /// The server.
    pub fn server(&self) -> &SharedS3 {
        &self.server
    }

    /// The prefix of this test.
    pub fn prefix(&self) -> &str {
        &self.prefix
    }

    /// A store URL without a proxy.
    pub fn url(&self) -> String {
        self.server.admin().url(&self.prefix)
    }
}

impl CasServer for S3 {
    type Store = S3Store;

    fn gives_hints(&self) -> bool {
        false
    }

    fn endpoint(&self) -> String {
        self.server.endpoint()
    }

    fn backend(&self, endpoint: &str) -> S3Backend {
        let config = S3Config::new("suite")
            .prefix(&self.prefix)
            .endpoint(format!("http://{endpoint}"))
            .login("admin", Secret::new("admin-secret"))
            .attempt_timeout(self.attempt_timeout)
            .poll_interval(Duration::from_millis(100));
        tenure::s3::backend(config).unwrap_or_else(|error| panic!("{error}"))
    }

    /// A server on a file system has no object `e` beside `e/another`.
    fn foreign_keys(&self) -> Vec<&'static str> {
        vec!["e/another", "s/not-a-session", "e/a/b"]
    }
}
