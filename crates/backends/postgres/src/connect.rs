//! Connects to the primary among the hosts.

use std::{
    collections::BTreeSet,
    fmt,
    net::{IpAddr, SocketAddr},
    pin::pin,
    time::Duration,
};

use futures::{
    FutureExt as _, Stream, StreamExt as _,
    stream::{self, BoxStream, FuturesUnordered},
};
use tenure_core::{
    Secret, TlsPem,
    spi::{BackendError, BackendErrorKind},
};
use tokio::{
    net::lookup_host,
    time::{Instant, timeout, timeout_at},
};
use tokio_postgres::{
    AsyncMessage, Client, Config, Error, NoTls, Socket, config::SslMode, tls::MakeTlsConnect,
};
use tracing::debug;

use crate::{config::PostgresConfig, error::classify, schema::Statements};

/// How much longer to wait for the other hosts once a primary has answered: the first to answer may be a former primary that was started again.
const OTHER_HOSTS: Duration = Duration::from_millis(250);
/// How soon a connection without traffic is probed, and how often. A peer that has gone without a word is noticed by it.
const KEEPALIVE: Duration = Duration::from_secs(5);

/// What the server sends without being asked. Drives the connection, and ends with it.
pub(crate) type Messages = BoxStream<'static, Result<AsyncMessage, Error>>;

/// The hosts, and the statements for the schema.
#[derive(Debug)]
pub(crate) struct Database {
    pub(crate) config: PostgresConfig,
    pub(crate) statements: Statements,
}

/// One run of a server: after a restart it is another one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Identity {
    pub(crate) cluster: i64,
    /// Zero for a standby.
    pub(crate) timeline: i32,
    /// When the server was started, in microseconds since 1970: tells servers of a cluster apart.
    pub(crate) started: i64,
}

/// What a server reports about itself.
#[derive(Clone, Debug)]
pub(crate) struct Host {
    pub(crate) name: String,
    pub(crate) identity: Identity,
    pub(crate) is_read_only: bool,
    pub(crate) version: String,
    has_schema: bool,
    pub(crate) has_tables: bool,
}

/// A connection to a server.
pub(crate) struct Server {
    pub(crate) host: Host,
    pub(crate) address: SocketAddr,
    pub(crate) client: Client,
    pub(crate) messages: Messages,
    /// The primaries, if there were several.
    pub(crate) split: Option<String>,
}

/// One of the configured hosts.
#[derive(Clone, Copy)]
struct Endpoint<'a> {
    number: usize,
    host: &'a str,
    port: u16,
}

impl Database {
    /// Connects to the primary. Every address of every host is tried at once; of several primaries the one with the latest timeline is chosen.
    ///
    /// `seen` is the latest primary that was seen: a server of another cluster is refused, and one with a lower timeline is no primary any more.
    /// Without it every host is awaited, because a slow one may have been promoted. One address may be excepted.
    pub(crate) async fn connect(
        &self,
        seen: Option<Identity>,
        except: Option<SocketAddr>,
    ) -> Result<Server, BackendError> {
        let deadline = Instant::now() + self.config.connect_timeout;
        let mut attempts = pin!(self.attempts(except));
        let (mut primaries, mut failures) = (Vec::<Server>::new(), Vec::new());
        // Each attempt ends by itself, before that.
        let mut until = deadline + self.config.connect_timeout;
        while let Ok(Some((name, outcome))) = timeout_at(until, attempts.next()).await {
            match outcome.and_then(|server| server.host.check_primary(seen).map(|()| server)) {
                // Another address of the same server.
                Ok(server) if primaries.iter().any(|other| other.host.identity == server.host.identity) => {}
                Ok(server) => {
                    let is_expected = seen.is_some_and(|seen| server.host.identity.timeline >= seen.timeline);
                    let soon = Instant::now() + OTHER_HOSTS;
                    until = if is_expected && primaries.is_empty() { soon } else { deadline.max(soon) };
                    primaries.push(server);
                }
                Err(error) => {
                    debug!(host = name, %error, "cannot use a host of PostgreSQL");
                    failures.push(error);
                }
            }
        }
        primaries.sort_by_key(|primary| primary.host.identity.timeline);
        let hosts: Vec<_> = primaries.iter().map(|primary| primary.host.clone()).collect();
        let Some(mut primary) = primaries.pop() else {
            return Err(BackendError::of_hosts(failures));
        };
        choose(&hosts, seen)?;
        if hosts.len() > 1 {
            let names: Vec<_> = hosts.iter().map(ToString::to_string).collect();
            primary.split = Some(names.join(" and "));
        }
        Ok(primary)
    }

