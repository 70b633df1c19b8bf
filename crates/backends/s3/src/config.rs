//! The configuration: bucket, prefix, server, login and time limits.

use std::time::Duration;

use http::Uri;
use object_store::{
    RetryConfig,
    aws::{AmazonS3Builder, AmazonS3ConfigKey, S3ConditionalPut},
    path::Path,
};
use tenure_cas::CasSettings;
use tenure_core::{
    Error, Password, StoreUrl, Tls,
    spi::{BackendError, BackendErrorKind},
};

const DEFAULT_PREFIX: &str = "tenure";
/// Twice the default of other stores, because each read is paid for.
const DEFAULT_POLL_INTERVAL: Duration = Duration::from_secs(2);
/// The names of objects have at most 1024 bytes, and those of elections 255.
const MAX_PREFIX_BYTES: usize = 512;

/// A prefix in a bucket, and how its server is reached.
///
/// Other settings are read from the environment variables of the AWS tools, such as `AWS_REGION` and `AWS_ENDPOINT_URL`, when the
/// backend is made. Its `Debug` shows no secret.
#[derive(Clone, Debug)]
pub struct S3Config {
    pub(crate) bucket: String,
    pub(crate) prefix: String,
    pub(crate) endpoint: Option<String>,
    pub(crate) region: Option<String>,
    /// The access key, and its secret.
    pub(crate) login: Option<(String, Password)>,
    pub(crate) tls: Option<Tls>,
    pub(crate) settings: CasSettings,
}

impl S3Config {
    /// The bucket `bucket` of Amazon S3, and the prefix `tenure`, with the credentials of the environment.
    pub fn new(bucket: impl Into<String>) -> Self {
        Self {
            bucket: bucket.into(),
            prefix: DEFAULT_PREFIX.to_owned(),
            endpoint: None,
            region: None,
            login: None,
            tls: None,
            settings: CasSettings::new()
                .with_request_timeout(Duration::from_secs(2))
                .with_poll_interval(DEFAULT_POLL_INTERVAL),
        }
    }

    /// Reads a URL such as `s3://KEY@bucket/prefix?region=eu-west-1&password_file=/run/secrets/s3`.
    ///
    /// Without a key, the credentials are those of the environment: `AWS_ACCESS_KEY_ID` and `AWS_SECRET_ACCESS_KEY` (with
    /// `AWS_SESSION_TOKEN`), a web identity, the role of a task or a pod, or the role of the machine. The files of the AWS tools
    /// (`~/.aws`) are not read.
    ///
    /// | setting | meaning | default |
    /// |---|---|---|
    /// | `region` | the region of the bucket | `AWS_REGION`, `AWS_DEFAULT_REGION`, or `us-east-1` |
    /// | `endpoint` | the URL of another server than Amazon's, such as `https://s3.example:9000` | `AWS_ENDPOINT_URL_S3`, or `AWS_ENDPOINT_URL` |
    /// | `password_file`, `password_env` | where the secret of the key is read from | the URL |
    /// | `ca` | a PEM file with the authorities that sign the server's certificate | those of the system |
    /// | `cert`, `key` | PEM files with a client certificate and its key | |
    /// | `attempt_timeout` | how long a request may take | 2 s |
    /// | `poll_interval` | how often a record is read | 2 s |
    ///
    /// # Errors
    /// [`Error::InvalidUrl`] and [`Error::InvalidConfig`], with what is wrong and what is allowed. They never contain the secret.
    pub fn from_url(url: &StoreUrl) -> Result<Self, Error> {
        const EXAMPLE: &str = "give s3://bucket/prefix";
        if url.scheme() != "s3" {
            return Err(url.invalid("its scheme is not s3").into());
        }
        let bucket = match url.hosts() {
            [] => return Err(url.invalid(format!("it names no bucket; {EXAMPLE}")).into()),
            [bucket] if !bucket.contains(':') => bucket,
            [_] => {
                let reason = "a bucket has no port; give s3://bucket/prefix?endpoint=https://host:port";
                return Err(url.invalid(reason).into());
            }
            _ => return Err(url.invalid(format!("it names several buckets; {EXAMPLE}")).into()),
        };
        let mut config = Self::new(bucket);
        let prefix = url.path().trim_matches('/');
        if !prefix.is_empty() {
            config = config.prefix(prefix);
        }
        config.region = url.text("region").map(str::to_owned);
        config.endpoint = url.text("endpoint").map(str::to_owned);
        config.login = url.login()?;
        config.tls = Tls::from_url(url)?;
        config.settings = CasSettings::from_url(url, DEFAULT_POLL_INTERVAL)?;
        config.check().map_err(|error| match error {
            Error::Refused(reason) => url.invalid(reason.to_string()).into(),
            other => other,
        })?;
        Ok(config)
    }

