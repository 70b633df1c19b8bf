//! The configuration: hosts, bucket, login and time limits.

use std::{path::Path, time::Duration};

use tenure_cas::CasSettings;
use tenure_core::{
    Error, Password, Secret, StoreUrl, Tls,
    internal::{check_hosts, check_tls},
    spi::{BackendError, BackendErrorKind},
};

const DEFAULT_INBOX_PREFIX: &str = "_INBOX";

/// The servers of a NATS cluster, and the bucket of its elections.
///
/// Its `Debug` shows no password.
#[derive(Clone, Debug)]
pub struct NatsConfig {
    pub(crate) hosts: Vec<String>,
    pub(crate) bucket: String,
    pub(crate) login: Login,
    pub(crate) tls: Option<Tls>,
    pub(crate) replicas: Option<u8>,
    pub(crate) inbox_prefix: String,
    /// The monitoring ports of the servers, for the doctor.
    pub(crate) monitor: Vec<String>,
    pub(crate) settings: CasSettings,
}

/// How a client logs in.
#[derive(Clone, Debug)]
pub(crate) enum Login {
    None,
    User(String, Password),
    Token(Password),
    /// A JWT and the seed of its key.
    Credentials(Password),
    /// The seed of a key.
    Nkey(Password),
}

impl Login {
    /// What a client logs in with: a file is read again when it has changed.
    pub(crate) fn secret(&self) -> Option<&Password> {
        match self {
            Self::None => None,
            Self::User(_, secret) | Self::Token(secret) | Self::Credentials(secret) | Self::Nkey(secret) => {
                Some(secret)
            }
        }
    }

    /// Whether the client sends a secret: with a key it only sends a signature.
    pub(crate) fn sends_secret(&self) -> bool {
        matches!(self, Self::User(..) | Self::Token(_))
    }
}

impl NatsConfig {
    /// The bucket `bucket` of the cluster with the servers `hosts`, each `host` or `host:port`, without a login.
    pub fn new<H: Into<String>>(hosts: impl IntoIterator<Item = H>, bucket: impl Into<String>) -> Self {
        Self {
            hosts: hosts.into_iter().map(Into::into).collect(),
            bucket: bucket.into(),
            login: Login::None,
            tls: None,
            replicas: None,
            inbox_prefix: DEFAULT_INBOX_PREFIX.to_owned(),
            monitor: Vec::new(),
            settings: CasSettings::new().with_request_timeout(Duration::from_secs(2)),
        }
    }

    /// Reads a URL such as `nats://user@10.0.0.1,10.0.0.2:4223/bucket?password_file=/run/secrets/nats`.
    ///
    /// A host and a bucket are needed. Hosts have port 4222 unless they name one.
    ///
    /// | setting | meaning | default |
    /// |---|---|---|
    /// | `password_file`, `password_env` | where the user's password is read from | the URL |
    /// | `token_file` | a file with a token, instead of a user and a password | |
    /// | `credentials` | a file with a JWT and its key, as `nsc` makes it | |
    /// | `nkey_file` | a file with the seed of an nkey | |
    /// | `replicas` | how many replicas the bucket has if it is created here | 3 in a cluster, otherwise 1 |
    /// | `inbox_prefix` | the prefix of the reply subjects | `_INBOX` |
    /// | `monitor` | the servers' monitoring ports, `host:8222,host:8222`: the doctor reads `sync_interval` there | |
    /// | `ca` | a PEM file with the authorities that sign the servers' certificates, for TLS | no TLS |
    /// | `cert`, `key` | PEM files with a client certificate and its key | |
    /// | `attempt_timeout` | how long the answer to a request may take, before another connection is made | 2 s |
    /// | `poll_interval` | how often an observer reads a record; a waiting candidate and a leader read it ten times less often, because changes are announced, also without permission for the announcements | 1 s |
    ///
    /// # Errors
    /// [`Error::InvalidUrl`] and [`Error::InvalidConfig`], with what is wrong and what is allowed. They never contain the password.
    pub fn from_url(url: &StoreUrl) -> Result<Self, Error> {
        const EXAMPLE: &str = "nats://host1,host2/bucket";
        if url.scheme() != "nats" {
            return Err(url.invalid("its scheme is not nats").into());
        }
        if url.hosts().is_empty() {
            return Err(url.invalid(format!("it names no host; give {EXAMPLE}")).into());
        }
        let bucket = url.path().trim_matches('/');
        if bucket.is_empty() {
            return Err(url.invalid(format!("it names no bucket; give {EXAMPLE}")).into());
        }
        let mut config = Self::new(url.hosts().iter().cloned(), bucket);
        config.tls = Tls::from_url(url)?;
        config.login = login(url)?;
        config.replicas = url.parsed("replicas", "a number from 1 to 5")?;
        config.inbox_prefix = url.text("inbox_prefix").unwrap_or(DEFAULT_INBOX_PREFIX).to_owned();
        config.monitor = url
            .text("monitor")
            .map(|hosts| hosts.split(',').map(str::to_owned).collect())
            .unwrap_or_default();
        config.settings = CasSettings::from_url(url, config.settings.poll_interval())?;
        config.check().map_err(|error| url.invalid(error.to_string()))?;
        Ok(config)
    }

