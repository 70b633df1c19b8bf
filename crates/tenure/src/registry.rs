//! The URL schemes of stores.

use std::{fmt, sync::Arc};

use tenure_core::{Config, Elector, Error, StoreElector, StoreUrl, spi::Backend};

use crate::connect::apply_url_settings;

/// Opens the backend of one scheme.
type Open = Arc<dyn Fn(&StoreUrl, &Config) -> Result<Arc<dyn Backend>, Error> + Send + Sync>;

/// The URL schemes that [`connect`](Self::connect) knows, each with a function that opens its backend.
///
/// A registry is a plain value. [`tenure::connect`](crate::connect()) uses the [built-in](Self::builtin) schemes; a program that
/// uses a backend of another crate adds that crate's scheme. Nothing registers itself.
///
/// ```
/// # #[cfg(feature = "memory")]
/// # #[tokio::main(flavor = "current_thread")]
/// # async fn main() -> Result<(), Box<dyn std::error::Error>> {
/// use std::sync::Arc;
/// use tenure::{Config, Error, Registry, StoreUrl, memory::MemoryStore, spi::Backend};
///
/// // In the backend's crate.
/// fn open(url: &StoreUrl, _: &Config) -> Result<Arc<dyn Backend>, Error> {
///     if !url.path().is_empty() {
///         return Err(url.invalid("it has a path; give example: and settings only").into());
///     }
///     let members: Option<u8> = url.parsed("members", "a number")?;
/// #   assert_eq!(members, Some(3));
///     Ok(Arc::new(MemoryStore::new().backend()))
/// }
///
/// // In the program.
/// let mut registry = Registry::builtin();
/// registry.register("example", open)?;
/// let elector = registry.connect("example:?members=3&ttl=5s").await?;
/// let leadership = elector.campaign("billing").await?;
/// # leadership.resign().await?;
/// # Ok(()) }
/// # #[cfg(not(feature = "memory"))]
/// # fn main() {}
/// ```
#[derive(Clone)]
pub struct Registry {
    /// The name of the feature for a built-in scheme whose feature is not enabled.
    schemes: Vec<(String, Result<Open, &'static str>)>,
}

/// A scheme cannot be registered.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RegisterError {
    scheme: String,
    reason: &'static str,
}

impl fmt::Display for RegisterError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "scheme {:?} cannot be registered: {}", self.scheme, self.reason)
    }
}

impl std::error::Error for RegisterError {}

impl fmt::Debug for Registry {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_list().entries(self.schemes()).finish()
    }
}

impl Default for Registry {
    /// The [built-in](Self::builtin) schemes.
    fn default() -> Self {
        Self::builtin()
    }
}

/// A built-in scheme; it has the name of its feature, if no other is given.
macro_rules! built_in {
    ($feature:tt, $open:expr) => {
        built_in!($feature, $feature, $open)
    };
    ($scheme:expr, $feature:tt, $open:expr) => {{
        #[cfg(feature = $feature)]
        let open: Result<Open, &'static str> = Ok(Arc::new($open));
        #[cfg(not(feature = $feature))]
        let open: Result<Open, &'static str> = Err($feature);
        ($scheme.to_owned(), open)
    }};
}

