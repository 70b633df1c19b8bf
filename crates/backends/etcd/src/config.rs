//! The configuration of the etcd backend.

#[cfg(feature = "srv")]
use std::net::SocketAddr;
use std::time::Duration;

use tenure_core::{
    Error, InvalidConfig, Password, StoreUrl, Tls,
    internal::{check_hosts, check_tls},
};

const DEFAULT_PORT: u16 = 2379;
const DEFAULT_PREFIX: &str = "/tenure";

/// How to connect to an etcd cluster, and below which key prefix its elections are stored.
///
/// Its `Debug` shows no password.
#[derive(Clone, Debug)]
pub struct EtcdConfig {
    pub(crate) endpoints: Vec<String>,
    /// The domain whose SRV records name the members, in place of `endpoints`.
    #[cfg(feature = "srv")]
    pub(crate) domain: Option<String>,
    #[cfg(feature = "srv")]
    pub(crate) name_server: Option<SocketAddr>,
    pub(crate) prefix: String,
    pub(crate) login: Option<(String, Password)>,
    pub(crate) tls: Option<Tls>,
    pub(crate) connect_timeout: Duration,
    pub(crate) attempt_timeout: Duration,
    pub(crate) hedge: Duration,
    /// How often the member list is read; `None` for never.
    pub(crate) member_list: Option<Duration>,
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
            #[cfg(feature = "srv")]
            domain: None,
            #[cfg(feature = "srv")]
            name_server: None,
            prefix: DEFAULT_PREFIX.to_owned(),
            login: None,
            tls: None,
            connect_timeout: Duration::from_secs(1),
            attempt_timeout: Duration::from_secs(2),
            hedge: Duration::from_millis(300),
            member_list: Some(Duration::from_secs(60)),
            #[cfg(feature = "simulation")]
            network: None,
        }
    }

    /// A cluster whose members are named by the DNS SRV records of `domain`, and the prefix `/tenure`. Needs the feature `srv`.
    ///
    /// The records are those of `_etcd-client._tcp.DOMAIN`, or with TLS of `_etcd-client-ssl._tcp.DOMAIN`. They are looked up
    /// with the first request, as often as the [member list](Self::member_list) is read (every 60 s if it is not), and within
    /// 5 s after a member did not answer. While no lookup succeeds, the members that were found last are used.
    #[cfg(feature = "srv")]
    pub fn discover(domain: impl Into<String>) -> Self {
        Self { domain: Some(domain.into()), ..Self::new([] as [&str; 0]) }
    }

    /// Sets the name server for [`discover`](Self::discover), in place of those in `/etc/resolv.conf`. Needs the feature `srv`.
    #[cfg(feature = "srv")]
    pub fn name_server(mut self, address: SocketAddr) -> Self {
        self.name_server = Some(address);
        self
    }

    /// Reads a URL such as `etcd://user:password@10.0.0.1:2379,10.0.0.2/prefix?hedge=200ms`.
    ///
    /// - Hosts have port 2379 unless they name one; at least one host is required. With the scheme `etcd+srv` (feature `srv`)
    ///   the host is a domain whose DNS SRV records name the members.
    /// - The path is the prefix; without one it is `/tenure`.
    /// - Settings: `connect_timeout` (default 1 s), `attempt_timeout` (default 2 s), `hedge` (default 300 ms),
    ///   `member_list` (how often the [member list](Self::member_list) is read, or `off`; default 1 min),
    ///   `password_file` ([read again](Password::from_file) when it rotates) or `password_env` (a variable's name),
    ///   and for TLS `ca`, `cert` and `key`, each a PEM file. With `etcd+srv` also `name_server`, the address and port of a
    ///   name server in place of those in `/etc/resolv.conf`.
    ///
    /// # Errors
    /// [`Error::InvalidUrl`] and [`Error::InvalidConfig`], with what is wrong and what is allowed. They never contain
    /// the password.
    pub fn from_url(url: &StoreUrl) -> Result<Self, Error> {
        let mut config = match url.scheme() {
            "etcd" if url.hosts().is_empty() => {
                return Err(url
                    .invalid("it names no host; give every member: etcd://host1:2379,host2:2379/prefix")
                    .into());
            }
            "etcd" => Self::new(url.hosts().iter().cloned()),
            "etcd+srv" => Self::discover_by_url(url)?,
            _ => return Err(url.invalid("its scheme is not etcd or etcd+srv").into()),
        };
        if !url.path().trim_end_matches('/').is_empty() {
            config = config.prefix(url.path());
        }
        config.login = url.login()?;
        config.tls = Tls::from_url(url)?;
        config.connect_timeout = url.duration("connect_timeout")?.unwrap_or(config.connect_timeout);
        config.attempt_timeout = url.duration("attempt_timeout")?.unwrap_or(config.attempt_timeout);
        config.hedge = url.duration("hedge")?.unwrap_or(config.hedge);
        config.member_list = match url.text("member_list") {
            Some("off") => None,
            _ => url.duration("member_list")?.or(config.member_list),
        };
        config.check().map_err(|error| match error {
            Error::Refused(reason) => url.invalid(reason.to_string()).into(),
            other => other,
        })?;
        Ok(config)
    }

    #[cfg(feature = "srv")]
    fn discover_by_url(url: &StoreUrl) -> Result<Self, Error> {
        let [domain] = url.hosts() else {
            return Err(url.invalid("it does not name one domain; give etcd+srv://domain/prefix").into());
        };
        if domain.contains([':', '[']) {
            return Err(url.invalid("its domain has a port, which the SRV records give; remove it").into());
        }
        let mut config = Self::discover(domain);
        config.name_server = url.parsed("name_server", "an address and a port, such as 127.0.0.1:8600")?;
        Ok(config)
    }

    #[cfg(not(feature = "srv"))]
    fn discover_by_url(url: &StoreUrl) -> Result<Self, Error> {
        let reason = "this program was built without the feature \"srv\", which looks up SRV records; add it in Cargo.toml";
        Err(url.invalid(reason).into())
    }

    /// The hosts that the configuration names: the members, or the domain that does.
    pub(crate) fn hosts(&self) -> &[String] {
        #[cfg(feature = "srv")]
        if let Some(domain) = &self.domain {
            return std::slice::from_ref(domain);
        }
        &self.endpoints
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

    /// Sets how often the cluster's member list is read; every 60 s by default, and within 5 s after a member did not
    /// answer. `None` for never.
    ///
    /// So members can be replaced one after another while clients run. Calls go also to members of the list that no
    /// configured endpoint reaches, at the addresses that they advertise (`--advertise-client-urls`), once such an address has
    /// answered as that member of this cluster. The configured endpoints stay. Loopback addresses are not used, and with
    /// TLS only `https://` ones. Turn it off if the clients should not connect to advertised addresses, for example to
    /// those behind a proxy.
    pub fn member_list(mut self, interval: impl Into<Option<Duration>>) -> Self {
        self.member_list = interval.into();
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
        check_hosts("etcd", self.hosts())?;
        check_tls(self.tls.as_ref(), cfg!(feature = "tls"))?;
        let member_list = self.member_list.unwrap_or(Duration::from_secs(60));
        for (setting, given, min_ms, max_ms, allowed) in [
            ("connect_timeout", self.connect_timeout, 1, 60_000, "from 1ms to 1m"),
            ("attempt_timeout", self.attempt_timeout, 10, 60_000, "from 10ms to 1m"),
            ("hedge", self.hedge, 10, 60_000, "from 10ms to 1m"),
            ("member_list", member_list, 1_000, 86_400_000, "from 1s to 1day, or off"),
        ] {
            if given < Duration::from_millis(min_ms) || given > Duration::from_millis(max_ms) {
                return Err(InvalidConfig::Time { setting, given, allowed }.into());
            }
        }
        Ok(())
    }
}

