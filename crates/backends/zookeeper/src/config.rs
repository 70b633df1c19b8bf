//! Which ZooKeeper, where in it, and within which bounds.

use std::{fmt, time::Duration};

use tenure_core::{
    Error, InvalidConfig, Password, StoreUrl, Tls,
    spi::{BackendError, BackendErrorKind, check_hosts, is_loopback},
};

use crate::layout::Layout;

const DEFAULT_PORT: u16 = 2181;
const DEFAULT_ROOT: &str = "/tenure";

/// How to reach a ZooKeeper ensemble, and where in it elections lie.
///
/// Its `Debug` shows no password.
#[derive(Clone)]
pub struct ZookeeperConfig {
    pub(crate) servers: Vec<String>,
    pub(crate) root: String,
    pub(crate) layout: Layout,
    pub(crate) login: Option<Login>,
    pub(crate) tls: Option<Tls>,
    pub(crate) creator_only: Option<bool>,
    pub(crate) min_ttl: Option<Duration>,
    pub(crate) max_ttl: Option<Duration>,
    pub(crate) attempt_timeout: Duration,
    pub(crate) tick: Option<Duration>,
}

/// Who we are, and how that is proved.
#[derive(Clone, Debug)]
pub(crate) struct Login {
    pub(crate) user: String,
    pub(crate) password: Password,
    pub(crate) by: Proven,
}

/// How a user proves who it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Proven {
    /// ZooKeeper's own scheme: a name and a password that the servers do not know, but hash.
    Digest,
    /// SASL's DIGEST-MD5: the servers know the user, and the password does not travel.
    Sasl,
}

impl ZookeeperConfig {
    /// The servers at `servers`, each `host` or `host:port`, with the root `/tenure`.
    ///
    /// Give every server: when one does not answer, the session moves to another.
    pub fn new<S: Into<String>>(servers: impl IntoIterator<Item = S>) -> Self {
        Self {
            servers: servers.into_iter().map(|server| with_port(server.into())).collect(),
            root: DEFAULT_ROOT.to_owned(),
            layout: Layout::default(),
            login: None,
            tls: None,
            creator_only: None,
            min_ttl: None,
            max_ttl: None,
            attempt_timeout: Duration::from_secs(2),
            tick: None,
        }
    }