impl Registry {
    /// The schemes of this crate's stores: `memory`, `local`, `etcd`, `etcd+srv`, `zookeeper`, `postgres` or
    /// `postgresql`, `consul`, `kubernetes`, `nats`, `s3`, `mysql` or `mariadb`, and `redis` or `valkey`.
    ///
    /// The names are taken even if their features are not enabled, so that enabling a feature breaks no program.
    pub fn builtin() -> Self {
        let schemes = vec![
            built_in!("memory", |url, _| Ok(Arc::new(open_memory(url)?))),
            built_in!("local", |url, _| {
                let config = tenure_local::LocalConfig::from_url(url)?;
                Ok(Arc::new(tenure_local::LocalBackend::from_config(&config)?))
            }),
            built_in!("etcd", |url, _| {
                let config = tenure_etcd::EtcdConfig::from_url(url)?;
                Ok(Arc::new(tenure_etcd::EtcdBackend::new(config)?))
            }),
            built_in!("etcd+srv", "srv", |url, _| {
                let config = tenure_etcd::EtcdConfig::from_url(url)?;
                Ok(Arc::new(tenure_etcd::EtcdBackend::new(config)?))
            }),
            built_in!("zookeeper", |url, _| {
                let config = tenure_zookeeper::ZookeeperConfig::from_url(url)?;
                Ok(Arc::new(tenure_zookeeper::ZookeeperBackend::new(config)?))
            }),
            built_in!("postgres", |url, _| {
                let config = tenure_postgres::PostgresConfig::from_url(url)?;
                Ok(Arc::new(tenure_postgres::backend(config)?))
            }),
            built_in!("postgresql", "postgres", |url, _| {
                let config = tenure_postgres::PostgresConfig::from_url(url)?;
                Ok(Arc::new(tenure_postgres::backend(config)?))
            }),
            built_in!("consul", |url, _| {
                let config = tenure_consul::ConsulConfig::from_url(url)?;
                Ok(Arc::new(tenure_consul::backend(config)?))
            }),
            built_in!("kubernetes", |url, _| {
                let config = tenure_kubernetes::KubernetesConfig::from_url(url)?;
                Ok(Arc::new(tenure_kubernetes::KubernetesBackend::new(config)?))
            }),
            built_in!("nats", |url, _| {
                let config = tenure_nats::NatsConfig::from_url(url)?;
                Ok(Arc::new(tenure_nats::backend(config)?))
            }),
            built_in!("s3", |url, _| {
                let config = tenure_s3::S3Config::from_url(url)?;
                Ok(Arc::new(tenure_s3::backend(config)?))
            }),
            built_in!("mysql", |url, _| {
                let config = tenure_mysql::MysqlConfig::from_url(url)?;
                Ok(Arc::new(tenure_mysql::backend(config)?))
            }),
            built_in!("mariadb", "mysql", |url, _| {
                let config = tenure_mysql::MysqlConfig::from_url(url)?;
                Ok(Arc::new(tenure_mysql::backend(config)?))
            }),
            built_in!("redis", |url, _| {
                let config = tenure_redis::RedisConfig::from_url(url)?;
                Ok(Arc::new(tenure_redis::backend(config)?))
            }),
            built_in!("valkey", "redis", |url, _| {
                let config = tenure_redis::RedisConfig::from_url(url)?;
                Ok(Arc::new(tenure_redis::backend(config)?))
            }),
        ];
        Self { schemes }
    }

    /// A registry without any scheme.
    pub fn empty() -> Self {
        Self { schemes: Vec::new() }
    }

    /// Adds the scheme `scheme`, whose backends `open` opens.
    ///
    /// `open` gets the parsed URL, and the config with the settings that every store has. It reads settings of its own with
    /// [`StoreUrl::text`], [`parsed`](StoreUrl::parsed) and [`duration`](StoreUrl::duration); a setting that nothing has read is
    /// refused. It must not block for long or send requests: connections are opened by
    /// [`open_session`](Backend::open_session) and the other calls, on the engine's thread.
    ///
    /// # Errors
    /// If the scheme is registered already, or is not of `[a-z0-9+-]`.
    pub fn register(
        &mut self,
        scheme: &str,
        open: impl Fn(&StoreUrl, &Config) -> Result<Arc<dyn Backend>, Error> + Send + Sync + 'static,
    ) -> Result<(), RegisterError> {
        let refused = |reason| Err(RegisterError { scheme: scheme.to_owned(), reason });
        let is_legal =
            |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit() || matches!(byte, b'+' | b'-');
        if scheme.is_empty() || !scheme.bytes().all(is_legal) {
            return refused("it must be of [a-z0-9+-], and not empty");
        }
        if self.schemes().any(|known| known == scheme) {
            return refused("it is registered already; choose another name");
        }
        self.schemes.push((scheme.to_owned(), Ok(Arc::new(open))));
        Ok(())
    }