/// `endpoint` with etcd's port, unless it names one.
pub(crate) fn with_port(endpoint: String) -> String {
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
            "etcd://me:p%40ss@10.0.0.1,[::1],h:1/acme/?connect_timeout=2s&attempt_timeout=3s&hedge=100ms&member_list=2m",
        )
        .unwrap();
        assert_eq!(config.endpoints, ["10.0.0.1:2379", "[::1]:2379", "h:1"]);
        assert_eq!(config.prefix, "/acme");
        let (user, password) = config.login.as_ref().unwrap();
        assert_eq!((user.as_str(), password.latest().expose()), ("me", "p@ss"));
        assert_eq!(config.connect_timeout, Duration::from_secs(2));
        assert_eq!(config.attempt_timeout, Duration::from_secs(3));
        assert_eq!(config.hedge, Duration::from_millis(100));
        assert_eq!(config.member_list, Some(Duration::from_secs(120)));
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
    fn the_member_list_can_be_turned_off() {
        assert_eq!(config("etcd://h?member_list=off").unwrap().member_list, None);
        assert_eq!(config("etcd://h").unwrap().member_list, Some(Duration::from_secs(60)));
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
            (
                "etcd://h?member_list=10ms",
                "member_list 10ms is not allowed: it must be from 1s to 1day, or off",
            ),
            ("etcd://h?member_list=no", "member_list=no is not a time"),
        ] {
            let error = config(url).unwrap_err().to_string();
            assert!(error.contains(reason), "{url}: {error}");
        }
        let none = EtcdConfig::new([] as [&str; 0]).check().unwrap_err().to_string();
        assert!(none.contains("no host of etcd is given"), "{none}");
    }

    #[cfg(feature = "srv")]
    #[test]
    fn members_can_be_discovered() {
        let found = config("etcd+srv://acme.example/jobs?name_server=127.0.0.1:8600").unwrap();
        assert_eq!((found.domain.as_deref(), found.prefix.as_str()), (Some("acme.example"), "/jobs"));
        assert_eq!(found.name_server, Some("127.0.0.1:8600".parse().unwrap()));
        for (url, reason) in [
            ("etcd+srv:", "it does not name one domain; give etcd+srv://domain/prefix"),
            ("etcd+srv://a,b", "it does not name one domain"),
            ("etcd+srv://a:2379", "its domain has a port"),
            ("etcd+srv://a?name_server=dns", "name_server=dns is not an address and a port"),
        ] {
            let error = config(url).unwrap_err().to_string();
            assert!(error.contains(reason), "{url}: {error}");
        }
    }

    #[cfg(not(feature = "srv"))]
    #[test]
    fn discovery_needs_its_feature() {
        let error = config("etcd+srv://acme.example").unwrap_err().to_string();
        assert!(error.contains("built without the feature \"srv\""), "{error}");
    }

    #[test]
    fn the_url_knows_the_settings() {
        let url: StoreUrl = "etcd://h?ttl=1s".parse().unwrap();
        EtcdConfig::from_url(&url).unwrap();
        let error = url.deny_unknown().unwrap_err().to_string();
        assert!(
            error.contains(
                "attempt_timeout, ca, cert, connect_timeout, hedge, key, member_list, password_env, password_file"
            ),
            "{error}"
        );
    }
}
