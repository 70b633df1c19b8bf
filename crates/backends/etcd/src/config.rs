//! The configuration of the etcd backend.

use std::{fmt, time::Duration};

use tenure_core::{
    Error, InvalidConfig, Password, StoreUrl, Tls,
    internal::check_hosts,
    spi::{BackendError, BackendErrorKind},
};

const DEFAULT_PORT: u16 = 2379;
const DEFAULT_PREFIX: &str = "/tenure";

/// How to connect to an etcd cluster, and below which key prefix its elections are stored.
///
/// Its `Debug` shows no password.
#[derive(Clone)]
pub struct EtcdConfig {
    pub(crate) endpoints: Vec<String>,
    pub(crate) prefix: String,
    pub(crate) login: Option<(String, Password)>,
    pub(crate) tls: Option<Tls>,
    pub(crate) connect_timeout: Duration,
    pub(crate) attempt_timeout: Duration,
    pub(crate) hedge: Duration,
    pub(crate) prefix_watch_threshold: usize,
    #[cfg(feature = "simulation")]
    pub(crate) network: Option<crate::test_support::Network>,
}

impl EtcdConfig {
    /// A cluster with the members at `endpoints`, each `host` or `host:port`, and the prefix `/tenure`.
    ///
    /// Name every member: each has its own connection, and requests move to the next member when one does not answer.
    pub fn new<E: Into<String>>(endpoints: impl IntoIterator<Item = E>) -> Self {
        Self {
            endpoints: endpoints.into_iter().map(|endpoint| with_port(endpoint.into())).collect(),
            prefix: DEFAULT_PREFIX.to_owned(),
            login: None,
            tls: None,
            connect_timeout: Duration::from_secs(1),
            attempt_timeout: Duration::from_secs(2),
            hedge: Duration::from_millis(300),
            prefix_watch_threshold: 1_000,
            #[cfg(feature = "simulation")]
            network: None,
        }
    }

    /// Reads a URL such as `etcd://user:password@10.0.0.1:2379,10.0.0.2/prefix?hedge=200ms`.
    ///
    /// - Hosts have port 2379 unless they name one; at least one host is required.
    /// - The path is the prefix; without one it is `/tenure`.
    /// - Settings: `connect_timeout` (default 1 s), `attempt_timeout` (default 2 s), `hedge` (default 300 ms),
    ///   `password_file` ([read again](Password::from_file) when it rotates) or `password_env` (a variable's name),
    ///   and for TLS `ca`, `cert` and `key`, each a PEM file.
    ///
    /// # Errors
    /// [`Error::InvalidUrl`] and [`Error::InvalidConfig`], with what is wrong and what is allowed. They never contain
    /// the password.
    pub fn from_url(url: &StoreUrl) -> Result<Self, Error> {
        if url.scheme() != "etcd" {
            return Err(url.invalid("its scheme is not etcd").into());
        }
        if url.hosts().is_empty() {
            return Err(url
                .invalid("it names no host; give every member: etcd://host1:2379,host2:2379/prefix")
                .into());
        }
        let mut config = Self::new(url.hosts().iter().cloned());
        if !url.path().trim_end_matches('/').is_empty() {
            config = config.prefix(url.path());
        }
        if let Some((user, password)) = url.login()? {
            config = config.login(user, password);
        }
        config.tls = Tls::from_url(url)?;
        if let Some(given) = url.duration("connect_timeout")? {
            config = config.connect_timeout(given);
        }
        if let Some(given) = url.duration("attempt_timeout")? {
            config = config.attempt_timeout(given);
        }
        if let Some(given) = url.duration("hedge")? {
            config = config.hedge(given);
        }
        config.check()?;
        Ok(config)
    }

    /// Stores elections below `prefix`. Trailing slashes are ignored.
    ///
    /// An etcd user needs permission to read and write all keys below `prefix` and a slash.
    pub fn prefix(mut self, prefix: impl AsRef<str>) -> Self {
        self.prefix = prefix.as_ref().trim_end_matches('/').to_owned();
        self
    }

    /// Authenticates as `user`, with a fixed password (a [`Secret`](tenure_core::Secret)) or one from a file, which
    /// may rotate.
    pub fn login(mut self, user: impl Into<String>, password: impl Into<Password>) -> Self {
        self.login = Some((user.into(), password.into()));
        self
    }

    /// Uses TLS for all members. Requires the feature `tls`.
    pub fn tls(mut self, tls: Tls) -> Self {
        self.tls = Some(tls);
        self
    }

    /// Sets how long connecting to a member may take; 1 s by default.
    pub fn connect_timeout(mut self, time: Duration) -> Self {
        self.connect_timeout = time;
        self
    }

    /// Sets how long a request to one member may take, including connecting; 2 s by default.
    pub fn attempt_timeout(mut self, time: Duration) -> Self {
        self.attempt_timeout = time;
        self
    }

    /// Sets how long to wait for an answer until the request is sent to the next member as well; 300 ms by default.
    pub fn hedge(mut self, time: Duration) -> Self {
        self.hedge = time;
        self
    }

    /// Sets how many key watches may be open until one prefix watch serves all waiters; 1 000 by default.
    ///
    /// Below this number each key has its own watch. etcd notifies thousands of them one by one, but a prefix watch
    /// with one message. In return, the process receives every deletion below the prefix, not only those that it
    /// waits for. A user who may not watch the whole prefix keeps one watch per key. With 1 the prefix watch is
    /// opened with the first wait, with `usize::MAX` never.
    pub fn prefix_watch_threshold(mut self, watches: usize) -> Self {
        self.prefix_watch_threshold = watches;
        self
    }

