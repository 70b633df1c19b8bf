//! The configuration: hosts, database, schema, login and time limits.

use std::{env, path::Path, time::Duration};

use tenure_core::{
    Error, InvalidConfig, Password, Secret, StoreUrl, Tls,
    internal::{check_hosts, check_tls, name_and_port},
    spi::{BackendError, BackendErrorKind},
};

use crate::passfile;

const DEFAULT_PORT: u16 = 5432;
const DEFAULT_SCHEMA: &str = "tenure";
/// A name of PostgreSQL has 63 bytes, and that of the notifications has a prefix.
const MAX_SCHEMA_BYTES: usize = 48;

/// The hosts of a PostgreSQL database, and the schema of its elections.
///
/// Its `Debug` shows no password.
#[derive(Clone, Debug)]
pub struct PostgresConfig {
    pub(crate) hosts: Vec<String>,
    pub(crate) user: String,
    pub(crate) database: String,
    pub(crate) schema: String,
    pub(crate) login: Login,
    pub(crate) tls: Option<Tls>,
    pub(crate) connect_timeout: Duration,
    pub(crate) attempt_timeout: Duration,
    pub(crate) poll_interval: Duration,
}

/// Where the password is from.
#[derive(Clone, Debug)]
pub(crate) enum Login {
    /// There is none, or it is the same for all hosts.
    Same(Option<Password>),
    /// The password of each host, from a file of libpq's.
    ByHost(Vec<Option<Password>>),
}

impl PostgresConfig {
    /// The database `database` at `hosts`, each `host` or `host:port`, as `user`, without a password, and the schema `tenure`.
    ///
    /// Name every server that may be the primary: connections are made to the one that is.
    pub fn new<H: Into<String>>(
        hosts: impl IntoIterator<Item = H>,
        user: impl Into<String>,
        database: impl Into<String>,
    ) -> Self {
        Self {
            hosts: hosts.into_iter().map(Into::into).collect(),
            user: user.into(),
            database: database.into(),
            schema: DEFAULT_SCHEMA.to_owned(),
            login: Login::Same(None),
            tls: None,
            connect_timeout: Duration::from_secs(2),
            attempt_timeout: Duration::from_secs(2),
            poll_interval: Duration::from_secs(1),
        }
    }

    /// Reads a URL such as `postgres://user@10.0.0.1,10.0.0.2:5433/database?schema=tenure`. The scheme may be `postgresql`, too.
    ///
    /// A host, a user and a database are needed. Hosts have port 5432 unless they name one.
    ///
    /// | setting | meaning | default |
    /// |---|---|---|
    /// | `schema` | the schema of the tables | `tenure` |
    /// | `password_file`, `password_env` | where the password is read from | the URL, or the variable `PGPASSWORD` |
    /// | `passfile` | a file of libpq's with passwords | `PGPASSFILE`, or `~/.pgpass` if there is one |
    /// | `sslmode` | `verify-full`, or `disable` for no TLS | `verify-full` with a `sslrootcert`, or else `disable` |
    /// | `sslrootcert` | a PEM file with the authorities that sign the server's certificate | |
    /// | `sslcert`, `sslkey` | PEM files with a client certificate and its key | |
    /// | `target_session_attrs` | `read-write`: only a primary is used | `read-write` |
    /// | `connect_timeout` | how long it may take to connect to a host | 2 s |
    /// | `attempt_timeout` | how long a statement may take, before another connection is made | 2 s |
    /// | `poll_interval` | how often a record is read without notifications | 1 s |
    ///
    /// # Errors
    /// [`Error::InvalidUrl`] and [`Error::InvalidConfig`], with what is wrong and what is allowed. They never contain the password.
    pub fn from_url(url: &StoreUrl) -> Result<Self, Error> {
        const EXAMPLE: &str = "postgres://user@host1,host2/database";
        if !matches!(url.scheme(), "postgres" | "postgresql") {
            return Err(url.invalid("its scheme is not postgres or postgresql").into());
        }
        if url.hosts().is_empty() {
            return Err(url
                .invalid(format!("it names no host; give every server that may be the primary: {EXAMPLE}"))
                .into());
        }
        let Some(user) = url.user() else {
            return Err(url.invalid(format!("it names no user; give {EXAMPLE}")).into());
        };
        let database = url.path().trim_matches('/');
        if database.is_empty() {
            return Err(url.invalid(format!("it names no database; give {EXAMPLE}")).into());
        }
        let mut config = Self::new(url.hosts().iter().cloned(), user, database);
        if let Some(schema) = url.text("schema") {
            config = config.schema(schema);
        }
        config.tls = tls(url)?;
        config.set_login(url)?;
        match url.text("target_session_attrs") {
            None | Some("read-write") => {}
            Some(other) => {
                let reason =
                    format!("target_session_attrs={other} is not read-write: candidates write; remove it");
                return Err(url.invalid(reason).into());
            }
        }
        config.connect_timeout = url.duration("connect_timeout")?.unwrap_or(config.connect_timeout);
        config.attempt_timeout = url.duration("attempt_timeout")?.unwrap_or(config.attempt_timeout);
        config.poll_interval = url.duration("poll_interval")?.unwrap_or(config.poll_interval);
        config.check().map_err(|error| match error {
            Error::Refused(reason) => url.invalid(reason.to_string()).into(),
            other => other,
        })?;
        Ok(config)
    }

