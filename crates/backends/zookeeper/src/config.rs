//! The configuration: servers, root, credentials, and time limits.

use std::time::Duration;

use tenure_core::{
    Error, InvalidConfig, Password, StoreUrl, Tls,
    internal::{check_hosts, is_loopback},
    spi::{BackendError, BackendErrorKind},
};

use crate::{
    election::{layout::Layout, session_bounds::SessionBounds},
    transport::connect_options::{AuthScheme, Login},
};

const DEFAULT_PORT: u16 = 2181;
const DEFAULT_ROOT: &str = "/tenure";

/// The servers of a ZooKeeper ensemble, and the root of its elections.
///
/// `Debug` does not print the password.
#[derive(Clone, Debug)]
pub struct ZookeeperConfig {
    pub(crate) servers: Vec<String>,
    pub(crate) root: String,
    pub(crate) layout: Layout,
    pub(crate) login: Option<Login>,
    pub(crate) tls: Option<Tls>,
    pub(crate) creator_only: Option<bool>,
    pub(crate) bounds: SessionBounds,
    pub(crate) attempt_timeout: Duration,
}

impl ZookeeperConfig {
    /// A configuration with these servers, each `host` or `host:port`, and the root `/tenure`.
    ///
    /// Name every server: when one does not answer, the session moves to another.
    pub fn new<S: Into<String>>(servers: impl IntoIterator<Item = S>) -> Self {
        Self {
            servers: servers.into_iter().map(|server| with_port(server.into())).collect(),
            root: DEFAULT_ROOT.to_owned(),
            layout: Layout::default(),
            login: None,
            tls: None,
            creator_only: None,
            bounds: SessionBounds::default(),
            attempt_timeout: Duration::from_secs(2),
        }
    }

    /// Reads a URL such as `zookeeper://10.0.0.1:2181,10.0.0.2/acme?layout=curator`.
    ///
    /// At least one host is needed. The default port is 2181. The path is the root of the elections, `/tenure` by default.
    ///
    /// | setting | meaning | default |
    /// |---|---|---|
    /// | `layout` | names of entries: `tenure`, `curator` or `kazoo` | `tenure` |
    /// | `min_ttl`, `max_ttl` | the TTLs that the servers may grant | half and twice the requested TTL |
    /// | `attempt_timeout` | the time limit for connecting to a server and for its answers | 2 s |
    /// | `tick` | the servers' `tickTime` | unknown |
    /// | `password_file`, `password_env` | where the password is read from | the URL |
    /// | `auth` | `digest`, or `sasl` for DIGEST-MD5 | `digest` |
    /// | `acl` | who may change created znodes: `creator` or `open` | `creator` with a login |
    /// | `ca`, `cert`, `key` | PEM files for TLS | no TLS |
    ///
    /// # Errors
    /// [`Error::InvalidUrl`] and [`Error::InvalidConfig`]. The text says what is allowed and does not contain the password.
    pub fn from_url(url: &StoreUrl) -> Result<Self, Error> {
        if url.scheme() != "zookeeper" {
            return Err(url.invalid("its scheme is not zookeeper").into());
        }
        if url.hosts().is_empty() {
            return Err(url
                .invalid("it names no host; give every server: zookeeper://host1:2181,host2:2181/root")
                .into());
        }
        let mut config = Self::new(url.hosts().iter().cloned());
        if !url.path().trim_end_matches('/').is_empty() {
            config = config.root(url.path());
        }
        config.layout = url.parsed("layout", "one of tenure, curator, kazoo")?.unwrap_or_default();
        let by_sasl = match url.text("auth") {
            None | Some("digest") => false,
            Some("sasl") => true,
            Some(other) => {
                return Err(url.invalid(format!("auth={other} is neither digest nor sasl")).into());
            }
        };
        match url.login()? {
            Some((user, password)) if by_sasl => config = config.login_by_sasl(user, password),
            Some((user, password)) => config = config.login(user, password),
            None if by_sasl => {
                return Err(url
                    .invalid("it has auth=sasl but no user; give zookeeper://user:password@host")
                    .into());
            }
            None => {}
        }
        config.tls = Tls::from_url(url)?;
        config.creator_only = match url.text("acl") {
            None => None,
            Some("creator") => Some(true),
            Some("open") => Some(false),
            Some(other) => {
                return Err(url.invalid(format!("acl={other} is neither creator nor open")).into());
            }
        };
        config.bounds.min_ttl = url.duration("min_ttl")?;
        config.bounds.max_ttl = url.duration("max_ttl")?;
        config.attempt_timeout = url.duration("attempt_timeout")?.unwrap_or(config.attempt_timeout);
        config.bounds.tick = url.duration("tick")?;
        config.check().map_err(|error| match error {
            Error::Refused(reason) => url.invalid(reason.to_string()).into(),
            other => other,
        })?;
        Ok(config)
    }

    /// Sets the root of the elections, a znode that is created if it is missing. Trailing slashes are ignored.
    pub fn root(mut self, root: impl AsRef<str>) -> Self {
        self.root = root.as_ref().trim_end_matches('/').to_owned();
        self
    }