    /// Connects to every address of every host but one that is excepted. Ends within the time limit of a connection.
    pub(crate) fn attempts(
        &self,
        except: Option<SocketAddr>,
    ) -> impl Stream<Item = (String, Result<Server, BackendError>)> + Send {
        let limit = self.config.connect_timeout;
        let deadline = Instant::now() + limit;
        let endpoints = self.config.endpoints().enumerate().collect::<Vec<_>>();
        stream::iter(endpoints).flat_map_unordered(None, move |(number, (host, port))| {
            let endpoint = Endpoint { number, host, port };
            let name = format!("{host}:{port}");
            let lookup = async move {
                let failed = |error| stream::iter([(name.clone(), Err(error))]).boxed();
                let addresses = match timeout_at(deadline, lookup_host((host, port))).await {
                    Ok(Ok(addresses)) => addresses.collect::<BTreeSet<_>>(),
                    Ok(Err(error)) => return failed(failure(&name, error)),
                    Err(_) => return failed(failure(&name, "its name was not resolved in time")),
                };
                if addresses.is_empty() {
                    return failed(failure(&name, "the name has no address"));
                }
                let others = addresses.into_iter().filter(move |address| Some(*address) != except);
                let connecting = others.map(|address| async move {
                    let name = name_of(endpoint, address);
                    let attempt = self.connect_address(endpoint, address, name.clone());
                    let late = |_| Err(failure(&name, format!("no answer within {limit:?}")));
                    let outcome = timeout_at(deadline, attempt).await.unwrap_or_else(late);
                    (name, outcome)
                });
                connecting.collect::<FuturesUnordered<_>>().boxed()
            };
            lookup.flatten_stream().boxed()
        })
    }

    async fn connect_address(
        &self,
        endpoint: Endpoint<'_>,
        address: SocketAddr,
        name: String,
    ) -> Result<Server, BackendError> {
        let (client, mut messages) = self.log_in(endpoint, address.ip()).await?;
        let what = format!("inspecting PostgreSQL at {name}");
        let rows = driven(&mut messages, &what, client.query_typed(&self.statements.inspect, &[])).await?;
        let row = rows.first().ok_or_else(|| failure(&name, "it does not say what it is"))?;
        let failed = |error: Error| classify(&what, &error);
        let host = Host {
            identity: Identity {
                cluster: row.try_get("cluster").map_err(failed)?,
                timeline: row.try_get("timeline").map_err(failed)?,
                started: row.try_get("started").map_err(failed)?,
            },
            is_read_only: row.try_get("is_read_only").map_err(failed)?,
            version: row.try_get("version").map_err(failed)?,
            has_schema: row.try_get("has_schema").map_err(failed)?,
            has_tables: row.try_get("has_tables").map_err(failed)?,
            name,
        };
        Ok(Server { host, address, client, messages, split: None })
    }

