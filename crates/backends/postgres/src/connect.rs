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
    future::BoxFuture,
    stream::{self, BoxStream, FuturesUnordered},
};
use tenure_core::{
    TlsPem,
    spi::{BackendError, BackendErrorKind},
};
use tokio::{
    net::lookup_host,
    time::{Instant, timeout, timeout_at},
};
use tokio_postgres::{
    AsyncMessage, Client, Config, Error, NoTls, Socket, config::SslMode, error::SqlState, tls::MakeTlsConnect,
};
use tracing::debug;

use crate::{config::PostgresConfig, error::classify, schema::Statements};

/// How much longer to wait for the other hosts once a primary has answered: an earlier one may have been started again.
const OTHER_HOSTS: Duration = Duration::from_millis(250);
/// How soon a connection without traffic is probed, and how often. A peer that has gone without a word is noticed by it.
const KEEPALIVE: Duration = Duration::from_secs(5);

/// What the server sends without being asked. Drives the connection, and ends with it.
pub(crate) type Messages = BoxStream<'static, Result<AsyncMessage, Error>>;

/// A connection to a server, and what it is.
pub(crate) struct Server {
    pub(crate) client: Client,
    pub(crate) messages: Messages,
    pub(crate) host: String,
    pub(crate) address: SocketAddr,
    pub(crate) version: String,
    pub(crate) is_read_only: bool,
    pub(crate) cluster: i64,
    /// Zero for a standby.
    pub(crate) timeline: i32,
    /// When the server was started, to the microsecond: tells servers of a cluster apart.
    pub(crate) started: String,
    /// The primaries, if there were several.
    pub(crate) split: Option<String>,
    has_schema: bool,
    has_tables: bool,
}

/// Connects to the primary. Every address of every host is tried at once; of several primaries the one with the latest timeline is chosen.
///
/// `earlier` is the cluster and the timeline that were seen: a server of another cluster is refused, and one with a lower timeline is no
/// primary any more. Without it every host is awaited until `deadline`, because a slow one may have been promoted.
pub(crate) async fn connect(
    config: &PostgresConfig,
    statements: &Statements,
    earlier: Option<(i64, i32)>,
    deadline: Instant,
) -> Result<Server, BackendError> {
    let mut attempts = pin!(attempts(config, statements, None));
    let (mut found, mut failures) = (Vec::<Server>::new(), Vec::new());
    // Each attempt ends by itself, before that.
    let mut until = Instant::now() + 2 * config.connect_timeout;
    while let Ok(Some((host, outcome))) = timeout_at(until, attempts.next()).await {
        match outcome {
            Ok(server) if server.is_read_only => {
                failures.push(failure(&host, "it is read-only, as a standby is"));
            }
            Ok(primary) if earlier.is_some_and(|(cluster, _)| cluster != primary.cluster) => {
                failures.push(of_another_cluster(&primary.host));
            }
            // Another address of the same server.
            Ok(primary) if found.iter().any(|other| other.started == primary.started) => {}
            Ok(primary) => {
                let is_expected = earlier.is_some_and(|(_, seen)| primary.timeline >= seen);
                let soon = Instant::now() + OTHER_HOSTS;
                until = if is_expected && found.is_empty() { soon } else { deadline.max(soon) };
                found.push(primary);
            }
            Err(error) => failures.push(error),
        }
    }
    found.sort_by_key(|primary| primary.timeline);
    let primaries = found.iter().map(ToString::to_string).collect::<Vec<_>>().join(" and ");
    let split = (found.len() > 1).then_some(primaries);
    let Some(mut primary) = found.pop() else {
        return Err(summary(failures));
    };
    if let Some(other) = found.iter().find(|other| other.cluster != primary.cluster) {
        let text = format!(
            "{} and {} belong to different clusters: two candidates could lead; name the hosts of one",
            other.host, primary.host
        );
        return Err(BackendError::new(BackendErrorKind::Invalid, text));
    }
    if let Some((_, seen)) = earlier.filter(|(_, seen)| *seen > primary.timeline) {
        let text = format!(
            "it is an earlier primary (timeline {}, and {seen} was seen); stop it, or make it a standby",
            primary.timeline
        );
        return Err(failure(&primary.host, text));
    }
    // One of them is a copy, and nothing tells which: half of the candidates would use it.
    if let Some(other) = found.iter().find(|other| other.timeline == primary.timeline) {
        let text =
            format!("{} is a primary, too, of the same timeline; stop the one that is a copy", other.host);
        return Err(failure(&primary.host, text));
    }
    primary.split = split;
    Ok(primary)
}