    /// Sets the names of entries, to take part in one election with the candidates of another library.
    pub fn layout(mut self, layout: Layout) -> Self {
        self.layout = layout;
        self
    }

    /// Authenticates as `user` with ZooKeeper's `digest` scheme. Only this user can then change created znodes. The name
    /// must not contain a colon.
    ///
    /// ZooKeeper accepts any password: a wrong one makes another user, which may not enter elections that the user
    /// with the right one has created.
    ///
    /// A password in a [file](Password::from_file) may rotate. Sessions then authenticate as two users, with the current
    /// password and with the one before, until the process restarts.
    pub fn login(mut self, user: impl Into<String>, password: impl Into<Password>) -> Self {
        self.login = Some(Login { user: user.into(), password: password.into(), scheme: AuthScheme::Digest });
        self
    }

    /// Authenticates as `user` of the servers' JAAS configuration with SASL's DIGEST-MD5. Only this
    /// user can then change created znodes. Needs the feature `sasl`.
    ///
    /// DIGEST-MD5 does not protect a password from an eavesdropper that guesses, and the client library trusts any
    /// challenge. Servers on another machine therefore need [TLS](Self::tls).
    pub fn login_by_sasl(mut self, user: impl Into<String>, password: impl Into<Password>) -> Self {
        self.login = Some(Login { user: user.into(), password: password.into(), scheme: AuthScheme::Sasl });
        self
    }

    /// Sets whether created znodes belong to their creator alone, or to everybody. By default they belong to their
    /// creator if there is a login.
    ///
    /// Set it if the servers authenticate clients by certificate. Without any authentication ZooKeeper refuses to create a
    /// znode for its creator alone.
    pub fn creator_only(mut self, creator_only: bool) -> Self {
        self.creator_only = Some(creator_only);
        self
    }

    /// Uses TLS to every server. Needs the feature `tls`.
    pub fn tls(mut self, tls: Tls) -> Self {
        self.tls = Some(tls);
        self
    }

    /// Sets the bounds within which the servers may change the session's timeout. Other sessions are refused. The default
    /// is half to twice the requested TTL.
    pub fn granted_ttl(mut self, min: Duration, max: Duration) -> Self {
        self.bounds.min_ttl = Some(min);
        self.bounds.max_ttl = Some(max);
        self
    }

    /// Sets the time limit for connecting to a server and for each of its answers. A late answer alone does not move the session to
    /// another server.
    pub fn attempt_timeout(mut self, time: Duration) -> Self {
        self.attempt_timeout = time;
        self
    }

    /// Sets the servers' `tickTime`, which they do not report. Where a tick is less than a quarter of the TTL,
    /// heartbeats are then confirmed sooner, and leadership survives longer outages.
    ///
    /// A heartbeat is confirmed by three later ones. The first is sent at least a tick after its answer, or a quarter of the TTL if
    /// that is less or no tick is set: no TTL is less than two ticks, so that this is half a tick or more. A tick that is too short breaks safety; one that is too long does no harm.
    pub fn tick(mut self, time: Duration) -> Self {
        self.bounds.tick = Some(time);
        self
    }

    pub(crate) fn check(&self) -> Result<(), Error> {
        check_hosts("ZooKeeper", &self.servers)?;
        check_root(&self.root).map_err(|reason| {
            invalid(format!("the root {:?} is not allowed: {reason}; it is a path such as /acme", self.root))
        })?;
        if self.tls.is_some() && cfg!(not(feature = "tls")) {
            return Err(invalid(
                "TLS is requested, and this program was built without the feature \"tls\"; add it in Cargo.toml",
            ));
        }
        if let Some(Login { user, .. }) = self.login.as_ref().filter(|login| login.user.contains(':')) {
            return Err(invalid(format!(
                "the user {user:?} of ZooKeeper has a colon: the servers would read the text after it as part of the password; \
                 use a name without a colon"
            )));
        }
        let by_sasl = self.login.as_ref().is_some_and(|login| login.scheme == AuthScheme::Sasl);
        if by_sasl && cfg!(not(feature = "sasl")) {
            return Err(invalid(
                "SASL is requested, and this program was built without the feature \"sasl\"; add it in Cargo.toml",
            ));
        }
        if by_sasl
            && self.tls.is_none()
            && let Some(host) = self.servers.iter().find(|server| !is_loopback(server))
        {
            return Err(invalid(format!(
                "SASL's DIGEST-MD5 to {host} needs TLS: an eavesdropper can guess the password; give ca=/path/to/authorities.pem"
            )));
        }
        let given = self.attempt_timeout;
        if given < Duration::from_millis(10) || given > Duration::from_secs(60) {
            let setting = "attempt_timeout";
            return Err(InvalidConfig::Time { setting, given, allowed: "from 10ms to 1m" }.into());
        }
        if let Some(given) = self.bounds.tick.filter(|tick| *tick < Duration::from_millis(1)) {
            return Err(InvalidConfig::Time { setting: "tick", given, allowed: "at least 1ms" }.into());
        }
        if let (Some(min), Some(max)) = (self.bounds.min_ttl, self.bounds.max_ttl)
            && min > max
        {
            let allowed = "at most max_ttl";
            return Err(InvalidConfig::Time { setting: "min_ttl", given: min, allowed }.into());
        }
        Ok(())
    }
}