    /// Connects to the members over a simulated network.
    #[cfg(feature = "simulation")]
    #[doc(hidden)]
    pub fn network(mut self, network: crate::test_support::Network) -> Self {
        self.network = Some(network);
        self
    }

    /// The members and the prefix. For this project's fuzz targets.
    #[cfg(fuzzing)]
    #[doc(hidden)]
    pub fn endpoints_and_prefix(&self) -> (&[String], &str) {
        (&self.endpoints, &self.prefix)
    }

    pub(crate) fn check(&self) -> Result<(), Error> {
        check_hosts("etcd", &self.endpoints)?;
        if self.tls.is_some() && cfg!(not(feature = "tls")) {
            return Err(BackendError::new(
                BackendErrorKind::Invalid,
                "TLS is configured, but this program was built without the feature \"tls\"; add it in Cargo.toml",
            )
            .into());
        }
        for (setting, given, min_ms, max_ms, allowed) in [
            ("connect_timeout", self.connect_timeout, 1, 60_000, "from 1ms to 1m"),
            ("attempt_timeout", self.attempt_timeout, 10, 60_000, "from 10ms to 1m"),
            ("hedge", self.hedge, 10, 60_000, "from 10ms to 1m"),
        ] {
            if given < Duration::from_millis(min_ms) || given > Duration::from_millis(max_ms) {
                return Err(InvalidConfig::Time { setting, given, allowed }.into());
            }
        }
        Ok(())
    }
}

impl fmt::Debug for EtcdConfig {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("EtcdConfig")
            .field("endpoints", &self.endpoints)
            .field("prefix", &self.prefix)
            .field("user", &self.login.as_ref().map(|(user, _)| user))
            .field("tls", &self.tls)
            .field("connect_timeout", &self.connect_timeout)
            .field("attempt_timeout", &self.attempt_timeout)
            .field("hedge", &self.hedge)
            .finish()
    }
}

fn with_port(endpoint: String) -> String {
    let after_ipv6 = endpoint.rsplit_once(']').map_or(endpoint.as_str(), |(_, rest)| rest);
    if after_ipv6.contains(':') { endpoint } else { format!("{endpoint}:{DEFAULT_PORT}") }
}

#[cfg(test)]
mod tests {
    use std::io::Write as _;

    use super::*;

    fn config(url: &str) -> Result<EtcdConfig, Error> {
        EtcdConfig::from_url(&url.parse().unwrap())
    }

    #[test]
    fn a_url_sets_every_option() {
        let config = config(
            "etcd://me:p%40ss@10.0.0.1,[::1],h:1/acme/?connect_timeout=2s&attempt_timeout=3s&hedge=100ms",
        )
        .unwrap();
        assert_eq!(config.endpoints, ["10.0.0.1:2379", "[::1]:2379", "h:1"]);
        assert_eq!(config.prefix, "/acme");
        let (user, password) = config.login.as_ref().unwrap();
        assert_eq!((user.as_str(), password.latest().expose()), ("me", "p@ss"));
        assert_eq!(config.connect_timeout, Duration::from_secs(2));
        assert_eq!(config.attempt_timeout, Duration::from_secs(3));
        assert_eq!(config.hedge, Duration::from_millis(100));
        assert!(!format!("{config:?}").contains("p@ss"));
    }

    #[test]
    fn the_prefix_has_a_default() {
        for url in ["etcd://h", "etcd://h/", "etcd://h//"] {
            assert_eq!(config(url).unwrap().prefix, "/tenure", "{url}");
        }
        assert_eq!(config("etcd://h/a/b").unwrap().prefix, "/a/b");
    }

    #[test]
    fn a_password_is_read_from_a_file() {
        let mut file = tempfile::NamedTempFile::new().unwrap();
        file.write_all(b"hunter2 \r\n").unwrap();
        let config = config(&format!("etcd://me@h?password_file={}", file.path().display())).unwrap();
        assert_eq!(config.login.unwrap().1.latest().expose(), "hunter2 ");
    }

    #[test]
    fn errors_name_the_invalid_setting() {
        for (url, reason) in [
            ("zk://h", "its scheme is not etcd"),
            ("etcd:", "it names no host; give every member"),
            ("etcd:///acme", "it names no host"),
            ("etcd://me@h", "it has a user but no password"),
            ("etcd://h?password_file=/nowhere/pw", "password_file=/nowhere/pw cannot be read"),
            ("etcd://me:pw@h?password_file=/nowhere/pw", "more than one of a password"),
            ("etcd://h?hedge=soon", "hedge=soon is not a time"),
            ("etcd://h?hedge=0s", "hedge 0s is not allowed: it must be from 10ms to 1m"),
            ("etcd://h?attempt_timeout=1h", "attempt_timeout 1h is not allowed"),
            ("etcd://h?connect_timeout=0s", "connect_timeout 0s is not allowed"),
        ] {
            let error = config(url).unwrap_err().to_string();
            assert!(error.contains(reason), "{url}: {error}");
        }
        let none = EtcdConfig::new([] as [&str; 0]).check().unwrap_err().to_string();
        assert!(none.contains("no host of etcd is given"), "{none}");
    }

    #[test]
    fn the_url_knows_the_settings() {
        let url: StoreUrl = "etcd://h?ttl=1s".parse().unwrap();
        EtcdConfig::from_url(&url).unwrap();
        let error = url.deny_unknown().unwrap_err().to_string();
        assert!(
            error.contains(
                "attempt_timeout, ca, cert, connect_timeout, hedge, key, password_env, password_file"
            ),
            "{error}"
        );
    }
}