/// Looks for a primary with a later timeline than the one that was `seen`, at the addresses but the one in use.
pub(crate) async fn later_primary(
    config: &PostgresConfig,
    statements: &Statements,
    in_use: SocketAddr,
    seen: (i64, i32),
) -> Option<Server> {
    let found: Vec<_> = attempts(config, statements, Some(in_use)).collect().await;
    let servers = found.into_iter().filter_map(|(_, server)| server.ok());
    servers
        .filter(|server| !server.is_read_only && server.cluster == seen.0 && server.timeline > seen.1)
        .max_by_key(|primary| primary.timeline)
}

/// One of the configured hosts.
#[derive(Clone, Copy)]
struct Endpoint<'a> {
    number: usize,
    host: &'a str,
    port: u16,
}

/// Connects to every address of every host but one that is excepted. Ends within the time limit of a connection.
pub(crate) fn attempts<'a>(
    config: &'a PostgresConfig,
    statements: &'a Statements,
    except: Option<SocketAddr>,
) -> impl Stream<Item = (String, Result<Server, BackendError>)> + Send + 'a {
    let deadline = Instant::now() + config.connect_timeout;
    let bounded = move |name: String, attempt: BoxFuture<'a, Result<Server, BackendError>>| async move {
        let late = |_| Err(failure(&name, format!("no answer within {:?}", config.connect_timeout)));
        let outcome = timeout_at(deadline, attempt).await.unwrap_or_else(late);
        (name, outcome)
    };
    let endpoints = config.endpoints().enumerate().collect::<Vec<_>>();
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
            let others = addresses.into_iter().filter(|address| Some(*address) != except);
            let connecting = others.map(|address| {
                let name = name_of(endpoint, address);
                bounded(name.clone(), connect_address(config, statements, endpoint, address, name).boxed())
            });
            connecting.collect::<FuturesUnordered<_>>().boxed()
        };
        lookup.flatten_stream().boxed()
    })
}

/// A name may have several addresses.
fn name_of(Endpoint { host, port, .. }: Endpoint<'_>, address: SocketAddr) -> String {
    match host.parse::<IpAddr>() {
        Ok(_) => format!("{host}:{port}"),
        Err(_) => format!("{host}:{port} ({})", address.ip()),
    }
}

async fn connect_address(
    config: &PostgresConfig,
    statements: &Statements,
    endpoint: Endpoint<'_>,
    address: SocketAddr,
    name: String,
) -> Result<Server, BackendError> {
    let (client, mut messages) = log_in(config, endpoint, address.ip()).await?;
    let what = format!("inspecting PostgreSQL at {name}");
    let rows = driven(&mut messages, &what, client.query_typed(&statements.inspect, &[])).await?;
    let row = rows.first().ok_or_else(|| failure(&name, "it does not say what it is"))?;
    let failed = |error: Error| classify(&what, &error);
    Ok(Server {
        is_read_only: row.try_get(0).map_err(failed)?,
        cluster: row.try_get(1).map_err(failed)?,
        timeline: row.try_get(2).map_err(failed)?,
        has_schema: row.try_get(3).map_err(failed)?,
        has_tables: row.try_get(4).map_err(failed)?,
        version: row.try_get("version").map_err(failed)?,
        started: row.try_get("started").map_err(failed)?,
        split: None,
        host: name,
        address,
        client,
        messages,
    })
}