    /// The names of the schemes, in the order of their registration.
    pub fn schemes(&self) -> impl Iterator<Item = &str> {
        self.schemes.iter().map(|(name, _)| name.as_str())
    }

    /// Creates an elector for the store and the settings in `url`, as [`tenure::connect`](crate::connect()) does.
    ///
    /// # Errors
    /// See [`tenure::connect`](crate::connect()).
    pub async fn connect(&self, url: &str) -> Result<Arc<dyn Elector>, Error> {
        self.connect_with(url, Config::new()).await
    }

    /// Like [`connect`](Self::connect), with `config` for the settings that the URL does not contain.
    ///
    /// # Errors
    /// See [`tenure::connect`](crate::connect()).
    pub async fn connect_with(&self, url: &str, config: Config) -> Result<Arc<dyn Elector>, Error> {
        let url: StoreUrl = url.parse()?;
        let config = apply_url_settings(&url, with_identity_of_pod(&url, config))?;
        let backend = self.open_backend(&url, &config)?;
        url.deny_unknown()?;
        Ok(Arc::new(StoreElector::new(backend, config)?))
    }

    /// Opens the backend of the URL's scheme.
    fn open_backend(&self, url: &StoreUrl, config: &Config) -> Result<Arc<dyn Backend>, Error> {
        let scheme = url.scheme();
        // Schemes of other clients, which the store accepts or refuses with the reason.
        let of_store = match scheme {
            "rediss" | "valkeys" | "redis-sentinel" | "redis+sentinel" | "rediss+sentinel"
            | "redis-cluster" | "redis+cluster" | "rediss+cluster" => "redis",
            other => other,
        };
        let find = |scheme| self.schemes.iter().find(|(name, _)| name == scheme);
        match find(scheme).or_else(|| find(of_store)) {
            Some((_, Ok(open))) => open(url, config),
            Some((_, Err(feature))) => {
                let reason = format!(
                    "this program was built without tenure's feature {feature:?}; enable it in Cargo.toml"
                );
                Err(url.invalid(reason).into())
            }
            None if is_port(url.path()) => {
                let reason =
                    "it begins with a host and has no scheme; a store URL looks like etcd://host:2379/prefix";
                Err(url.invalid(reason).into())
            }
            None => Err(url.invalid(format!("there is no store {scheme:?}; {}", self.advice(scheme))).into()),
        }
    }

    /// Advice for an error: the scheme that was probably meant, and all that there are.
    fn advice(&self, scheme: &str) -> String {
        match self.similar_to(scheme) {
            Some(meant) => format!("did you mean {meant}:? {}", self.schemes_to_use()),
            None => self.schemes_to_use(),
        }
    }

    /// The registered scheme that was probably meant by `scheme`.
    fn similar_to(&self, scheme: &str) -> Option<&str> {
        let full = match scheme {
            "zk" => "zookeeper",
            "etcds" | "etcd3" | "http" | "https" => "etcd",
            "file" => "local",
            "mem" => "memory",
            "pg" | "pgsql" | "psql" => "postgres",
            "s3a" | "s3n" | "aws" | "minio" => "s3",
            "maria" => "mariadb",
            "keydb" | "dragonfly" => "redis",
            "k8s" | "kube" | "kubectl" | "lease" | "leases" => "kubernetes",
            other => other,
        };
        let nearest = self.schemes().map(|known| (typing_errors(full, known), known)).min()?;
        (nearest.0 <= full.len() / 3).then_some(nearest.1)
    }

    /// Advice for an error: `use memory:, local: or etcd:`.
    fn schemes_to_use(&self) -> String {
        let names: Vec<_> = self.schemes().map(|name| format!("{name}:")).collect();
        match names.split_last() {
            None => "no scheme is registered".to_owned(),
            Some((last, [])) => format!("use {last}"),
            Some((last, others)) => format!("use {} or {last}", others.join(", ")),
        }
    }
}

