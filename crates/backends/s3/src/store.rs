//! The store: reads, conditional writes, a list.

use std::{
    fmt,
    sync::{Arc, Mutex},
};

use async_trait::async_trait;
use futures::{FutureExt as _, StreamExt as _, TryStreamExt as _, future::BoxFuture, stream};
use object_store::{
    ObjectStore as _, ObjectStoreExt as _, PutMode, PutOptions, StaticCredentialProvider, UpdateVersion,
    aws::{AmazonS3, AwsCredential},
    path::Path,
};
use tenure_cas::{CasStore, Epoch, EpochState, Freshness, Record, Swap, Version};
use tenure_core::{
    Diagnosis, Error, Secret, internal,
    spi::{BackendError, BackendErrorKind},
};
use tokio::sync::Semaphore;

use crate::{config::S3Config, diagnose::diagnose, error::classify, http::Http};

/// How many requests are sent at a time, besides those for single sessions: each needs a connection of its own, and more at once would not
/// be answered sooner.
const CONCURRENT_REQUESTS: usize = 64;
/// The prefix of the keys of sessions. Their heartbeats do not wait for other requests.
const SESSIONS: &str = "s/";
/// The largest list that is read: of a million records without values.
const MAX_LIST_BYTES: usize = 256 << 20;
/// What a record costs besides its body.
const RECORD_BYTES: usize = 256;

/// A prefix in a bucket as a store of records.
///
/// Used by an [`S3Backend`](crate::S3Backend).
pub struct S3Store {
    pub(crate) config: S3Config,
    pub(crate) http: Http,
    /// The client, and the secret for which it was made, if one is configured.
    client: Mutex<(Option<Secret>, AmazonS3)>,
    permits: Semaphore,
}

/// What the server has answered.
pub(crate) enum Answer<T> {
    Done(T),
    /// The object does not have the expected version, or exists.
    Conflict,
    /// There is no such object.
    Absent,
}

impl S3Store {
    /// A store in the bucket that `config` describes. Does not connect yet.
    ///
    /// # Errors
    /// When `config` has a name or an endpoint that is not allowed.
    pub fn new(config: S3Config) -> Result<Self, Error> {
        let builder = config.check()?;
        if let Some(host) = config.plain_text_host(&builder) {
            internal::warn_of_plain_text("S3", &[host], false, "ca");
        }
        let http = Http::new(config.tls.clone(), config.settings.request_timeout());
        let secret = config.login.as_ref().map(|(_, password)| password.latest());
        let client = open(&config, &http, secret.as_ref())?;
        let (client, permits) = (Mutex::new((secret, client)), Semaphore::new(CONCURRENT_REQUESTS));
        Ok(Self { config, http, client, permits })
    }

    /// A client that signs with this secret; with the credentials of the environment if there is none.
    fn client(&self, secret: Option<&Secret>) -> Result<AmazonS3, BackendError> {
        let mut client = internal::lock(&self.client);
        if client.0.as_ref() != secret {
            let opened = open(&self.config, &self.http, secret);
            *client = (secret.cloned(), opened.map_err(|error| unexpected("connecting", &error))?);
        }
        Ok(client.1.clone())
    }

    /// Sends a request for this key, again if the secret has changed meanwhile.
    pub(crate) async fn send<T>(
        &self,
        what: &str,
        key: &str,
        request: impl Fn(AmazonS3) -> BoxFuture<'static, object_store::Result<T>> + Send + Sync,
    ) -> Result<Answer<T>, BackendError> {
        let _permit = match key.len() > SESSIONS.len() && key.starts_with(SESSIONS) {
            true => None,
            false => self.permits.acquire().await.ok(),
        };
        let Some((_, password)) = &self.config.login else {
            let client = self.client(None)?;
            if let Err(error) = client.credentials().get_credential().await {
                return Err(no_credentials(&error));
            }
            return answer(what, request(client).await);
        };
        let attempt = async |secret: Secret| answer(what, request(self.client(Some(&secret))?).await);
        password.try_each(attempt).await
    }

    /// The path of a key.
    pub(crate) fn path(&self, key: &str) -> Path {
        Path::from(format!("{}/{key}", self.config.prefix))
    }

    pub(crate) async fn put(
        &self,
        what: &str,
        key: &str,
        mode: PutMode,
        body: &[u8],
    ) -> Result<Swap, BackendError> {
        let (path, body) = (self.path(key), body.to_vec());
        let request = move |client: AmazonS3| {
            let (path, body, mode) = (path.clone(), body.clone(), mode.clone());
            async move { client.put_opts(&path, body.into(), PutOptions::from(mode)).await }.boxed()
        };
        match self.send(what, key, request).await? {
            Answer::Done(put) => Ok(Swap::Done(version(what, put.e_tag)?)),
            Answer::Conflict | Answer::Absent => Ok(Swap::Conflict),
        }
    }

    pub(crate) async fn remove(&self, what: &str, key: &str) -> Result<(), BackendError> {
        let path = self.path(key);
        let request = move |client: AmazonS3| {
            let path = path.clone();
            async move { client.delete(&path).await }.boxed()
        };
        self.send(what, key, request).await.map(drop)
    }
}

/// Without the client, which may hold keys for encryption.
impl fmt::Debug for S3Store {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("S3Store").field("config", &self.config).finish_non_exhaustive()
    }
}