    /// Sets the schema of the tables; `tenure` by default. Elections in different schemas are separate.
    #[must_use]
    pub fn schema(mut self, schema: impl Into<String>) -> Self {
        self.schema = schema.into();
        self
    }

    /// Sets the password: a fixed one (a [`Secret`]) or one from a file, which may rotate.
    #[must_use]
    pub fn password(mut self, password: impl Into<Password>) -> Self {
        self.login = Login::Same(Some(password.into()));
        self
    }

    /// Reads the password of each host from a file of libpq's, now and when connections are made. A host of which it has no line gets none.
    ///
    /// # Errors
    /// When the file cannot be read, or others may read it.
    pub fn passfile(mut self, file: impl AsRef<Path>) -> Result<Self, Error> {
        let file = file.as_ref();
        let passwords = passfile::passwords(file, &self);
        self.login = Login::ByHost(
            passwords.map_err(|reason| invalid(format!("passfile={} {reason}", file.display())))?,
        );
        Ok(self)
    }

    /// Uses TLS, and checks the server's name. Needs the feature `tls`.
    #[must_use]
    pub fn tls(mut self, tls: Tls) -> Self {
        self.tls = Some(tls);
        self
    }

    /// Sets how long it may take to connect to a host; 2 s by default.
    #[must_use]
    pub fn connect_timeout(mut self, time: Duration) -> Self {
        self.connect_timeout = time;
        self
    }

    /// Sets how long the answer to a statement may take; 2 s by default. Another connection is made after that.
    #[must_use]
    pub fn attempt_timeout(mut self, time: Duration) -> Self {
        self.attempt_timeout = time;
        self
    }

    /// Sets how often a record is read while the server delivers no notifications; every second by default. A handover takes about
    /// half of it then.
    #[must_use]
    pub fn poll_interval(mut self, interval: Duration) -> Self {
        self.poll_interval = interval;
        self
    }