/// On Kubernetes the default id of a candidate is that of its pod, which `kubectl get lease` shows.
fn with_identity_of_pod(url: &StoreUrl, config: Config) -> Config {
    #[cfg(feature = "kubernetes")]
    if url.scheme() == "kubernetes"
        && let Some(id) = tenure_kubernetes::pod_identity()
    {
        return config.with_default_id(id);
    }
    let _ = url;
    config
}

/// Whether the path of a URL is a port, as in `localhost:2379/prefix`.
fn is_port(path: &str) -> bool {
    path.split(['/', ',']).next().is_some_and(|port| port.parse::<u16>().is_ok())
}

/// How many characters have to be inserted, removed, replaced or swapped with the next one to turn `a` into `b` (the
/// optimal string alignment distance).
fn typing_errors(a: &str, b: &str) -> usize {
    let (a, b) = (a.as_bytes(), b.as_bytes());
    let mut rows = vec![(0..=b.len()).collect::<Vec<_>>()];
    for i in 1..=a.len() {
        let mut row = vec![i];
        for j in 1..=b.len() {
            let replaced = rows[i - 1][j - 1] + usize::from(a[i - 1] != b[j - 1]);
            let mut least = replaced.min(rows[i - 1][j] + 1).min(row[j - 1] + 1);
            if i > 1 && j > 1 && a[i - 1] == b[j - 2] && a[i - 2] == b[j - 1] {
                least = least.min(rows[i - 2][j - 2] + 1);
            }
            row.push(least);
        }
        rows.push(row);
    }
    rows[a.len()][b.len()]
}

/// Opens the in-memory store with the name in the URL. Two electors on `memory:a` share their elections.
#[cfg(feature = "memory")]
fn open_memory(url: &StoreUrl) -> Result<tenure_core::memory::MemoryBackend, Error> {
    use std::{
        collections::HashMap,
        sync::{Mutex, PoisonError},
    };

    use tenure_core::memory::MemoryStore;

    static STORES: Mutex<Option<HashMap<String, MemoryStore>>> = Mutex::new(None);

    if !url.hosts().is_empty() {
        return Err(url.invalid("a memory store has no host; use memory: or memory:NAME").into());
    }
    let mut stores = STORES.lock().unwrap_or_else(PoisonError::into_inner);
    let store = stores.get_or_insert_default().entry(url.path().to_owned()).or_default();
    Ok(store.backend())
}

#[cfg(test)]
mod tests {
    use tenure_core::memory::MemoryStore;

    use super::*;

    fn open(url: &StoreUrl, _: &Config) -> Result<Arc<dyn Backend>, Error> {
        url.text("colour");
        Ok(Arc::new(MemoryStore::new().backend()))
    }

    async fn refusal(registry: &Registry, url: &str) -> String {
        registry.connect(url).await.unwrap_err().to_string()
    }

    #[tokio::test]
    async fn a_registered_scheme_opens_its_backend_and_reads_its_settings() {
        let mut registry = Registry::empty();
        assert!(refusal(&registry, "tiny:").await.contains("no scheme is registered"));
        registry.register("tiny", open).unwrap();
        registry.connect("tiny:?colour=red&ttl=5s").await.unwrap();
        let unknown = refusal(&registry, "tiny:?color=red").await;
        assert!(
            unknown.contains("unknown setting color; allowed are ") && unknown.contains(", colour, "),
            "{unknown}"
        );
        let unknown = refusal(&registry, "tidy:").await;
        assert!(unknown.ends_with("there is no store \"tidy\"; did you mean tiny:? use tiny:"), "{unknown}");
        assert!(refusal(&registry, "tiny:?ttl=1ms").await.contains("it must be from 1s"));
    }