#[async_trait]
impl CasStore for S3Store {
    fn name(&self) -> String {
        format!("s3 {}", self.config.bucket)
    }

    async fn read(&self, key: &str, _: Freshness) -> Result<Option<Record>, BackendError> {
        let (what, path) = ("reading a record", self.path(key));
        let request = move |client: AmazonS3| {
            let path = path.clone();
            async move {
                let found = client.get(&path).await?;
                Ok((found.meta.e_tag.clone(), found.bytes().await?))
            }
            .boxed()
        };
        let (tag, body) = match self.send(what, key, request).await? {
            Answer::Done(found) => found,
            Answer::Absent => return Ok(None),
            Answer::Conflict => return Err(unexpected(what, &"a read has no condition")),
        };
        Ok(Some(Record { key: key.to_owned(), version: version(what, tag)?, body: body.into() }))
    }

    async fn swap(
        &self,
        key: &str,
        expected: Option<&Version>,
        _: Epoch,
        body: &[u8],
    ) -> Result<Swap, BackendError> {
        let mode = match expected {
            Some(version) => {
                PutMode::Update(UpdateVersion { e_tag: Some(version.as_str().to_owned()), version: None })
            }
            None => PutMode::Create,
        };
        self.put("swapping a record", key, mode, body).await
    }

    /// Two requests: see the [assumptions](crate#deletion).
    async fn delete(&self, key: &str, expected: &Version) -> Result<bool, BackendError> {
        match self.read(key, Freshness::Fresh).await? {
            Some(record) if record.version == *expected => {
                self.remove("deleting a record", key).await.map(|()| true)
            }
            _ => Ok(false),
        }
    }

    async fn list(&self, prefix: &str) -> Result<Vec<Record>, BackendError> {
        let what = "listing records";
        let path = self.path(prefix);
        let request = move |client: AmazonS3| {
            let listed = client.list(Some(&path));
            listed
                .map_ok(|object| object.location)
                .take(MAX_LIST_BYTES / RECORD_BYTES + 1)
                .try_collect::<Vec<_>>()
                .boxed()
        };
        let Answer::Done(listed) = self.send(what, prefix, request).await? else {
            return Err(unexpected(what, &"a list has no condition"));
        };
        let too_many = || unexpected(what, &"there are too many records; use another prefix");
        if listed.len() > MAX_LIST_BYTES / RECORD_BYTES {
            return Err(too_many());
        }
        let own = format!("{}/", self.config.prefix);
        let mut keys = Vec::with_capacity(listed.len());
        keys.extend(listed.iter().filter_map(|path| Some(path.as_ref().strip_prefix(&own)?.to_owned())));
        let read = |key: String| async move { self.read(&key, Freshness::Fresh).await }.boxed();
        let mut reads = stream::iter(keys).map(read).buffer_unordered(CONCURRENT_REQUESTS);
        let (mut records, mut bytes) = (Vec::new(), 0);
        while let Some(record) = reads.next().await {
            // It may have been deleted meanwhile.
            let Some(record) = record? else { continue };
            bytes += record.body.len() + RECORD_BYTES;
            if bytes >= MAX_LIST_BYTES {
                return Err(too_many());
            }
            records.push(record);
        }
        Ok(records)
    }

    async fn epoch(&self) -> Result<EpochState, BackendError> {
        Ok(EpochState::Fixed)
    }

    async fn diagnose(&self) -> Vec<Diagnosis> {
        diagnose(self).await
    }

    async fn close(&self) {
        self.http.close();
    }
}

/// A client that signs with this secret; with the credentials of the environment if there is none.
fn open(config: &S3Config, http: &Http, secret: Option<&Secret>) -> Result<AmazonS3, Error> {
    let mut builder = config.check()?.with_http_connector(http.clone());
    if let (Some((key, _)), Some(secret)) = (&config.login, secret) {
        let credential =
            AwsCredential { key_id: key.clone(), secret_key: secret.expose().to_owned(), token: None };
        // Instead of what the environment has.
        builder = builder.with_credentials(Arc::new(StaticCredentialProvider::new(credential)));
    }
    builder.build().map_err(|error| classify("configuring the client", &error).into())
}

fn answer<T>(what: &str, outcome: object_store::Result<T>) -> Result<Answer<T>, BackendError> {
    use object_store::Error::{AlreadyExists, NotFound, NotModified, Precondition};
    match outcome {
        Ok(answer) => Ok(Answer::Done(answer)),
        Err(NotFound { .. }) => Ok(Answer::Absent),
        Err(AlreadyExists { .. } | Precondition { .. } | NotModified { .. }) => Ok(Answer::Conflict),
        Err(error) => Err(classify(what, &error)),
    }
}

fn version(what: &str, tag: Option<String>) -> Result<Version, BackendError> {
    tag.map(Version::new).ok_or_else(|| unexpected(what, &"the server's answer has no ETag"))
}

fn no_credentials(error: &object_store::Error) -> BackendError {
    let refused = classify("getting credentials", error);
    let advice = "give s3://KEY@bucket with password_file=/path, or AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or run where the \
                  machine, the pod or the task has a role";
    BackendError::new(BackendErrorKind::Unavailable, format!("{refused}; {advice}"))
}

/// The request may have been carried out.
fn unexpected(what: &str, reason: &dyn fmt::Display) -> BackendError {
    BackendError::new(BackendErrorKind::Unavailable, format!("{what}: {reason}"))
}