    pub(crate) fn check(&self) -> Result<(), Error> {
        check_hosts("PostgreSQL", &self.hosts)?;
        for (what, name) in [("user", &self.user), ("database", &self.database)] {
            if name.is_empty() || name.contains('\0') {
                return Err(invalid(format!("the {what} {name:?} is not allowed; give a name")));
            }
        }
        check_tls(self.tls.as_ref(), cfg!(feature = "tls"))?;
        let is_plain = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'_' | b'-');
        let schema = &self.schema;
        if schema.is_empty() || schema.len() > MAX_SCHEMA_BYTES || !schema.bytes().all(is_plain) {
            return Err(invalid(format!(
                "the schema {schema:?} is not allowed: it has 1 to {MAX_SCHEMA_BYTES} of A-Z a-z 0-9 _ -"
            )));
        }
        if schema.starts_with("pg_") {
            return Err(invalid(format!("the schema {schema:?} is not allowed: PostgreSQL reserves pg_")));
        }
        for (setting, given, min_ms, allowed) in [
            ("connect_timeout", self.connect_timeout, 10, "from 10ms to 1m"),
            ("attempt_timeout", self.attempt_timeout, 100, "from 100ms to 1m"),
            ("poll_interval", self.poll_interval, 10, "from 10ms to 1m"),
        ] {
            if given < Duration::from_millis(min_ms) || given > Duration::from_secs(60) {
                return Err(InvalidConfig::Time { setting, given, allowed }.into());
            }
        }
        Ok(())
    }

    /// The password comes from the URL or one of its settings, or else from the environment. PostgreSQL may need none.
    fn set_login(&mut self, url: &StoreUrl) -> Result<(), Error> {
        let (file, variable, passfile) =
            (url.text("password_file"), url.text("password_env"), url.text("passfile"));
        let is_given = url.password().is_some() || file.is_some() || variable.is_some();
        let passfile = match (is_given, passfile) {
            (true, None) => {
                self.login = Login::Same(url.login()?.map(|(_, password)| password));
                return Ok(());
            }
            (true, Some(_)) => {
                return Err(url.invalid("it has a passfile and another password; give one").into());
            }
            (false, Some(file)) => Some(file.into()),
            (false, None) => match env::var("PGPASSWORD") {
                Ok(password) if !password.is_empty() => {
                    self.login = Login::Same(Some(Secret::new(password).into()));
                    return Ok(());
                }
                Err(env::VarError::NotUnicode(_)) => {
                    return Err(url.invalid("the variable PGPASSWORD is not UTF-8").into());
                }
                _ => passfile::default_file(),
            },
        };
        if let Some(file) = passfile {
            *self = self.clone().passfile(file)?;
        }
        Ok(())
    }

    /// The password for the host with this number.
    pub(crate) fn password_of(&self, host: usize) -> Option<&Password> {
        match &self.login {
            Login::Same(password) => password.as_ref(),
            Login::ByHost(passwords) => passwords.get(host)?.as_ref(),
        }
    }

    /// Whether a password may be sent.
    pub(crate) fn has_password(&self) -> bool {
        (0..self.hosts.len()).any(|host| self.password_of(host).is_some())
    }

    /// The name and the port of each host.
    pub(crate) fn endpoints(&self) -> impl Iterator<Item = (&str, u16)> {
        self.hosts.iter().map(|host| name_and_port(host, DEFAULT_PORT))
    }
}

/// TLS by libpq's settings. Of its modes there are two: one in which nobody can pose as the server, and none.
fn tls(url: &StoreUrl) -> Result<Option<Tls>, Error> {
    const NEEDS: &str = "give sslrootcert=/path/to/authorities.pem; for public authorities /etc/ssl/certs/ca-certificates.crt on Debian";
    let mode = url.text("sslmode");
    let tls = Tls::from_settings(url, ["sslrootcert", "sslcert", "sslkey"])?;
    match (mode, &tls) {
        (None | Some("verify-full"), Some(_)) | (None | Some("disable"), None) => Ok(tls),
        (Some("verify-full"), None) => {
            Err(url.invalid(format!("it has sslmode=verify-full but no sslrootcert; {NEEDS}")).into())
        }
        (Some("disable"), Some(_)) => {
            Err(url.invalid("it has sslmode=disable and a sslrootcert; remove one").into())
        }
        (Some(mode @ ("allow" | "prefer" | "require" | "verify-ca")), _) => {
            let reason = format!(
                "sslmode={mode} does not check which server answers: another could pose as it; use sslmode=verify-full, and {NEEDS}"
            );
            Err(url.invalid(reason).into())
        }
        (Some(mode), _) => {
            Err(url.invalid(format!("sslmode={mode} is neither verify-full nor disable")).into())
        }
    }
}

