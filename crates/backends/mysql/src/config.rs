//! The configuration: hosts, database, login and time limits.

use std::time::Duration;

use tenure_cas::CasSettings;
use tenure_core::{
    Error, Password, StoreUrl, Tls,
    internal::{check_hosts, check_tls, name_and_port},
    spi::{BackendError, BackendErrorKind},
};

const DEFAULT_PORT: u16 = 3306;
/// How often a record is read, unless the URL says otherwise.
const POLL_INTERVAL: Duration = Duration::from_secs(1);

/// The hosts of a MariaDB or MySQL database with elections.
///
/// Its `Debug` shows no password.
#[derive(Clone, Debug)]
pub struct MysqlConfig {
    pub(crate) hosts: Vec<String>,
    pub(crate) user: String,
    pub(crate) database: String,
    pub(crate) password: Option<Password>,
    pub(crate) tls: Option<Tls>,
    pub(crate) settings: CasSettings,
    pub(crate) allows_unsafe_durability: bool,
}

impl MysqlConfig {
    /// The database `database` at `hosts`, each `host` or `host:port`, as `user`, without a password.
    ///
    /// Name every server that may be the primary: connections are made to the one that accepts writes.
    pub fn new<H: Into<String>>(
        hosts: impl IntoIterator<Item = H>,
        user: impl Into<String>,
        database: impl Into<String>,
    ) -> Self {
        Self {
            hosts: hosts.into_iter().map(Into::into).collect(),
            user: user.into(),
            database: database.into(),
            password: None,
            tls: None,
            settings: CasSettings::new().with_request_timeout(Duration::from_secs(2)),
            allows_unsafe_durability: false,
        }
    }

    /// Reads a URL such as `mysql://user@10.0.0.1,10.0.0.2:3307/database?password_file=/path`. The scheme may be `mariadb`, too.
    ///
    /// A host, a user and a database are needed. Hosts have port 3306 unless they name one.
    ///
    /// | setting | meaning | default |
    /// |---|---|---|
    /// | `password_file`, `password_env` | where the password is read from | the URL |
    /// | `ca` | a PEM file with the authorities that sign the server's certificate: TLS is used | |
    /// | `cert`, `key` | PEM files with a client certificate and its key | |
    /// | `durability` | `unsafe` allows a server that loses acknowledged writes when its machine crashes | |
    /// | `attempt_timeout` | the time after which a request is given up | 2 s |
    /// | `poll_interval` | how often a record is read | 1 s |
    ///
    /// # Errors
    /// [`Error::InvalidUrl`] and [`Error::InvalidConfig`], with what is wrong and what is allowed. They never contain the password.
    pub fn from_url(url: &StoreUrl) -> Result<Self, Error> {
        const EXAMPLE: &str = "mysql://user@host1,host2/database";
        let invalid = |reason: String| Err(url.invalid(reason).into());
        if !matches!(url.scheme(), "mysql" | "mariadb") {
            return invalid("its scheme is not mysql or mariadb".to_owned());
        }
        if url.hosts().is_empty() {
            return invalid(format!(
                "it names no host; give every server that may be the primary: {EXAMPLE}"
            ));
        }
        let Some(user) = url.user() else { return invalid(format!("it names no user; give {EXAMPLE}")) };
        let database = url.path().trim_matches('/');
        if database.is_empty() {
            return invalid(format!("it names no database; give {EXAMPLE}"));
        }
        let mut config = Self::new(url.hosts().iter().cloned(), user, database);
        let has_password = ["password_file", "password_env"].iter().any(|name| url.text(name).is_some());
        if has_password || url.password().is_some() {
            config.password = url.login()?.map(|(_, password)| password);
        }
        config.tls = Tls::from_url(url)?;
        config.settings = CasSettings::from_url(url, POLL_INTERVAL)?;
        config.allows_unsafe_durability = match url.text("durability") {
            None => false,
            Some("unsafe") => true,
            Some(other) => return invalid(format!("durability={other} is not unsafe; remove it")),
        };
        config.check().map_err(|error| url.invalid(error.to_string()))?;
        Ok(config)
    }

    /// Sets the password: a fixed one (a [`Secret`](tenure_core::Secret)) or one from a file, which may rotate.
    #[must_use]
    pub fn password(mut self, password: impl Into<Password>) -> Self {
        self.password = Some(password.into());
        self
    }

    /// Uses TLS, and checks the server's name. Needs the feature `tls`.
    #[must_use]
    pub fn tls(mut self, tls: Tls) -> Self {
        self.tls = Some(tls);
        self
    }