    /// Opens a connection. A file with passwords is read again when it may have changed, and a refused password is retried for a while (hazard
    /// G33).
    async fn log_in(
        &self,
        endpoint: Endpoint<'_>,
        address: IpAddr,
    ) -> Result<(Client, Messages), BackendError> {
        let config = &self.config;
        let what =
            format!("connecting to PostgreSQL at {}:{} as {}", endpoint.host, endpoint.port, config.user);
        let mut options = Config::new();
        options
            .host(endpoint.host)
            .hostaddr(address)
            .port(endpoint.port)
            .user(&config.user)
            .dbname(&config.database)
            .application_name("tenure")
            .connect_timeout(config.connect_timeout)
            .tcp_user_timeout(config.attempt_timeout)
            .keepalives_idle(KEEPALIVE)
            .keepalives_interval(KEEPALIVE)
            .keepalives_retries(2);
        let pem = match &config.tls {
            Some(tls) => Some(tls.current().await),
            None => None,
        };
        let Some(password) = config.password_of(endpoint.number) else {
            return open(&options, pem.as_deref(), &what).await?.map_err(|error| classify(&what, &error));
        };
        let attempt = async |secret: Secret| {
            let opened = open(options.clone().password(secret.expose()), pem.as_deref(), &what).await?;
            opened.map_err(|error| classify(&what, &error))
        };
        password.try_each(attempt).await
    }
}

/// A name may have several addresses.
fn name_of(Endpoint { host, port, .. }: Endpoint<'_>, address: SocketAddr) -> String {
    match host.parse::<IpAddr>() {
        Ok(_) => format!("{host}:{port}"),
        Err(_) => format!("{host}:{port} ({})", address.ip()),
    }
}

impl Host {
    /// Whether this may be the primary, after `seen` was one.
    fn check_primary(&self, seen: Option<Identity>) -> Result<(), BackendError> {
        if self.is_read_only {
            return Err(failure(&self.name, "it is read-only, as a standby is"));
        }
        if seen.is_some_and(|seen| seen.cluster != self.identity.cluster) {
            // Its epoch does not continue that of the cluster before: a token may have been granted already.
            let text = "it belongs to another cluster than before; if the tables have moved there, restart all candidates at the same time";
            return Err(failure(&self.name, text));
        }
        Ok(())
    }
}

/// Whether the last of these servers, which has the latest timeline, is the primary. Each has a database that is not read-only.
fn choose(hosts: &[Host], seen: Option<Identity>) -> Result<(), BackendError> {
    let Some((chosen, others)) = hosts.split_last() else { return Ok(()) };
    if let Some(other) = others.iter().find(|other| other.identity.cluster != chosen.identity.cluster) {
        let text = format!(
            "{} and {} belong to different clusters: two candidates could lead; name the hosts of one",
            other.name, chosen.name
        );
        return Err(BackendError::new(BackendErrorKind::Invalid, text));
    }
    let timeline = chosen.identity.timeline;
    if let Some(seen) = seen.filter(|seen| seen.timeline > timeline) {
        let text = format!(
            "it is an earlier primary (timeline {timeline}, and {} was seen); stop it, or make it a standby",
            seen.timeline
        );
        return Err(failure(&chosen.name, text));
    }
    // One of them is a copy, and nothing tells which: half of the candidates would use it.
    if let Some(other) = others.iter().find(|other| other.identity.timeline == timeline) {
        let text =
            format!("{} is a primary, too, of the same timeline; stop the one that is a copy", other.name);
        return Err(failure(&chosen.name, text));
    }
    Ok(())
}

#[cfg(feature = "tls")]
async fn open(options: &Config, pem: Option<&TlsPem>, what: &str) -> Result<Opened, BackendError> {
    let Some(pem) = pem else { return Ok(open_with(options, SslMode::Disable, NoTls).await) };
    let tls = pem
        .client_config()
        .map_err(|error| BackendError::new(BackendErrorKind::Invalid, format!("{what}: {error}")))?;
    Ok(open_with(options, SslMode::Require, tokio_postgres_rustls::MakeRustlsConnect::new(tls)).await)
}

/// [`PostgresConfig::check`] refuses TLS without the feature.
#[cfg(not(feature = "tls"))]
async fn open(options: &Config, _: Option<&TlsPem>, _: &str) -> Result<Opened, BackendError> {
    Ok(open_with(options, SslMode::Disable, NoTls).await)
}

type Opened = Result<(Client, Messages), Error>;

async fn open_with<T>(options: &Config, mode: SslMode, tls: T) -> Opened
where
    T: MakeTlsConnect<Socket>,
    T::Stream: Send + 'static,
{
    let (client, mut connection) = options.clone().ssl_mode(mode).connect(tls).await?;
    Ok((client, stream::poll_fn(move |context| connection.poll_message(context)).boxed()))
}