    /// Sets the prefix of the objects; `tenure` by default. Elections with different prefixes are separate.
    #[must_use]
    pub fn prefix(mut self, prefix: impl Into<String>) -> Self {
        self.prefix = prefix.into();
        self
    }

    /// Sets the URL of the server, `https://host:port` or `http://host:port`, instead of that of Amazon S3.
    #[must_use]
    pub fn endpoint(mut self, endpoint: impl Into<String>) -> Self {
        self.endpoint = Some(endpoint.into());
        self
    }

    /// Sets the region of the bucket.
    #[must_use]
    pub fn region(mut self, region: impl Into<String>) -> Self {
        self.region = Some(region.into());
        self
    }

    /// Sets the access key and its secret: a fixed one (a [`Secret`](tenure_core::Secret)) or one from a file, which may rotate.
    #[must_use]
    pub fn login(mut self, key: impl Into<String>, secret: impl Into<Password>) -> Self {
        self.login = Some((key.into(), secret.into()));
        self
    }

    /// Uses these authorities instead of the system's, for all requests.
    #[must_use]
    pub fn tls(mut self, tls: Tls) -> Self {
        self.tls = Some(tls);
        self
    }

    /// Sets how long the answer to a request may take; 2 s by default.
    ///
    /// At least 100 ms and at most a minute: the nearest is used.
    #[must_use]
    pub fn attempt_timeout(mut self, time: Duration) -> Self {
        self.settings = self.settings.with_attempt_timeout(time);
        self
    }

    /// Sets how often a record is read; every 2 s by default. A handover takes about half of it, and each read is paid for.
    ///
    /// At least 10 ms and at most a minute: the nearest is used.
    #[must_use]
    pub fn poll_interval(mut self, interval: Duration) -> Self {
        self.settings = self.settings.with_poll_interval(interval);
        self
    }

    /// Checks the values. Returns what they and the environment make of the client.
    pub(crate) fn check(&self) -> Result<AmazonS3Builder, Error> {
        let bucket = &self.bucket;
        let is_plain = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'_' | b'.');
        if bucket.is_empty() || bucket.len() > 63 || !bucket.bytes().all(is_plain) {
            return Err(invalid(format!(
                "the bucket {bucket:?} is not allowed: it has 1 to 63 of A-Z a-z 0-9 . _ -"
            )));
        }
        let prefix = &self.prefix;
        if prefix.len() > MAX_PREFIX_BYTES
            || Path::parse(prefix).is_err()
            || *prefix != *Path::from(prefix.as_str()).as_ref()
        {
            return Err(invalid(format!(
                "the prefix {prefix:?} is not allowed: it has at most {MAX_PREFIX_BYTES} bytes, no empty part, and no character that \
                 the names of objects should avoid"
            )));
        }
        let mut builder = AmazonS3Builder::from_env()
            .with_bucket_name(bucket)
            .with_conditional_put(S3ConditionalPut::ETagMatch)
            .with_disable_bulk_delete(true)
            // The recipe repeats requests, and knows what a repeated one means. Each is sent once.
            .with_retry(RetryConfig { max_retries: 0, ..RetryConfig::default() });
        if let Some(region) = &self.region {
            builder = builder.with_region(region);
        }
        if let Some(endpoint) = &self.endpoint {
            builder = builder.with_config(AmazonS3ConfigKey::S3Endpoint, endpoint.trim_end_matches('/'));
        }
        let plain_text = match endpoint(&builder) {
            None => false,
            Some(endpoint) => {
                let uri = endpoint.parse::<Uri>().ok().filter(|uri| uri.host().is_some());
                match uri.as_ref().and_then(Uri::scheme_str) {
                    Some("https") => false,
                    Some("http") => true,
                    _ => {
                        let text =
                            format!("endpoint={endpoint} is not https://host:port or http://host:port");
                        return Err(invalid(text));
                    }
                }
            }
        };
        if plain_text && self.tls.is_some() {
            return Err(invalid(
                "it has a ca, but its endpoint has no TLS; give endpoint=https://".to_owned(),
            ));
        }
        Ok(builder.with_allow_http(plain_text))
    }

    /// The URL of the server.
    pub(crate) fn server(&self) -> String {
        let builder = self.check().ok();
        let region =
            self.region.clone().or_else(|| builder.as_ref()?.get_config_value(&AmazonS3ConfigKey::Region));
        let amazon = || format!("Amazon S3 in {}", region.as_deref().unwrap_or("us-east-1"));
        builder.as_ref().and_then(endpoint).unwrap_or_else(amazon)
    }

    /// The host of a server without TLS.
    pub(crate) fn plain_text_host(&self, builder: &AmazonS3Builder) -> Option<String> {
        let uri = endpoint(builder)?.parse::<Uri>().ok().filter(|uri| uri.scheme_str() == Some("http"))?;
        uri.authority().map(ToString::to_string)
    }
}

