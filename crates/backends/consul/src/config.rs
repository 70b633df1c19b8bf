//! The configuration: hosts, prefix, token, TLS and time limits.

use std::{env, time::Duration};

use tenure_cas::CasSettings;
use tenure_core::{
    Error, Password, Secret, StoreUrl, Tls,
    internal::{check_hosts, check_tls, name_and_port},
    spi::{BackendError, BackendErrorKind},
};

const DEFAULT_PORT: u16 = 8500;
const DEFAULT_PREFIX: &str = "tenure";
const MAX_PREFIX_BYTES: usize = 256;
/// How long a request may take.
const ATTEMPT_TIMEOUT: Duration = Duration::from_secs(2);
/// How often a record is read while Consul gives no hints.
const POLL_INTERVAL: Duration = Duration::from_secs(1);

/// The agents of a Consul cluster, and the prefix of its elections' keys.
///
/// Its `Debug` shows no token.
#[derive(Clone, Debug)]
pub struct ConsulConfig {
    pub(crate) hosts: Vec<String>,
    pub(crate) prefix: String,
    pub(crate) datacenter: Option<String>,
    pub(crate) token: Option<Password>,
    pub(crate) tls: Option<Tls>,
    pub(crate) settings: CasSettings,
}

impl ConsulConfig {
    /// The agents at `hosts`, each `host` or `host:port`, without a token, and the prefix `tenure`.
    ///
    /// One agent is used at a time: the first one, and the next one after a request without an answer.
    pub fn new<H: Into<String>>(hosts: impl IntoIterator<Item = H>) -> Self {
        Self {
            hosts: hosts.into_iter().map(Into::into).collect(),
            prefix: DEFAULT_PREFIX.to_owned(),
            datacenter: None,
            token: None,
            tls: None,
            settings: CasSettings::new()
                .with_request_timeout(ATTEMPT_TIMEOUT)
                .with_poll_interval(POLL_INTERVAL),
        }
    }

    /// Reads a URL such as `consul://10.0.0.1,10.0.0.2:8501/prefix?password_file=/run/token`.
    ///
    /// Hosts have port 8500 unless they name one. The path is the prefix; without one it is `tenure`.
    ///
    /// | setting | meaning | default |
    /// |---|---|---|
    /// | `password_file`, `password_env` | where the ACL token is read from | the URL, as in `consul://token:TOKEN@host`, or the variable `CONSUL_HTTP_TOKEN` |
    /// | `dc` | the datacenter | that of the agent |
    /// | `ca` | a PEM file with the authorities that sign the agents' certificates; requests use HTTPS then | |
    /// | `cert`, `key` | PEM files with a client certificate and its key | |
    /// | `attempt_timeout` | how long a request may take, before the next one is sent to the next host | 2 s |
    /// | `poll_interval` | how often a record is read while Consul gives no hints | 1 s |
    ///
    /// # Errors
    /// [`Error::InvalidUrl`] and [`Error::InvalidConfig`], with what is wrong and what is allowed. They never contain the token.
    pub fn from_url(url: &StoreUrl) -> Result<Self, Error> {
        if url.scheme() != "consul" {
            return Err(url.invalid("its scheme is not consul").into());
        }
        if url.hosts().is_empty() {
            return Err(url.invalid("it names no host; give consul://host1,host2/prefix").into());
        }
        // What stands in the place of a user may be a token.
        if url.user().is_some_and(|user| user != "token") {
            let text = "it has a user; Consul knows tokens only: give password_file=/path, or consul://token:TOKEN@host";
            return Err(url.invalid_user(text).into());
        }
        let mut config = Self::new(url.hosts().iter().cloned());
        config.settings = CasSettings::from_url(url, POLL_INTERVAL)?;
        if !url.path().trim_matches('/').is_empty() {
            config = config.prefix(url.path());
        }
        config.datacenter = url.text("dc").map(str::to_owned);
        config.tls = Tls::from_url(url)?;
        config.token = match url.password_alone()? {
            Some(token) => Some(token),
            None => match env::var("CONSUL_HTTP_TOKEN") {
                Ok(token) if !token.is_empty() => Some(Secret::new(token).into()),
                Err(env::VarError::NotUnicode(_)) => {
                    return Err(url.invalid("the variable CONSUL_HTTP_TOKEN is not UTF-8").into());
                }
                _ => None,
            },
        };
        config.check().map_err(|error| url.invalid(error.to_string()))?;
        Ok(config)
    }

    /// Sets the prefix of all keys; `tenure` by default. Slashes around it are ignored. Elections with different prefixes are separate.
    #[must_use]
    pub fn prefix(mut self, prefix: impl AsRef<str>) -> Self {
        self.prefix = prefix.as_ref().trim_matches('/').to_owned();
        self
    }

    /// Sets the datacenter; that of the agent by default.
    #[must_use]
    pub fn datacenter(mut self, datacenter: impl Into<String>) -> Self {
        self.datacenter = Some(datacenter.into());
        self
    }

    /// Sets the ACL token: a fixed one (a [`Secret`]) or one from a file, which may rotate.
    #[must_use]
    pub fn token(mut self, token: impl Into<Password>) -> Self {
        self.token = Some(token.into());
        self
    }

    /// Uses HTTPS, and checks the agents' names. Needs the feature `tls`.
    #[must_use]
    pub fn tls(mut self, tls: Tls) -> Self {
        self.tls = Some(tls);
        self
    }