    /// Logs in with a user and a password: a fixed one (a [`Secret`](tenure_core::Secret)) or one from a file, which may rotate.
    #[must_use]
    pub fn user(mut self, user: impl Into<String>, password: impl Into<Password>) -> Self {
        self.login = Login::User(user.into(), password.into());
        self
    }

    /// Logs in with a token.
    #[must_use]
    pub fn token(mut self, token: impl Into<Password>) -> Self {
        self.login = Login::Token(token.into());
        self
    }

    /// Logs in with a file that has a JWT and the seed of its key, as `nsc` makes it. The file may rotate.
    ///
    /// # Errors
    /// When the file cannot be read, or has no JWT with its seed. The text is the reason.
    pub fn credentials(mut self, file: impl AsRef<Path>) -> Result<Self, String> {
        self.login = Login::Credentials(key_file(file, "credentials")?);
        Ok(self)
    }

    /// Logs in with a file that has the seed of an nkey. The file may rotate.
    ///
    /// # Errors
    /// When the file cannot be read, or has no seed. The text is the reason.
    pub fn nkey_file(mut self, file: impl AsRef<Path>) -> Result<Self, String> {
        self.login = Login::Nkey(key_file(file, "nkey_file")?);
        Ok(self)
    }

    /// Uses TLS, and checks the servers' names. Needs the feature `tls`.
    #[must_use]
    pub fn tls(mut self, tls: Tls) -> Self {
        self.tls = Some(tls);
        self
    }

    /// Sets how many replicas the bucket has if it is created here, from 1 to 5; by default 3 in a cluster, and 1 on a single server.
    #[must_use]
    pub fn replicas(mut self, replicas: u8) -> Self {
        self.replicas = Some(replicas);
        self
    }

    /// Sets the first part of the subjects at which answers arrive; `_INBOX` by default. The user may subscribe to what is below it.
    #[must_use]
    pub fn inbox_prefix(mut self, prefix: impl Into<String>) -> Self {
        self.inbox_prefix = prefix.into();
        self
    }

    /// Sets the monitoring ports of the servers, each `host:port`: a diagnosis reads there whether writes are flushed to the disk.
    #[must_use]
    pub fn monitor<H: Into<String>>(mut self, hosts: impl IntoIterator<Item = H>) -> Self {
        self.monitor = hosts.into_iter().map(Into::into).collect();
        self
    }

    /// Sets how long the answer to a request may take; 2 s by default. Another connection is made after that.
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

    /// The stream that keeps the bucket.
    pub(crate) fn stream(&self) -> String {
        format!("KV_{}", self.bucket)
    }

    pub(crate) fn check(&self) -> Result<(), BackendError> {
        check_hosts("NATS", &self.hosts)?;
        if !self.monitor.is_empty() {
            check_hosts("NATS's monitoring", &self.monitor)?;
        }
        let is_plain = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'_' | b'-');
        let bucket = &self.bucket;
        if bucket.is_empty() || bucket.len() > 200 || !bucket.bytes().all(is_plain) {
            return Err(invalid(format!(
                "the bucket {bucket:?} is not allowed: it has 1 to 200 of A-Z a-z 0-9 _ -"
            )));
        }
        let is_subject =
            |part: &str| !part.is_empty() && part.bytes().all(|byte| is_plain(byte) || byte == b'$');
        if !self.inbox_prefix.split('.').all(is_subject) {
            return Err(invalid(format!(
                "the inbox_prefix {:?} is not allowed: give parts of A-Z a-z 0-9 _ - with dots between them",
                self.inbox_prefix
            )));
        }
        if let Some(replicas) = self.replicas.filter(|replicas| !(1..=5).contains(replicas)) {
            return Err(invalid(format!("replicas={replicas} is not allowed: give a number from 1 to 5")));
        }
        check_tls(self.tls.as_ref(), cfg!(feature = "tls"))
    }
}

/// At most one kind of login.
fn login(url: &StoreUrl) -> Result<Login, Error> {
    let mut logins = Vec::new();
    if let Some((user, password)) = url.login()? {
        logins.push(Login::User(user, password));
    }
    if let Some(file) = url.text("token_file") {
        let token = Password::from_file(file);
        logins
            .push(Login::Token(token.map_err(|reason| url.invalid(format!("token_file={file} {reason}")))?));
    }
    for (setting, login) in
        [("credentials", Login::Credentials as fn(Password) -> Login), ("nkey_file", Login::Nkey)]
    {
        if let Some(file) = url.text(setting) {
            let key = key_file(file, setting);
            logins.push(login(key.map_err(|reason| url.invalid(format!("{setting}={file} {reason}")))?));
        }
    }
    match logins.len() {
        0 => Ok(Login::None),
        1 => Ok(logins.remove(0)),
        _ => Err(url
            .invalid("it has more than one of a user, a token_file, credentials and a nkey_file; give one")
            .into()),
    }
}

