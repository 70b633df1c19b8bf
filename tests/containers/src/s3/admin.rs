//! A client that administers an S3 server, with the access key `admin`.

use std::{io, time::Duration};

use futures::TryStreamExt as _;
use http::{Method, StatusCode};
use object_store::{
    Error, ObjectStore as _, ObjectStoreExt as _, RetryConfig,
    aws::{AmazonS3, AmazonS3Builder},
    path::Path,
    signer::Signer as _,
};
use tokio::time::timeout;

use crate::error::ContainerError;

/// How long a request may take.
const REQUEST_TIMEOUT: Duration = Duration::from_secs(5);

pub(super) const ACCESS_KEY: &str = "admin";
pub(super) const SECRET: &str = "admin-secret";
/// The bucket of all tests.
pub(super) const BUCKET: &str = "suite";

/// A client that administers an S3 server, in the bucket `suite`.
#[derive(Clone, Debug)]
pub struct S3Admin {
    endpoint: String,
}

impl S3Admin {
    /// A client of the server at `endpoint`, `host:port`. Sends nothing.
    pub fn new(endpoint: impl Into<String>) -> Self {
        Self { endpoint: endpoint.into() }
    }

    /// The `host:port` of the server.
    pub fn endpoint(&self) -> &str {
        &self.endpoint
    }

    /// The store URL for a prefix of the bucket, with the administrator's key. Settings may be added with `&`.
    pub fn url(&self, prefix: &str) -> String {
        format!("s3://{ACCESS_KEY}:{SECRET}@{BUCKET}/{prefix}?endpoint=http://{}", self.endpoint)
    }

    /// Succeeds when the server has the bucket, which is created if there is none, and can store an object.
    ///
    /// # Errors
    /// When it cannot.
    pub async fn health(&self) -> Result<(), ContainerError> {
        self.create_bucket().await?;
        self.put("health", b"good").await?;
        self.get("health").await.map(drop)
    }

    /// Creates the bucket, if there is none.
    ///
    /// # Errors
    /// When the server does not answer.
    pub async fn create_bucket(&self) -> Result<(), ContainerError> {
        match self.request_bucket(Method::PUT).await? {
            status if status.is_success() || status == StatusCode::CONFLICT => Ok(()),
            status => Err(self.refused("creating the bucket", status)),
        }
    }

    /// Deletes the bucket with all its objects.
    ///
    /// # Errors
    /// When the server does not answer.
    pub async fn delete_bucket(&self) -> Result<(), ContainerError> {
        for name in self.list("").await? {
            self.delete(&name).await?;
        }
        match self.request_bucket(Method::DELETE).await? {
            status if status.is_success() || status == StatusCode::NOT_FOUND => Ok(()),
            status => Err(self.refused("deleting the bucket", status)),
        }
    }

    /// The content of an object; `None` if there is none.
    ///
    /// # Errors
    /// When the server does not answer.
    pub async fn get(&self, name: &str) -> Result<Option<Vec<u8>>, ContainerError> {
        let path = Path::from(name);
        let request = async |store: AmazonS3| store.get(&path).await?.bytes().await;
        match self.send("reading an object", request).await? {
            Ok(body) => Ok(Some(body.into())),
            Err(Error::NotFound { .. }) => Ok(None),
            Err(error) => Err(self.refused("reading an object", error)),
        }
    }

    /// Writes an object.
    ///
    /// # Errors
    /// When the server does not answer.
    pub async fn put(&self, name: &str, body: &[u8]) -> Result<(), ContainerError> {
        let path = Path::from(name);
        let request = async |store: AmazonS3| store.put(&path, body.to_vec().into()).await;
        let written = self.send("writing an object", request).await?;
        written.map(drop).map_err(|error| self.refused("writing an object", error))
    }

    /// Deletes an object.
    ///
    /// # Errors
    /// When the server does not answer.
    pub async fn delete(&self, name: &str) -> Result<(), ContainerError> {
        let path = Path::from(name);
        let request = async |store: AmazonS3| store.delete(&path).await;
        let deleted = self.send("deleting an object", request).await?;
        deleted.map_err(|error| self.refused("deleting an object", error))
    }

    /// The names of all objects below a prefix.
    ///
    /// # Errors
    /// When the server does not answer.
    pub async fn list(&self, prefix: &str) -> Result<Vec<String>, ContainerError> {
        let path = Path::from(prefix);
        let request = async |store: AmazonS3| {
            let prefix = Some(&path).filter(|_| !prefix.is_empty());
            store.list(prefix).map_ok(|object| object.location.to_string()).try_collect().await
        };
        let listed = self.send("listing objects", request).await?;
        listed.map_err(|error| self.refused("listing objects", error))
    }

    async fn send<T>(
        &self,
        what: &str,
        request: impl AsyncFnOnce(AmazonS3) -> object_store::Result<T>,
    ) -> Result<object_store::Result<T>, ContainerError> {
        let store = self.store().map_err(|error| self.refused(what, error))?;
        timeout(REQUEST_TIMEOUT, request(store))
            .await
            .map_err(|_| self.no_answer(what, io::ErrorKind::TimedOut.into()))
    }

    /// Sends a request without a body for the bucket itself.
    async fn request_bucket(&self, method: Method) -> Result<StatusCode, ContainerError> {
        let what = "administering the bucket";
        let sign =
            async |store: AmazonS3| store.signed_url(method.clone(), &Path::default(), REQUEST_TIMEOUT).await;
        let url = self.send(what, sign).await?.map_err(|error| self.refused(what, error))?;
        let request = reqwest::Client::new().request(method, url).timeout(REQUEST_TIMEOUT).send();
        request
            .await
            .map(|answer| answer.status())
            .map_err(|error| self.no_answer(what, io::Error::other(error)))
    }

    fn store(&self) -> object_store::Result<AmazonS3> {
        AmazonS3Builder::new()
            .with_endpoint(format!("http://{}", self.endpoint))
            .with_allow_http(true)
            .with_bucket_name(BUCKET)
            .with_access_key_id(ACCESS_KEY)
            .with_secret_access_key(SECRET)
            .with_disable_bulk_delete(true)
            .with_retry(RetryConfig { max_retries: 0, ..RetryConfig::default() })
            .build()
    }

    fn refused(&self, what: &str, reason: impl std::fmt::Display) -> ContainerError {
        ContainerError::Refused { request: self.request(what), message: reason.to_string() }
    }

    fn no_answer(&self, what: &str, source: io::Error) -> ContainerError {
        ContainerError::NoAnswer { request: self.request(what), source }
    }

    fn request(&self, what: &str) -> String {
        format!("{what} at {}", self.endpoint)
    }
}