    /// Sets the time after which a request is given up; 2 s by default. It includes the time to connect.
    ///
    /// At least 100 ms and at most a minute: the nearest is used.
    #[must_use]
    pub fn attempt_timeout(mut self, time: Duration) -> Self {
        self.settings = self.settings.with_attempt_timeout(time);
        self
    }

    /// Sets how often a record is read; every second by default. A handover takes about half of it.
    ///
    /// At least 10 ms and at most a minute: the nearest is used.
    #[must_use]
    pub fn poll_interval(mut self, interval: Duration) -> Self {
        self.settings = self.settings.with_poll_interval(interval);
        self
    }

    /// Allows a server that loses acknowledged writes when its machine crashes, which is refused by default. Neither of the promises holds
    /// across such a crash: two candidates may lead at the same time, with the same fencing token.
    #[must_use]
    pub fn allow_unsafe_durability(mut self) -> Self {
        self.allows_unsafe_durability = true;
        self
    }

    pub(crate) fn check(&self) -> Result<(), BackendError> {
        check_hosts("MySQL", &self.hosts)?;
        let invalid = |reason| Err(BackendError::new(BackendErrorKind::Invalid, reason));
        for (what, name) in [("user", &self.user), ("database", &self.database)] {
            if name.is_empty() || name.contains('\0') {
                return invalid(format!("the {what} {name:?} is not allowed; give a name"));
            }
        }
        check_tls(self.tls.as_ref(), cfg!(feature = "tls"))
    }

    /// The name and the port of each host.
    pub(crate) fn endpoints(&self) -> impl Iterator<Item = (&str, u16)> {
        self.hosts.iter().map(|host| name_and_port(host, DEFAULT_PORT))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn config(url: &str) -> Result<MysqlConfig, Error> {
        MysqlConfig::from_url(&url.parse().unwrap())
    }

    #[test]
    fn a_url_gives_hosts_database_and_login() {
        let url = "mariadb://me:p%40ss@h,[::1]:3307/billing?attempt_timeout=4s&poll_interval=500ms&durability=unsafe";
        let config = config(url).unwrap();
        assert_eq!(config.endpoints().collect::<Vec<_>>(), [("h", 3306), ("::1", 3307)]);
        assert_eq!((config.user.as_str(), config.database.as_str()), ("me", "billing"));
        assert_eq!(config.password.as_ref().unwrap().latest().expose(), "p@ss");
        assert_eq!(config.settings.request_timeout().as_millis(), 4_000);
        assert_eq!(config.settings.poll_interval().as_millis(), 500);
        assert!(config.allows_unsafe_durability);
        assert!(!format!("{config:?}").contains("p@ss"));
    }

    #[test]
    fn a_user_needs_no_password() {
        let config = config("mysql://me@h/db").unwrap();
        assert!(config.password.is_none() && !config.allows_unsafe_durability);
        assert_eq!(config.settings.request_timeout().as_millis(), 2_000);
    }

    #[test]
    fn invalid_settings_are_refused_with_a_reason() {
        for (url, reason) in [
            ("my://me@h/db", "its scheme is not mysql or mariadb"),
            ("mysql:", "it names no host; give every server that may be the primary"),
            ("mysql://h/db", "it names no user; give mysql://user@host1,host2/database"),
            ("mysql://me@h", "it names no database; give mysql://user@host1,host2/database"),
            ("mysql://me@h/", "it names no database"),
            ("mysql://me@h/db?durability=safe", "durability=safe is not unsafe; remove it"),
            (
                "mysql://me@h/db?attempt_timeout=1ms",
                "attempt_timeout 1ms is not allowed: it must be from 100ms to 1m",
            ),
            ("mysql://me@h/db?poll_interval=soon", "poll_interval=soon is not a time"),
            ("mysql://me:a@h/db?password_env=B", "it has more than one of a password"),
            ("mysql://me@h/db?password_file=/nowhere/password", "password_file=/nowhere/password"),
            ("mysql://me@h/db?ca=/nowhere/ca.pem", "ca=/nowhere/ca.pem cannot be read"),
            ("mysql://me@h/db?cert=/a", "ca"),
        ] {
            let error = config(url).unwrap_err().to_string();
            assert!(error.contains(reason), "{url}: {error}");
        }
        let none = MysqlConfig::new([] as [&str; 0], "me", "db").check().unwrap_err().to_string();
        assert!(none.contains("no host of MySQL is given"), "{none}");
    }
}