/// Opens a connection. A file with passwords is read again when it may have changed, and a refused password is retried for a while (hazard
/// G33).
async fn log_in(
    config: &PostgresConfig,
    endpoint: Endpoint<'_>,
    address: IpAddr,
) -> Result<(Client, Messages), BackendError> {
    let what = format!("connecting to PostgreSQL at {}:{} as {}", endpoint.host, endpoint.port, config.user);
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
    let mut refused = None;
    for secret in password.candidates().await {
        match open(options.password(secret.expose()), pem.as_deref(), &what).await? {
            Ok(opened) => {
                password.accepted(&secret);
                return Ok(opened);
            }
            Err(error) if error.code() == Some(&SqlState::INVALID_PASSWORD) => refused = Some(error),
            Err(error) => return Err(classify(&what, &error)),
        }
    }
    let error = match refused {
        Some(error) => classify(&what, &error),
        None => BackendError::new(BackendErrorKind::Unauthorized, format!("{what}: there is no password")),
    };
    Err(match password.refused() {
        Some(retry) => BackendError::new(BackendErrorKind::Unavailable, format!("{error}; {retry}")),
        None => error,
    })
}

#[cfg(feature = "tls")]
async fn open(options: &Config, pem: Option<&TlsPem>, what: &str) -> Result<Opened, BackendError> {
    let Some(pem) = pem else { return Ok(open_with(options, SslMode::Disable, NoTls).await) };
    let connector = crate::tls::connector(pem)
        .map_err(|error| BackendError::new(error.kind(), format!("{what}: {error}")))?;
    Ok(open_with(options, SslMode::Require, connector).await)
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
    /// Creates the tables if there are none. Concurrent calls wait for each other, and the last ones find them.
    pub(crate) async fn create_tables(
        &mut self,
        config: &PostgresConfig,
        statements: &Statements,
    ) -> Result<(), BackendError> {
        if self.has_tables {
            return Ok(());
        }
        let what = format!("creating the tables in the schema {:?}", config.schema);
        let migration = statements.migration(self.has_schema);
        let created = driven(&mut self.messages, &what, self.client.batch_execute(&migration));
        match timeout(config.attempt_timeout, created).await {
            Ok(Err(error)) if error.kind() == BackendErrorKind::Forbidden => {
                let run = statements.permission_to_create(&config.user, self.has_schema);
                let text = format!("{error}; a superuser, or the owner of the database, has to run: {run}");
                Err(BackendError::new(BackendErrorKind::Forbidden, text))
            }
            Ok(outcome) => outcome,
            Err(_) => {
                Err(failure(&self.host, format!("{what}: no answer within {:?}", config.attempt_timeout)))
            }
        }
    }
}

impl fmt::Display for Server {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} (timeline {})", self.host, self.timeline)
    }
}

/// Its epoch does not continue that of the cluster before: a leadership that it grants may have a token that was granted already.
pub(crate) fn of_another_cluster(host: &str) -> BackendError {
    let text = "it belongs to another cluster than before; if the tables have moved there, restart all candidates at the same time";
    failure(host, text)
}

fn failure(host: &str, reason: impl fmt::Display) -> BackendError {
    BackendError::new(BackendErrorKind::Unavailable, format!("PostgreSQL at {host}: {reason}"))
}

/// The error of several attempts: a permanent one only if each is. A host that is down may be the one that would accept.
fn summary(mut failures: Vec<BackendError>) -> BackendError {
    let first = failures.iter().position(|error| !error.is_permanent()).unwrap_or_default();
    if failures.len() < 2 {
        return failures
            .pop()
            .unwrap_or_else(|| BackendError::new(BackendErrorKind::Unavailable, "there is no host"));
    }
    let kind = failures[first].kind();
    let texts: Vec<_> = failures.iter().map(ToString::to_string).collect();
    BackendError::new(kind, texts.join("; "))
}
