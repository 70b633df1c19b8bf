//! The servers of an ensemble, their addresses, and the order in which they are tried.

use std::{
    collections::HashMap,
    fmt, io,
    net::SocketAddr,
    sync::{Arc, Mutex},
    time::{Duration, Instant},
};

use futures::future::{BoxFuture, FutureExt as _, Shared, join_all};
use tenure_core::failpoints::{SafetyRule, is_disabled};
use tokio::{net::lookup_host, time::timeout};
use tracing::debug;

use super::{lock, single_flight::SingleFlight};

/// For how long an address that failed is tried after the others.
const FAILURE_COOLDOWN: Duration = Duration::from_secs(10);
/// How long to wait for the first lookup of a name. Later ones are not waited for.
const FIRST_LOOKUP_TIMEOUT: Duration = Duration::from_millis(500);

/// One address of a server.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(crate) struct Target {
    /// The server, as the configuration names it.
    pub(crate) server: String,
    /// Where to connect: an address and a port, or the server's name.
    pub(crate) address: String,
}

/// A server whose name the client library resolves.
impl From<&str> for Target {
    fn from(server: &str) -> Self {
        Self { server: server.to_owned(), address: server.to_owned() }
    }
}

impl From<&Target> for Target {
    fn from(target: &Target) -> Self {
        target.clone()
    }
}

impl fmt::Display for Target {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.server == self.address {
            true => f.write_str(&self.server),
            false => write!(f, "{} ({})", self.server, self.address),
        }
    }
}

type Resolver = dyn Fn(String) -> BoxFuture<'static, io::Result<Vec<SocketAddr>>> + Send + Sync;

pub(crate) struct Servers {
    /// All servers of the configuration, in its order.
    pub(crate) all: Vec<String>,
    /// `None` with TLS, where a certificate is checked against the name that the client library connects to.
    names: Option<Names>,
    last_failures: Mutex<HashMap<Target, Instant>>,
    /// The probe whether the ensemble has a quorum, which all sessions share.
    pub(crate) quorum_probe: SingleFlight,
}

impl Servers {
    /// Servers whose names are resolved here, unless `by_name`.
    pub(crate) fn new(all: Vec<String>, by_name: bool) -> Self {
        let resolve = |name: String| async move { Ok(lookup_host(name).await?.collect()) }.boxed();
        let names = (!by_name).then(|| Names::new(resolve));
        Self { all, names, last_failures: Mutex::default(), quorum_probe: SingleFlight::default() }
    }

    /// The addresses in the order in which to try them: shuffled, with those that failed within [`FAILURE_COOLDOWN`] at the
    /// end, the earliest failure first.
    ///
    /// A name may have several addresses, of which some are silent (hazard G36). It is resolved again each time, in the
    /// background, since a server may get another address when it restarts.
    pub(crate) async fn in_order(&self) -> Vec<Target> {
        let all = if is_disabled(SafetyRule::FailOver) { &self.all[..1] } else { &self.all[..] };
        let mut targets = join_all(all.iter().map(|server| self.resolve(server))).await.concat();
        fastrand::shuffle(&mut targets);
        let mut failures = lock(&self.last_failures);
        failures.retain(|_, at| at.elapsed() < FAILURE_COOLDOWN);
        targets.sort_by_key(|target| failures.get(target).copied());
        targets
    }

    /// Records that an address failed now.
    pub(crate) fn record_failure(&self, target: &Target) {
        let mut failures = lock(&self.last_failures);
        failures.insert(target.clone(), Instant::now());
    }

    async fn resolve(&self, server: &str) -> Vec<Target> {
        let Some(names) = &self.names else { return vec![Target::from(server)] };
        let addresses = names.addresses(server).await;
        if addresses.is_empty() {
            return vec![Target::from(server)];
        }
        let targets = addresses
            .into_iter()
            .map(|address| Target { server: server.to_owned(), address: address.to_string() });
        targets.collect()
    }
}

/// The addresses of names. Lookups run in the background, one for each name, and count whenever they end.
struct Names {
    resolver: Box<Resolver>,
    state: Arc<Mutex<NamesState>>,
}

#[derive(Default)]
struct NamesState {
    /// The addresses that each name had last; none after a first lookup that failed or took too long.
    known: HashMap<String, Vec<SocketAddr>>,
    lookups: HashMap<String, Lookup>,
}

type Lookup = Shared<BoxFuture<'static, ()>>;

impl Names {
    fn new(
        resolver: impl Fn(String) -> BoxFuture<'static, io::Result<Vec<SocketAddr>>> + Send + Sync + 'static,
    ) -> Self {
        Self { resolver: Box::new(resolver), state: Arc::default() }
    }