fn endpoint(builder: &AmazonS3Builder) -> Option<String> {
    let keys = [AmazonS3ConfigKey::S3Endpoint, AmazonS3ConfigKey::Endpoint];
    keys.iter().find_map(|key| builder.get_config_value(key))
}

fn invalid(reason: String) -> Error {
    BackendError::new(BackendErrorKind::Invalid, reason).into()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn config(url: &str) -> Result<S3Config, Error> {
        S3Config::from_url(&url.parse().unwrap())
    }

    #[test]
    fn a_url_sets_everything() {
        let url = "s3://KEY:s%2Fcret@acme.elections/a/b?endpoint=https://s3.example:9000/&region=eu-west-1&attempt_timeout=3s\
                   &poll_interval=5s";
        let config = config(url).unwrap();
        assert_eq!((config.bucket.as_str(), config.prefix.as_str()), ("acme.elections", "a/b"));
        let (key, secret) = config.login.clone().unwrap();
        assert_eq!((key.as_str(), secret.latest().expose()), ("KEY", "s/cret"));
        assert_eq!(config.server(), "https://s3.example:9000");
        assert_eq!(config.settings.request_timeout(), Duration::from_secs(3));
        assert_eq!(config.settings.poll_interval(), Duration::from_secs(5));
        assert!(!format!("{config:?}").contains("s/cret"));
        let default = S3Config::new("b");
        assert_eq!(
            (default.prefix.as_str(), default.settings.poll_interval()),
            ("tenure", DEFAULT_POLL_INTERVAL)
        );
    }

    #[test]
    fn invalid_settings_are_refused_with_a_reason() {
        for (url, reason) in [
            ("s3a://b", "its scheme is not s3"),
            ("s3:", "it names no bucket; give s3://bucket/prefix"),
            ("s3://a,b", "it names several buckets"),
            ("s3://b:9000/p", "a bucket has no port; give s3://bucket/prefix?endpoint=https://host:port"),
            ("s3://b/a//b", "the prefix \"a//b\" is not allowed"),
            ("s3://b/a%20%7Bb", "is not allowed"),
            ("s3://b/../a", "the prefix \"../a\" is not allowed"),
            ("s3://key@b", "it has a user but no password"),
            (
                "s3://b?endpoint=s3.example",
                "endpoint=s3.example is not https://host:port or http://host:port",
            ),
            ("s3://b?endpoint=ftp://h", "endpoint=ftp://h is not https://host:port"),
            ("s3://b?attempt_timeout=1ms", "attempt_timeout 1ms is not allowed: it must be from 100ms to 1m"),
            ("s3://b?poll_interval=2m", "poll_interval 2m is not allowed"),
            ("s3://b?ca=/nowhere/ca.pem", "ca=/nowhere/ca.pem cannot be read"),
        ] {
            let error = config(url).unwrap_err().to_string();
            assert!(error.contains(reason), "{url}: {error}");
        }
        let long = S3Config::new("b").prefix("p".repeat(513)).check().unwrap_err().to_string();
        assert!(long.contains("it has at most 512 bytes"), "{long}");
        let none = S3Config::new("").check().unwrap_err().to_string();
        assert!(none.contains("the bucket \"\" is not allowed"), "{none}");
    }
}