/// Waits for an answer while the connection is driven here.
pub(crate) async fn driven<T>(
    messages: &mut Messages,
    what: &str,
    answer: impl Future<Output = Result<T, Error>>,
) -> Result<T, BackendError> {
    let mut answer = pin!(answer);
    loop {
        tokio::select! {
            biased;
            answer = &mut answer => return answer.map_err(|error| classify(what, &error)),
            message = next_message(messages, what) => debug!(message = ?message?, "PostgreSQL says"),
        }
    }
}

/// The next message that nobody has asked for. Drives the connection until there is one.
pub(crate) async fn next_message(messages: &mut Messages, what: &str) -> Result<AsyncMessage, BackendError> {
    match messages.next().await {
        Some(message) => message.map_err(|error| classify(what, &error)),
        None => {
            let text = format!("{what}: the server has closed the connection");
            Err(BackendError::new(BackendErrorKind::Unavailable, text))
        }
    }
}

impl Server {
    /// Creates the tables. Concurrent calls wait for each other, and the last ones find them.
    pub(crate) async fn create_tables(&mut self, database: &Database) -> Result<(), BackendError> {
        let Database { config, statements } = database;
        let what = format!("creating the tables in the schema {:?}", config.schema);
        let migration = statements.migration(self.host.has_schema);
        let created = driven(&mut self.messages, &what, self.client.batch_execute(&migration));
        match timeout(config.attempt_timeout, created).await {
            Ok(Err(error)) if error.kind() == BackendErrorKind::Forbidden => {
                let run = statements.permission_to_create(&config.user, self.host.has_schema);
                let text = format!("{error}; a superuser, or the owner of the database, has to run: {run}");
                Err(BackendError::new(BackendErrorKind::Forbidden, text))
            }
            Ok(outcome) => outcome,
            Err(_) => Err(failure(
                &self.host.name,
                format!("{what}: no answer within {:?}", config.attempt_timeout),
            )),
        }
    }
}

impl fmt::Display for Host {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} (timeline {})", self.name, self.identity.timeline)
    }
}

fn failure(host: &str, reason: impl fmt::Display) -> BackendError {
    BackendError::new(BackendErrorKind::Unavailable, format!("PostgreSQL at {host}: {reason}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn host(name: &str, cluster: i64, timeline: i32) -> Host {
        let identity = Identity { cluster, timeline, started: 0 };
        let (name, version) = (name.to_owned(), "17".to_owned());
        Host { name, identity, is_read_only: false, version, has_schema: true, has_tables: true }
    }

    fn refusal(hosts: &[Host], seen: Option<Identity>) -> String {
        choose(hosts, seen).err().map(|error| error.to_string()).unwrap_or_default()
    }

    /// Hazards C5, G34: of several primaries the one is used whose epochs continue those that were seen, or none.
    #[test]
    fn the_primary_is_the_one_with_the_latest_timeline() {
        let (first, second) = (host("a", 7, 1), host("b", 7, 2));
        let hosts = [first.clone(), second.clone()];
        assert_eq!(refusal(&hosts, None), "");
        assert_eq!(refusal(&hosts, Some(second.identity)), "");
        let refused = refusal(&hosts[..1], Some(second.identity));
        assert!(refused.contains("at a: it is an earlier primary (timeline 1, and 2 was seen)"), "{refused}");
        let refused = refusal(&[first.clone(), host("b", 8, 2)], None);
        assert!(refused.contains("a and b belong to different clusters"), "{refused}");
        // Two standbys were promoted, or a server was copied.
        let refused = refusal(&[first, second, host("c", 7, 2)], None);
        assert!(refused.contains("b is a primary, too, of the same timeline"), "{refused}");
        let refused = host("a", 8, 3).check_primary(Some(host("b", 7, 2).identity)).unwrap_err();
        assert!(refused.to_string().contains("it belongs to another cluster than before"), "{refused}");
    }
}