    /// The addresses that `name` had last; empty if none is known yet.
    async fn addresses(&self, name: &str) -> Vec<SocketAddr> {
        let lookup = self.look_up(name);
        if !lock(&self.state).known.contains_key(name) {
            let _ = timeout(FIRST_LOOKUP_TIMEOUT, lookup).await;
        }
        lock(&self.state).known.entry(name.to_owned()).or_default().clone()
    }

    /// Begins a lookup of `name`, unless one is in progress.
    fn look_up(&self, name: &str) -> Lookup {
        let mut state = lock(&self.state);
        if let Some(lookup) = state.lookups.get(name).filter(|lookup| lookup.peek().is_none()) {
            return lookup.clone();
        }
        let (resolved, shared, name) =
            ((self.resolver)(name.to_owned()), Arc::clone(&self.state), name.to_owned());
        let key = name.clone();
        let lookup = async move {
            match resolved.await {
                Ok(addresses) if !addresses.is_empty() => {
                    lock(&shared).known.insert(name, addresses);
                }
                outcome => debug!(server = name, ?outcome, "cannot resolve the server's name"),
            }
        };
        let lookup = lookup.boxed().shared();
        tokio::spawn(lookup.clone());
        state.lookups.insert(key, lookup.clone());
        lookup
    }
}

impl fmt::Debug for Servers {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Servers").field("all", &self.all).finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicUsize, Ordering::SeqCst};

    use tokio::time::sleep;

    use super::*;

    impl Servers {
        /// One server whose name has these addresses.
        pub(crate) fn with_addresses(server: &str, addresses: Vec<SocketAddr>) -> Self {
            Self::with_resolver(server, move |_| futures::future::ready(Ok(addresses.clone())).boxed())
        }

        fn with_resolver(
            server: &str,
            resolver: impl Fn(String) -> BoxFuture<'static, io::Result<Vec<SocketAddr>>> + Send + Sync + 'static,
        ) -> Self {
            Self {
                all: vec![server.to_owned()],
                names: Some(Names::new(resolver)),
                last_failures: Mutex::default(),
                quorum_probe: SingleFlight::default(),
            }
        }
    }

    #[tokio::test]
    async fn an_address_that_failed_is_tried_last() {
        let servers = Servers::new(["a", "b", "c"].map(String::from).to_vec(), true);
        servers.record_failure(&Target::from("b"));
        servers.record_failure(&Target::from("a"));
        servers.record_failure(&Target::from("unknown"));
        for _ in 0..20 {
            assert_eq!(servers.in_order().await, ["c", "b", "a"].map(Target::from));
        }
    }

    /// Hazard G36: every address of a name is tried, and a name without an address is passed on as it is.
    #[tokio::test]
    async fn every_address_of_a_name_is_tried() {
        let addresses = ["10.0.0.1:2181", "[::1]:2181"].map(|address| address.parse().unwrap());
        let servers = Servers::with_addresses("zoo:2181", addresses.to_vec());
        let mut found = servers.in_order().await;
        found.sort_by(|a, b| a.address.cmp(&b.address));
        let target = |address: &str| Target { server: "zoo:2181".to_owned(), address: address.to_owned() };
        assert_eq!(found, ["10.0.0.1:2181", "[::1]:2181"].map(target));
        let unknown = Servers::with_addresses("zoo:2181", Vec::new());
        assert_eq!(unknown.in_order().await, [Target::from("zoo:2181")]);
    }

    /// Hazard G36: a lookup takes longer than anybody waits for it. It is waited for once; what it finds is used all the same, and
    /// no second one is begun meanwhile.
    #[tokio::test(start_paused = true)]
    async fn a_slow_lookup_counts() {
        let lookups = Arc::new(AtomicUsize::new(0));
        let counted = Arc::clone(&lookups);
        let servers = Servers::with_resolver("zoo:2181", move |_| {
            let port = counted.fetch_add(1, SeqCst);
            let address = SocketAddr::from(([10, 0, 0, 1], u16::try_from(port).unwrap()));
            async move {
                sleep(FIRST_LOOKUP_TIMEOUT * 3 / 2).await;
                Ok(vec![address])
            }
            .boxed()
        });
        let address = |port| Target { server: "zoo:2181".to_owned(), address: format!("10.0.0.1:{port}") };
        assert_eq!(servers.in_order().await, [Target::from("zoo:2181")]);
        assert_eq!(servers.in_order().now_or_never(), Some(vec![Target::from("zoo:2181")]));
        sleep(FIRST_LOOKUP_TIMEOUT).await;
        assert_eq!(lookups.load(SeqCst), 1);
        assert_eq!(
            servers.in_order().now_or_never(),
            Some(vec![address(0)]),
            "the second one is in progress"
        );
        assert_eq!(servers.in_order().now_or_never(), Some(vec![address(0)]));
        assert_eq!(lookups.load(SeqCst), 2);
        sleep(FIRST_LOOKUP_TIMEOUT * 2).await;
        assert_eq!(servers.in_order().now_or_never(), Some(vec![address(1)]));
    }
}