    /// Sets how long a request may take; 2 s by default. The next request is sent to the next host after that.
    ///
    /// At least 100 ms and at most a minute: the nearest is used.
    #[must_use]
    pub fn attempt_timeout(mut self, time: Duration) -> Self {
        self.settings = self.settings.with_attempt_timeout(time);
        self
    }

    /// Sets how often a record is read while Consul gives no hints of changes; every second by default. A handover takes about half of it then.
    ///
    /// At least 10 ms and at most a minute: the nearest is used.
    #[must_use]
    pub fn poll_interval(mut self, interval: Duration) -> Self {
        self.settings = self.settings.with_poll_interval(interval);
        self
    }

    pub(crate) fn check(&self) -> Result<(), BackendError> {
        check_hosts("Consul", &self.hosts)?;
        let is_plain = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'.' | b'_' | b'-');
        let is_segment = |segment: &str| !matches!(segment, "" | "." | "..") && segment.bytes().all(is_plain);
        let prefix = &self.prefix;
        if prefix.len() > MAX_PREFIX_BYTES || !prefix.split('/').all(is_segment) {
            return Err(invalid(format!(
                "the prefix {prefix:?} is not allowed: it has at most {MAX_PREFIX_BYTES} of A-Z a-z 0-9 . _ - between slashes"
            )));
        }
        if let Some(dc) = self.datacenter.as_ref().filter(|dc| !is_segment(dc)) {
            return Err(invalid(format!("the datacenter {dc:?} is not allowed: it has A-Z a-z 0-9 . _ -")));
        }
        check_tls(self.tls.as_ref(), cfg!(feature = "tls"))
    }

    /// The addresses of the API of each host.
    pub(crate) fn addresses(&self) -> Vec<String> {
        let scheme = if self.tls.is_some() { "https" } else { "http" };
        let address = |host: &String| match name_and_port(host, DEFAULT_PORT) {
            (name, port) if name.contains(':') => format!("{scheme}://[{name}]:{port}/v1"),
            (name, port) => format!("{scheme}://{name}:{port}/v1"),
        };
        self.hosts.iter().map(address).collect()
    }
}

fn invalid(reason: String) -> BackendError {
    BackendError::new(BackendErrorKind::Invalid, reason)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn config(url: &str) -> Result<ConsulConfig, Error> {
        ConsulConfig::from_url(&url.parse().unwrap())
    }

    #[test]
    fn a_url_sets_everything() {
        let config = config(
            "consul://token:s3cret@10.0.0.1,[::1]:8501,[::2],h:1/acme/jobs/?dc=dc-2&attempt_timeout=4s&poll_interval=500ms",
        )
        .unwrap();
        assert_eq!(
            config.addresses(),
            ["http://10.0.0.1:8500/v1", "http://[::1]:8501/v1", "http://[::2]:8500/v1", "http://h:1/v1"]
        );
        assert_eq!((config.prefix.as_str(), config.datacenter.as_deref()), ("acme/jobs", Some("dc-2")));
        assert_eq!(config.token.as_ref().unwrap().latest().expose(), "s3cret");
        let times = [config.settings.request_timeout(), config.settings.poll_interval()];
        assert_eq!(times.map(|time| time.as_millis()), [4_000, 500]);
        assert!(!format!("{config:?}").contains("s3cret"));
    }

    #[test]
    fn the_prefix_has_a_default_and_a_token_needs_no_user() {
        let file = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(&file, "from-file\n").unwrap();
        let config = config(&format!("consul://h?password_file={}", file.path().display())).unwrap();
        assert_eq!(config.prefix, "tenure");
        assert_eq!(config.token.unwrap().latest().expose(), "from-file");
    }

    #[test]
    fn invalid_settings_are_refused_with_a_reason() {
        for (url, reason) in [
            ("etcd://h", "its scheme is not consul"),
            ("consul:", "it names no host; give consul://host1,host2/prefix"),
            ("consul://s3cret@h", "it has a user; Consul knows tokens only: give password_file=/path"),
            ("consul://me:s3cret@h", "it has a user; Consul knows tokens only"),
            ("consul://h/a b", "the prefix \"a b\" is not allowed"),
            ("consul://h/a//b", "the prefix \"a//b\" is not allowed"),
            ("consul://h/../b", "the prefix \"../b\" is not allowed"),
            ("consul://h?dc=a/b", "the datacenter \"a/b\" is not allowed"),
            (
                "consul://h?attempt_timeout=1ms",
                "attempt_timeout 1ms is not allowed: it must be from 100ms to 1m",
            ),
            ("consul://h?poll_interval=2m", "poll_interval 2m is not allowed"),
            ("consul://token:s3cret@h?password_env=B", "it has more than one of a password"),
            ("consul://h?password_file=/nowhere/token", "password_file=/nowhere/token cannot be read"),
            ("consul://h?cert=/a", "it has a cert or a key but no ca"),
            ("consul://h?ca=/nowhere/ca.pem", "ca=/nowhere/ca.pem cannot be read"),
        ] {
            let error = config(url).unwrap_err().to_string();
            assert!(error.contains(reason) && !error.contains("s3cret"), "{url}: {error}");
        }
        let none = ConsulConfig::new([] as [&str; 0]).check().unwrap_err().to_string();
        assert!(none.contains("no host of Consul is given"), "{none}");
    }
}