fn invalid(message: impl Into<String>) -> Error {
    BackendError::new(BackendErrorKind::Invalid, message).into()
}

/// Like ZooKeeper's `PathUtils.validatePath`, a little stricter.
fn check_root(root: &str) -> Result<(), &'static str> {
    if !root.starts_with('/') {
        return Err("it does not begin with a slash");
    }
    for part in root[1..].split('/') {
        match part {
            "" => return Err("it has an empty part; write each slash once"),
            "." | ".." => return Err("it has a part . or .."),
            "zookeeper" if root.starts_with("/zookeeper") => return Err("/zookeeper is ZooKeeper's own"),
            part if part
                .chars()
                .any(|c| c.is_control() || ('\u{e000}'..'\u{f900}').contains(&c) || c >= '\u{fff0}') =>
            {
                return Err("it has a character that ZooKeeper does not allow");
            }
            _ => {}
        }
    }
    Ok(())
}

fn with_port(server: String) -> String {
    let name = server.rsplit_once(']').map_or(server.as_str(), |(_, rest)| rest);
    if name.contains(':') { server } else { format!("{server}:{DEFAULT_PORT}") }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn config(url: &str) -> Result<ZookeeperConfig, Error> {
        ZookeeperConfig::from_url(&url.parse().unwrap())
    }

    #[test]
    fn a_url_sets_everything() {
        let config = config(
            "zookeeper://me:p%40ss@10.0.0.1,[::1],h:1/acme/jobs/?attempt_timeout=3s\
             &layout=curator&min_ttl=4s&max_ttl=40s&tick=500ms",
        )
        .unwrap();
        assert_eq!(config.servers, ["10.0.0.1:2181", "[::1]:2181", "h:1"]);
        assert_eq!((config.root.as_str(), config.layout), ("/acme/jobs", Layout::Curator));
        let Login { user, password, .. } = config.login.as_ref().unwrap();
        assert_eq!((user.as_str(), password.latest().expose()), ("me", "p@ss"));
        assert_eq!(
            config.bounds.accepted(Duration::from_secs(9)),
            (Duration::from_secs(4), Duration::from_secs(40))
        );
        assert_eq!(config.bounds.heartbeat_gap(Duration::from_secs(5)), Duration::from_millis(500));
        assert_eq!(config.bounds.heartbeat_gap(Duration::from_secs(1)), Duration::from_millis(250));
        assert!(!format!("{config:?}").contains("p@ss"));
    }

    #[test]
    fn settings_have_defaults() {
        let config = config("zookeeper://h").unwrap();
        assert_eq!((config.root.as_str(), config.layout), ("/tenure", Layout::Tenure));
        let ten = Duration::from_secs(10);
        assert_eq!(config.bounds.accepted(ten), (ten / 2, ten * 2));
    }

    #[test]
    fn invalid_settings_are_refused_with_a_reason() {
        for (url, reason) in [
            ("zk://h", "its scheme is not zookeeper"),
            ("zookeeper:", "it names no host; give every server"),
            ("zookeeper://me@h", "it has a user but no password; give zookeeper://user:password@host"),
            ("zookeeper://a%3Ab:c@h", "the user \"a:b\" of ZooKeeper has a colon"),
            ("zookeeper://h/a//b", "it has an empty part; write each slash once"),
            (
                "zookeeper://h//a",
                "the root \"//a\" is not allowed: it has an empty part; write each slash once",
            ),
            ("zookeeper://h/a/../b", "it has a part . or .."),
            ("zookeeper://h/zookeeper", "/zookeeper is ZooKeeper's own"),
            ("zookeeper://h?layout=consul", "layout=consul is not one of tenure, curator, kazoo"),
            ("zookeeper://h?tick=0s", "tick 0s is not allowed: it must be at least 1ms"),
            (
                "zookeeper://h?attempt_timeout=0s",
                "attempt_timeout 0s is not allowed: it must be from 10ms to 1m",
            ),
            ("zookeeper://h?min_ttl=5s&max_ttl=4s", "min_ttl 5s is not allowed: it must be at most max_ttl"),
        ] {
            let error = config(url).unwrap_err();
            assert!(matches!(error, Error::InvalidUrl(_) | Error::InvalidConfig(_)), "{error:?}");
            assert!(error.to_string().contains(reason), "{url}: {error}");
        }
        let none = ZookeeperConfig::new([] as [&str; 0]).check().unwrap_err().to_string();
        assert!(none.contains("no host of ZooKeeper is given"), "{none}");
        for server in ["h:2181/acme", "h:99999", "tcp://h:2181", "a:1,b:2", "", "u@h", "h?x"] {
            let error = ZookeeperConfig::new([server]).check().unwrap_err().to_string();
            assert!(error.contains("give a host or host:port"), "{server}: {error}");
        }
    }
}
