//! The configuration: the server, the login and the time limits.

use std::time::Duration;

use tenure_cas::CasSettings;
use tenure_core::{
    Error, Password, StoreUrl, Tls,
    internal::{check_hosts, check_tls, name_and_port},
    spi::{BackendError, BackendErrorKind},
};

use crate::SINGLE_NODE;

const DEFAULT_PORT: u16 = 6379;
const MAX_PREFIX_BYTES: usize = 128;

/// A Redis or Valkey server, and the key of its elections.
///
/// Its `Debug` shows no password.
#[derive(Clone, Debug)]
pub struct RedisConfig {
    pub(crate) hosts: Vec<String>,
    pub(crate) database: u32,
    pub(crate) prefix: String,
    pub(crate) login: Option<(String, Password)>,
    pub(crate) tls: Option<Tls>,
    pub(crate) is_failover_allowed: bool,
    pub(crate) settings: CasSettings,
}

impl RedisConfig {
    /// Database 0 of the server at `host`, a `host` or `host:port`, without a password, and the prefix `tenure`.
    pub fn new(host: impl Into<String>) -> Self {
        Self {
            hosts: vec![host.into()],
            database: 0,
            prefix: "tenure".to_owned(),
            login: None,
            tls: None,
            is_failover_allowed: false,
            settings: CasSettings::new().with_request_timeout(Duration::from_secs(2)),
        }
    }

    /// Reads a URL such as `redis://user@10.0.0.1:6379/0?password_file=/run/secrets/redis`. The scheme may be `valkey`, too.
    ///
    /// The host has port 6379 unless it names one. The path is the number of the database.
    ///
    /// | setting | meaning | default |
    /// |---|---|---|
    /// | `prefix` | the key of the hash with the records, and the channel of the notifications | `tenure` |
    /// | `password_file`, `password_env` | where the password is read from | the URL |
    /// | `ca`, `cert`, `key` | PEM files for TLS: the authorities, a client certificate and its key | |
    /// | `failover` | `unsafe` allows several hosts, of which the primary is used, and a node of a cluster | |
    /// | `attempt_timeout` | how long connecting, and a request, may take | 2 s |
    /// | `poll_interval` | how often a record is read without notifications | 1 s |
    ///
    /// # Errors
    /// [`Error::InvalidUrl`] and [`Error::InvalidConfig`], with what is wrong and what is allowed. They never contain the password. A URL of
    /// Sentinel or Cluster is refused, and several hosts are, unless `failover` is `unsafe`.
    pub fn from_url(url: &StoreUrl) -> Result<Self, Error> {
        let Some(host) = url.hosts().first() else {
            return Err(url.invalid("it names no host; give redis://host:6379/0").into());
        };
        let mut config = Self::new(host).tls(Tls::from_url(url)?);
        match url.scheme() {
            "redis" | "valkey" => {}
            "rediss" | "valkeys" if config.tls.is_some() => {}
            "rediss" | "valkeys" => {
                let reason = "it has no authorities for TLS; give ca=/path/to/authorities.pem; for public authorities \
                              /etc/ssl/certs/ca-certificates.crt on Debian";
                return Err(url.invalid(reason).into());
            }
            scheme => {
                let reason = format!(
                    "{scheme} fails over, but {SINGLE_NODE}; give redis://host/0 with one server, or, if you accept that, \
                     redis://host1,host2/0?failover=unsafe with every server that may be the primary"
                );
                return Err(url.invalid(reason).into());
            }
        }
        config.hosts = url.hosts().to_vec();
        config.database = match url.path().trim_start_matches('/') {
            "" => 0,
            number => number.parse().map_err(|_| {
                url.invalid("its path is not the number of a database; give redis://host/0, and a name as prefix=NAME")
            })?,
        };
        if let Some(prefix) = url.text("prefix") {
            config = config.prefix(prefix);
        }
        config.login = url.login()?;
        config.is_failover_allowed = match url.text("failover") {
            None => false,
            Some("unsafe") => true,
            Some(other) => return Err(url.invalid(format!("failover={other} is not unsafe")).into()),
        };
        config.settings = CasSettings::from_url(url, config.settings.poll_interval())?;
        config.check().map_err(|error| url.invalid(error.to_string()))?;
        Ok(config)
    }

    /// Sets the number of the database; 0 by default.
    #[must_use]
    pub fn database(mut self, number: u32) -> Self {
        self.database = number;
        self
    }

    /// Sets the key of the hash with the records, which is the channel of the notifications too; `tenure` by default. Elections of different
    /// prefixes are separate.
    #[must_use]
    pub fn prefix(mut self, prefix: impl Into<String>) -> Self {
        self.prefix = prefix.into();
        self
    }

    /// Sets the user and the password: a fixed one (a [`Secret`](tenure_core::Secret)) or one from a file, which may rotate. The user of
    /// `requirepass` is `default`.
    #[must_use]
    pub fn login(mut self, user: impl Into<String>, password: impl Into<Password>) -> Self {
        self.login = Some((user.into(), password.into()));
        self
    }