    #[tokio::test]
    async fn a_scheme_that_was_probably_meant_is_named() {
        let registry = Registry::builtin();
        for (url, meant) in [
            ("ectd://h", "etcd"),
            ("etc://h", "etcd"),
            ("zk://h", "zookeeper"),
            ("zookeper://h", "zookeeper"),
            ("https://h:2379", "etcd"),
            ("file:/var/lib/x", "local"),
            ("postgre://h", "postgres"),
            ("pg://h", "postgres"),
            ("k8s:///billing", "kubernetes"),
            ("kube:///billing", "kubernetes"),
            ("lease:billing", "kubernetes"),
            ("kubernets:///billing", "kubernetes"),
            ("s3a://bucket", "s3"),
            ("minio://bucket", "s3"),
            ("mysq://h", "mysql"),
            ("maria://h", "mariadb"),
        ] {
            let error = refusal(&registry, url).await;
            assert!(error.contains(&format!("; did you mean {meant}:? use memory:, local:")), "{error}");
        }
        for url in ["nats://h", "x:", "raft://h"] {
            assert!(!refusal(&registry, url).await.contains("did you mean"), "{url}");
        }
        for url in ["localhost:2379", "localhost:2379/acme", "a:2379,b:2379"] {
            let error = refusal(&registry, url).await;
            assert!(
                error.contains("it begins with a host and has no scheme; a store URL looks like"),
                "{error}"
            );
        }
    }

    #[test]
    fn typing_errors_are_counted() {
        for (a, b, errors) in [("etcd", "etcd", 0), ("ectd", "etcd", 1), ("etc", "etcd", 1), ("", "ab", 2)] {
            assert_eq!((typing_errors(a, b), typing_errors(b, a)), (errors, errors), "{a} {b}");
        }
    }

    #[test]
    fn a_scheme_is_registered_once_and_has_a_legal_name() {
        let mut registry = Registry::builtin();
        // Also without the feature of the store.
        for taken in [
            "memory",
            "local",
            "etcd",
            "etcd+srv",
            "zookeeper",
            "postgres",
            "postgresql",
            "consul",
            "kubernetes",
            "nats",
            "s3",
            "mysql",
            "mariadb",
            "redis",
            "valkey",
        ] {
            let error = registry.register(taken, open).unwrap_err().to_string();
            assert!(error.contains("it is registered already; choose another name"), "{error}");
        }
        registry.register("tiny-2", open).unwrap();
        assert!(registry.register("tiny-2", open).is_err());
        for illegal in ["", "Tiny", "tiny:", "ti_ny"] {
            let error = registry.register(illegal, open).unwrap_err().to_string();
            assert!(error.contains("must be of [a-z0-9+-]"), "{error}");
        }
        let known: Vec<_> = registry.schemes().take(16).collect();
        assert_eq!(
            known,
            [
                "memory",
                "local",
                "etcd",
                "etcd+srv",
                "zookeeper",
                "postgres",
                "postgresql",
                "consul",
                "kubernetes",
                "nats",
                "s3",
                "mysql",
                "mariadb",
                "redis",
                "valkey",
                "tiny-2"
            ]
        );
    }

    #[cfg(feature = "redis")]
    #[tokio::test]
    async fn sentinel_and_cluster_are_refused_with_the_reason() {
        for scheme in ["redis+sentinel", "redis-sentinel", "redis-cluster", "rediss+cluster"] {
            let error = refusal(&Registry::builtin(), &format!("{scheme}://a:26379,b:26379/mymaster")).await;
            assert!(error.contains("a failover to a replica loses safety"), "{error}");
        }
    }

    #[cfg(not(feature = "srv"))]
    #[tokio::test]
    async fn discovery_names_its_feature() {
        let error = refusal(&Registry::builtin(), "etcd+srv://acme.example").await;
        assert!(error.contains("built without tenure's feature \"srv\""), "{error}");
    }

    #[cfg(not(feature = "etcd"))]
    #[tokio::test]
    async fn a_store_without_its_feature_says_so() {
        let error = refusal(&Registry::builtin(), "etcd://h").await;
        assert!(error.contains("built without tenure's feature \"etcd\""), "{error}");
    }
}