    /// Reads a URL such as `zookeeper://10.0.0.1:2181,10.0.0.2/acme?layout=curator`.
    ///
    /// - Hosts have port 2181 unless they name one; at least one is needed.
    /// - The path is the root below which elections lie; without one it is `/tenure`.
    /// - Settings taken: `layout` (`tenure`, `curator` or `kazoo`), `min_ttl` and `max_ttl` (the bounds
    ///   within which the servers may change the TTL; half and twice what is asked for),
    ///   `attempt_timeout` (default 2 s), `tick` (the servers' `tickTime`), `password_file` or `password_env`, `auth` (`digest`, or `sasl` for DIGEST-MD5), `acl` (`creator` or
    ///   `open`: who may change what is created; its creator alone where there is a login), and for TLS `ca`,
    ///   `cert` and `key`, each a PEM file.
    ///
    /// # Errors
    /// [`Error::InvalidUrl`] and [`Error::InvalidConfig`], saying what is wrong and
    /// what is allowed, and never the password.
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
        if let Some(layout) = url.text("layout") {
            let layout = layout.parse().map_err(|reason| url.invalid(format!("layout={layout} {reason}")))?;
            config = config.layout(layout);
        }
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
        config.min_ttl = url.duration("min_ttl")?;
        config.max_ttl = url.duration("max_ttl")?;
        if let Some(given) = url.duration("attempt_timeout")? {
            config = config.attempt_timeout(given);
        }
        config.tick = url.duration("tick")?;
        config.check()?;
        Ok(config)
    }

    /// Puts elections below the znode `root`; slashes at its end do not count. It is made when missing.
    pub fn root(mut self, root: impl AsRef<str>) -> Self {
        self.root = root.as_ref().trim_end_matches('/').to_owned();
        self
    }

    /// Names entries as another library does, to stand in one election with its candidates.
    pub fn layout(mut self, layout: Layout) -> Self {
        self.layout = layout;
        self
    }

    /// Authenticates as `user` (ZooKeeper's `digest` scheme), whose name has no colon; only this user can then change
    /// what is created.
    ///
    /// Whatever the password, ZooKeeper takes it: a wrong one is another user, who may not enter where the right one has been.
    ///
    /// A password in a [file](Password::from_file) may rotate: sessions then prove that they are both users, that of the
    /// password now and that of the one before, until the process starts again.
    pub fn login(mut self, user: impl Into<String>, password: impl Into<Password>) -> Self {
        self.login = Some(Login { user: user.into(), password: password.into(), by: Proven::Digest });
        self
    }

    /// Authenticates as `user` by SASL's DIGEST-MD5, as users in the servers' JAAS configuration do; only this
    /// user can then change what is created. Needs the feature `sasl`.
    ///
    /// MD5 keeps the password from nobody who tries many, and the client library trusts what it is challenged with: to another
    /// machine it needs [TLS](Self::tls).
    pub fn login_by_sasl(mut self, user: impl Into<String>, password: impl Into<Password>) -> Self {
        self.login = Some(Login { user: user.into(), password: password.into(), by: Proven::Sasl });
        self
    }

    /// Says whether what is created belongs to its creator alone, or to everybody: without it, to its creator when there
    /// is a login.
    ///
    /// Set it where the servers know us by our certificate. To a store that knows us by nothing, a creator-only znode is
    /// an error.
    pub fn creator_only(mut self, creator_only: bool) -> Self {
        self.creator_only = Some(creator_only);
        self
    }

    /// Speaks TLS with every server. Needs the feature `tls`.
    pub fn tls(mut self, tls: Tls) -> Self {
        self.tls = Some(tls);
        self
    }

    /// Refuses a session whose timeout the servers have set to less than `min` or more than `max`;
    /// otherwise to less than half or more than twice the TTL asked for.
    pub fn granted_ttl(mut self, min: Duration, max: Duration) -> Self {
        self.min_ttl = Some(min);
        self.max_ttl = Some(max);
        self
    }

    /// Gives up connecting to a server, or waiting for its answer, after `time`, and takes the session
    /// to another.
    pub fn attempt_timeout(mut self, time: Duration) -> Self {
        self.attempt_timeout = time;
        self
    }

    /// Says how long the servers' `tickTime` is, which they tell nobody: a heartbeat is then confirmed sooner, and
    /// a longer outage ridden out, where the TTL is eight ticks or more.
    ///
    /// Without it, a heartbeat is confirmed by one that follows a quarter of the TTL later: no TTL is less than
    /// two ticks. A tick that is given too short breaks safety; one that is too long does no harm.
    pub fn tick(mut self, time: Duration) -> Self {
        self.tick = Some(time);
        self
    }

    /// What has to lie between a heartbeat's answer and the heartbeat that confirms it: in half a tick a follower has
    /// told the leader of the session's signs of life. A tick leaves room for a leader that is late with its
    /// ping; a quarter of the TTL is at least half a tick.
    pub(crate) fn gap(&self, granted: Duration) -> Duration {
        self.tick.map_or(granted / 4, |tick| tick.min(granted / 4))
    }

    /// The bounds within which a granted timeout is accepted when `asked` was asked for.
    pub(crate) fn accepted(&self, asked: Duration) -> (Duration, Duration) {
        (self.min_ttl.unwrap_or(asked / 2), self.max_ttl.unwrap_or(asked * 2))
    }

    pub(crate) fn check(&self) -> Result<(), Error> {
        check_hosts("ZooKeeper", &self.servers)?;
        check_root(&self.root).map_err(|reason| {
            invalid(format!("the root {:?} is not allowed: {reason}; it is a path such as /acme", self.root))
        })?;
        if self.tls.is_some() && cfg!(not(feature = "tls")) {
            return Err(invalid(
                "TLS is asked for, and this program was built without the feature \"tls\"; add it in Cargo.toml",
            ));
        }
        if let Some(Login { user, .. }) = self.login.as_ref().filter(|login| login.user.contains(':')) {
            return Err(invalid(format!(
                "the user {user:?} of ZooKeeper has a colon: the servers take what stands behind it for the password's beginning; \
                 allowed are names without one"
            )));
        }
        if self.login.as_ref().is_some_and(|login| login.by == Proven::Sasl) && cfg!(not(feature = "sasl")) {
            return Err(invalid(
                "SASL is asked for, and this program was built without the feature \"sasl\"; add it in Cargo.toml",
            ));
        }
        if self.login.as_ref().is_some_and(|login| login.by == Proven::Sasl)
            && self.tls.is_none()
            && let Some(host) = self.servers.iter().find(|server| !is_loopback(server))
        {
            return Err(invalid(format!(
                "SASL's DIGEST-MD5 to {host} needs TLS, for who listens can guess the password; give ca=/path/to/authorities.pem"
            )));
        }
        let given = self.attempt_timeout;
        if given < Duration::from_millis(10) || given > Duration::from_secs(60) {
            let setting = "attempt_timeout";
            return Err(InvalidConfig::Time { setting, given, allowed: "from 10ms to 1m" }.into());
        }
        if let Some(given) = self.tick.filter(|tick| *tick < Duration::from_millis(1)) {
            return Err(InvalidConfig::Time { setting: "tick", given, allowed: "at least 1ms" }.into());
        }
        if let (Some(min), Some(max)) = (self.min_ttl, self.max_ttl)
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

/// As ZooKeeper's `PathUtils.validatePath` has it, a little stricter.
fn check_root(root: &str) -> Result<(), &'static str> {
    if !root.starts_with('/') {
        return Err("it does not begin with a slash");
    }
    for part in root[1..].split('/') {
        match part {
            "" => return Err("it has an empty part"),
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

impl fmt::Debug for ZookeeperConfig {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ZookeeperConfig")
            .field("servers", &self.servers)
            .field("root", &self.root)
            .field("layout", &self.layout)
            .field("user", &self.login.as_ref().map(|login| &login.user))
            .field("tls", &self.tls)
            .field("min_ttl", &self.min_ttl)
            .field("max_ttl", &self.max_ttl)
            .field("attempt_timeout", &self.attempt_timeout)
            .field("tick", &self.tick)
            .finish()
    }
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
    fn a_url_says_it_all() {
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
            config.accepted(Duration::from_secs(9)),
            (Duration::from_secs(4), Duration::from_secs(40))
        );
        assert_eq!(config.gap(Duration::from_secs(5)), Duration::from_millis(500));
        assert_eq!(config.gap(Duration::from_secs(1)), Duration::from_millis(250));
        assert!(!format!("{config:?}").contains("p@ss"));
    }

    #[test]
    fn what_is_not_given_has_a_default() {
        let config = config("zookeeper://h").unwrap();
        assert_eq!((config.root.as_str(), config.layout), ("/tenure", Layout::Tenure));
        let ten = Duration::from_secs(10);
        assert_eq!(config.accepted(ten), (ten / 2, ten * 2));
    }

    #[test]
    fn what_is_wrong_is_said() {
        for (url, reason) in [
            ("zk://h", "its scheme is not zookeeper"),
            ("zookeeper:", "it names no host; give every server"),
            ("zookeeper://me@h", "it has a user but no password; give zookeeper://user:password@host"),
            ("zookeeper://a%3Ab:c@h", "the user \"a:b\" of ZooKeeper has a colon"),
            ("zookeeper://h/a//b", "it has an empty part"),
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
            let error = config(url).unwrap_err().to_string();
            assert!(error.contains(reason), "{url}: {error}");
        }
        let none = ZookeeperConfig::new([] as [&str; 0]).check().unwrap_err().to_string();
        assert!(none.contains("no host of ZooKeeper is given"), "{none}");
        for server in ["h:2181/acme", "h:99999", "tcp://h:2181", "a:1,b:2", "", "u@h", "h?x"] {
            let error = ZookeeperConfig::new([server]).check().unwrap_err().to_string();
            assert!(error.contains("give a host or host:port"), "{server}: {error}");
        }
    }
}