/// A file with the seed of a key, and for `credentials` with a JWT. A file that is written in place is not complete at first.
fn key_file(file: impl AsRef<Path>, setting: &'static str) -> Result<Password, String> {
    Password::from_file_with(file, setting, move |text| match setting {
        "credentials" if !(text.contains("USER JWT") && text.contains("END USER NKEY SEED")) => {
            Err("has no JWT with the seed of its key".to_owned())
        }
        "nkey_file" if !text.trim_start().starts_with("SU") => Err("has no seed of a user's key".to_owned()),
        _ => Ok(Secret::new(text.trim())),
    })
}

fn invalid(reason: String) -> BackendError {
    BackendError::new(BackendErrorKind::Invalid, reason)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn config(url: &str) -> Result<NatsConfig, Error> {
        NatsConfig::from_url(&url.parse().unwrap())
    }

    #[test]
    fn a_url_sets_everything() {
        let config = config(
            "nats://me:p%40ss@10.0.0.1,[::1]:5433/acme-1?replicas=5&inbox_prefix=_INBOX.me&monitor=10.0.0.1:8222,h:1&attempt_timeout=4s\
             &poll_interval=500ms",
        )
        .unwrap();
        assert_eq!((&*config.stream(), config.replicas), ("KV_acme-1", Some(5)));
        assert_eq!(config.hosts, ["10.0.0.1", "[::1]:5433"]);
        assert_eq!(config.monitor, ["10.0.0.1:8222", "h:1"]);
        assert_eq!(config.inbox_prefix, "_INBOX.me");
        assert_eq!(config.login.secret().unwrap().latest().expose(), "p@ss");
        let times = [config.settings.request_timeout(), config.settings.poll_interval()];
        assert_eq!(times.map(|time| time.as_millis()), [4_000, 500]);
        assert!(!format!("{config:?}").contains("p@ss"));
    }

    #[test]
    fn every_login_is_read() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("secret");
        std::fs::write(&file, "hunter2\n").unwrap();
        let login = |setting: &str| config(&format!("nats://h/a?{setting}={}", file.display()));
        let Login::Token(token) = login("token_file").unwrap().login else { panic!() };
        assert_eq!(token.latest().expose(), "hunter2");
        for (setting, reason) in [
            ("credentials", "has no JWT with the seed of its key"),
            ("nkey_file", "has no seed of a user's key"),
        ] {
            let error = login(setting).unwrap_err().to_string();
            assert!(error.contains(&format!("{setting}={} {reason}", file.display())), "{error}");
        }
        let credentials = "-----BEGIN NATS USER JWT-----\nJ\n------END NATS USER JWT------\n\n\
                           -----BEGIN USER NKEY SEED-----\nSUA\n------END USER NKEY SEED------\n";
        std::fs::write(&file, credentials).unwrap();
        let Login::Credentials(key) = login("credentials").unwrap().login else { panic!() };
        assert_eq!(key.latest().expose(), credentials.trim());
        std::fs::write(&file, "SUAhunter\n").unwrap();
        let Login::Nkey(key) = login("nkey_file").unwrap().login else { panic!() };
        assert_eq!(key.latest().expose(), "SUAhunter");
        let both = format!("nats://a:b@h/a?nkey_file={}", file.display());
        assert!(
            config(&both).unwrap_err().to_string().contains("it has more than one of a user, a token_file")
        );
    }

    #[test]
    fn invalid_settings_are_refused_with_a_reason() {
        for (url, reason) in [
            ("etcd://h/a", "its scheme is not nats"),
            ("nats:", "it names no host; give nats://host1,host2/bucket"),
            ("nats://h", "it names no bucket; give nats://host1,host2/bucket"),
            ("nats://h/a/b", "the bucket \"a/b\" is not allowed: it has 1 to 200 of A-Z a-z 0-9 _ -"),
            ("nats://me@h/a", "it has a user but no password"),
            ("nats://h/a?replicas=0", "replicas=0 is not allowed: give a number from 1 to 5"),
            ("nats://h/a?replicas=many", "a number from 1 to 5"),
            ("nats://h/a?inbox_prefix=a..b", "the inbox_prefix \"a..b\" is not allowed"),
            ("nats://h/a?token_file=/nowhere/token", "token_file=/nowhere/token cannot be read"),
            ("nats://h/a?credentials=/nowhere/creds", "credentials=/nowhere/creds cannot be read"),
            ("nats://h/a?monitor=:1", "a host of NATS's monitoring is not allowed"),
            ("nats://h/a?attempt_timeout=1ms", "attempt_timeout 1ms is not allowed"),
            ("nats://h/a?poll_interval=2m", "poll_interval 2m is not allowed"),
        ] {
            let error = config(url).unwrap_err().to_string();
            assert!(error.contains(reason), "{url}: {error}");
        }
    }
}