fn invalid(reason: String) -> Error {
    BackendError::new(BackendErrorKind::Invalid, reason).into()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn config(url: &str) -> Result<PostgresConfig, Error> {
        PostgresConfig::from_url(&url.parse().unwrap())
    }

    #[test]
    fn a_url_sets_everything() {
        let config = config(
            "postgresql://me:p%40ss@10.0.0.1,[::1]:5433,[::2],h:1/billing?schema=acme-1&connect_timeout=3\
             &attempt_timeout=4s&poll_interval=500ms&target_session_attrs=read-write",
        )
        .unwrap();
        let endpoints: Vec<_> = config.endpoints().collect();
        assert_eq!(endpoints, [("10.0.0.1", 5432), ("::1", 5433), ("::2", 5432), ("h", 1)]);
        assert_eq!(
            (config.user.as_str(), config.database.as_str(), config.schema.as_str()),
            ("me", "billing", "acme-1")
        );
        assert_eq!(config.password_of(3).unwrap().latest().expose(), "p@ss");
        let times = [config.connect_timeout, config.attempt_timeout, config.poll_interval];
        assert_eq!(times.map(|time| time.as_millis()), [3_000, 4_000, 500]);
        assert!(!format!("{config:?}").contains("p@ss"));
    }

    #[test]
    fn invalid_settings_are_refused_with_a_reason() {
        for (url, reason) in [
            ("pg://me@h/db", "its scheme is not postgres or postgresql"),
            ("postgres:", "it names no host; give every server that may be the primary"),
            ("postgres://h/db", "it names no user; give postgres://user@host1,host2/database"),
            ("postgres://me@h", "it names no database; give postgres://user@host1,host2/database"),
            ("postgres://me@h/", "it names no database"),
            (
                "postgres://me@h/db?schema=a.b",
                "the schema \"a.b\" is not allowed: it has 1 to 48 of A-Z a-z 0-9 _ -",
            ),
            ("postgres://me@h/db?schema=", "the schema \"\" is not allowed"),
            ("postgres://me@h/db?schema=pg_x", "PostgreSQL reserves pg_"),
            ("postgres://me@h/db?target_session_attrs=any", "target_session_attrs=any is not read-write"),
            (
                "postgres://me@h/db?attempt_timeout=1ms",
                "attempt_timeout 1ms is not allowed: it must be from 100ms to 1m",
            ),
            ("postgres://me@h/db?connect_timeout=2m", "connect_timeout 2m is not allowed"),
            ("postgres://me@h/db?poll_interval=soon", "poll_interval=soon is not a time"),
            ("postgres://me:a@h/db?password_env=B", "it has more than one of a password"),
            ("postgres://me:a@h/db?passfile=/b", "it has a passfile and another password; give one"),
            ("postgres://me@h/db?passfile=/nowhere/pgpass", "passfile=/nowhere/pgpass cannot be read"),
            ("postgres://me@h/db?sslmode=require", "sslmode=require does not check which server answers"),
            (
                "postgres://me@h/db?sslmode=verify-full",
                "it has sslmode=verify-full but no sslrootcert; give sslrootcert=",
            ),
            ("postgres://me@h/db?sslmode=on", "sslmode=on is neither verify-full nor disable"),
            ("postgres://me@h/db?sslcert=/a", "it has a sslcert or a sslkey but no sslrootcert"),
            ("postgres://me@h/db?sslrootcert=/nowhere/ca.pem", "sslrootcert=/nowhere/ca.pem cannot be read"),
        ] {
            let error = config(url).unwrap_err().to_string();
            assert!(error.contains(reason), "{url}: {error}");
        }
        let none = PostgresConfig::new([] as [&str; 0], "me", "db").check().unwrap_err().to_string();
        assert!(none.contains("no host of PostgreSQL is given"), "{none}");
    }
}