    /// Uses TLS, and checks the server's name. Needs the feature `tls`.
    #[must_use]
    pub fn tls(mut self, tls: impl Into<Option<Tls>>) -> Self {
        self.tls = tls.into();
        self
    }

    /// Allows a node of a cluster, and, by [`add_host`](Self::add_host), several hosts. A failover can make two leaders, and repeat tokens.
    #[must_use]
    pub fn allow_unsafe_failover(mut self) -> Self {
        self.is_failover_allowed = true;
        self
    }

    /// Adds another host that may be the primary. Needs [`allow_unsafe_failover`](Self::allow_unsafe_failover).
    #[must_use]
    pub fn add_host(mut self, host: impl Into<String>) -> Self {
        self.hosts.push(host.into());
        self
    }

    /// Sets how long connecting, and a request, may take; 2 s by default.
    ///
    /// At least 100 ms and at most a minute: the nearest is used.
    #[must_use]
    pub fn attempt_timeout(mut self, time: Duration) -> Self {
        self.settings = self.settings.with_attempt_timeout(time);
        self
    }

    /// Sets how often a record is read while the store gives no hints of changes; every second by default.
    ///
    /// At least 10 ms and at most a minute: the nearest is used.
    #[must_use]
    pub fn poll_interval(mut self, interval: Duration) -> Self {
        self.settings = self.settings.with_poll_interval(interval);
        self
    }

    pub(crate) fn check(&self) -> Result<(), BackendError> {
        check_hosts("Redis", &self.hosts)?;
        check_tls(self.tls.as_ref(), cfg!(feature = "tls"))?;
        let is_plain = |byte: u8| byte.is_ascii_alphanumeric() || b"_-.:{}".contains(&byte);
        let prefix = &self.prefix;
        let reason = if self.hosts.len() > 1 && !self.is_failover_allowed {
            format!(
                "several hosts are given, but {SINGLE_NODE}; give one host, or failover=unsafe if you accept that"
            )
        } else if prefix.is_empty() || prefix.len() > MAX_PREFIX_BYTES || !prefix.bytes().all(is_plain) {
            format!(
                "the prefix {prefix:?} is not allowed: it has 1 to {MAX_PREFIX_BYTES} of A-Z a-z 0-9 _ - . : {{ }}"
            )
        } else {
            return Ok(());
        };
        Err(BackendError::new(BackendErrorKind::Invalid, reason))
    }

    /// The user that has to have the rights.
    pub(crate) fn user(&self) -> &str {
        self.login.as_ref().map_or("default", |(user, _)| user)
    }

    /// The name and the port of each host.
    pub(crate) fn endpoints(&self) -> impl Iterator<Item = (&str, u16)> {
        self.hosts.iter().map(|host| name_and_port(host, DEFAULT_PORT))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn config(url: &str) -> Result<RedisConfig, Error> {
        RedisConfig::from_url(&url.parse().unwrap())
    }

    #[test]
    fn a_url_sets_everything() {
        let url = "valkey://me:p%40ss@[::1]:7000,h/3?prefix=acme:a&failover=unsafe&attempt_timeout=4s&poll_interval=500ms";
        let config = config(url).unwrap();
        assert_eq!(config.endpoints().collect::<Vec<_>>(), [("::1", 7000), ("h", 6379)]);
        assert_eq!((config.database, config.prefix.as_str(), config.user()), (3, "acme:a", "me"));
        assert_eq!(config.login.as_ref().unwrap().1.latest().expose(), "p@ss");
        let times = [config.settings.request_timeout(), config.settings.poll_interval()];
        assert_eq!(times.map(|time| time.as_millis()), [4_000, 500]);
        assert!(!format!("{config:?}").contains("p@ss"));
    }

    /// Hazard C5: what fails over is not used without being told so.
    #[test]
    fn invalid_settings_are_refused_with_a_reason() {
        for (url, reason) in [
            ("redis:", "it names no host; give redis://host:6379/0"),
            (
                "redis+sentinel://a:26379,b/mymaster",
                "redis+sentinel fails over, but Redis is a single node here",
            ),
            ("redis-cluster://a,b", "two candidates can lead, and tokens can repeat; give redis://host/0"),
            ("redis://a,b/0", "several hosts are given, but Redis is a single node here"),
            ("redis://a/0?failover=safe", "failover=safe is not unsafe"),
            ("rediss://a/0", "it has no authorities for TLS; give ca="),
            ("redis://a/billing", "its path is not the number of a database"),
            ("redis://a/-1", "its path is not the number of a database"),
            ("redis://a/0?prefix=", "the prefix \"\" is not allowed: it has 1 to 128 of"),
            ("redis://a/0?prefix=a*", "the prefix \"a*\" is not allowed"),
            ("redis://a/0?attempt_timeout=1ms", "attempt_timeout 1ms is not allowed"),
            ("redis://a/0?ca=/nowhere/ca.pem", "ca=/nowhere/ca.pem cannot be read"),
            ("redis://me@a/0", "it has a user but no password"),
        ] {
            let error = config(url).unwrap_err().to_string();
            assert!(error.contains(reason), "{url}: {error}");
        }
    }
}
