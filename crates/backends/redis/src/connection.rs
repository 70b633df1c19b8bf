//! The connection: made when it is needed, and replaced when it does not answer.

use std::{
    collections::HashMap,
    net::SocketAddr,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use futures::future::{FutureExt as _, select_ok};
use redis::{
    AsyncConnectionConfig, ErrorKind, ProtocolVersion, RedisConnectionInfo, RedisError, ServerErrorKind,
    Value, aio::MultiplexedConnection,
};
use sha1_smol::Sha1;
use tenure_core::{
    Secret,
    spi::{
        BackendError,
        BackendErrorKind::{Invalid, Unavailable},
    },
};
use tokio::{
    net::{TcpStream, lookup_host},
    sync::Mutex,
    task::JoinSet,
    time::{Instant, timeout},
};
use tracing::{debug, info, warn};

use crate::{
    SINGLE_NODE,
    config::RedisConfig,
    error::classify,
    hints::Hints,
    stream::{Bounded, Stream},
};

const SCRIPT: &str = include_str!("script.lua");
/// The pause after a failed attempt to connect: doubled each time, up to the limit.
const FIRST_PAUSE: Duration = Duration::from_millis(50);
const MAX_PAUSE: Duration = Duration::from_secs(3);

/// Sends requests to the server, over one connection at a time.
#[derive(Debug)]
pub(crate) struct Requests {
    pub(crate) config: RedisConfig,
    pub(crate) hints: Arc<Hints>,
    script_hash: String,
    link: Mutex<Link>,
    was_warned: AtomicBool,
}

#[derive(Debug, Default)]
struct Link {
    current: Option<Arc<Connection>>,
    failed: Option<(BackendError, Duration, Instant)>,
}

/// A connection to a primary.
#[derive(Debug)]
pub(crate) struct Connection {
    pub(crate) host: String,
    /// What the server said of itself.
    pub(crate) info: HashMap<String, String>,
    redis: MultiplexedConnection,
    /// Drives the connection, and ends it when this is dropped.
    _driver: JoinSet<()>,
}

impl Requests {
    pub(crate) fn new(config: RedisConfig) -> Self {
        Self {
            config,
            hints: Arc::default(),
            script_hash: Sha1::from(SCRIPT).hexdigest(),
            link: Mutex::default(),
            was_warned: AtomicBool::new(false),
        }
    }

    /// Runs an operation of the script.
    pub(crate) async fn run(&self, what: &str, arguments: &[&[u8]]) -> Result<Value, BackendError> {
        let command = |name: &str, script: &str| {
            let mut command = redis::cmd(name);
            command.arg(script).arg(1).arg(&self.config.prefix).arg(arguments);
            command
        };
        match self.send(what, &command("EVALSHA", &self.script_hash)).await? {
            // The server was started since, or its scripts were flushed.
            Err(error) if error.kind() == ErrorKind::Server(ServerErrorKind::NoScript) => {
                self.send(what, &command("EVAL", SCRIPT)).await?
            }
            answer => answer,
        }
        .map_err(|error| classify(&self.config, what, &error))
    }

    /// Sends a command, and waits for the answer.
    pub(crate) async fn send(
        &self,
        what: &str,
        command: &redis::Cmd,
    ) -> Result<Result<Value, RedisError>, BackendError> {
        let connection = self.connection().await?;
        let mut redis = connection.redis.clone();
        let answer = command.query_async::<Value>(&mut redis).await;
        let is_refusal = |error: &RedisError| error.code().is_some_and(|code| code != "READONLY");
        if let Err(error) = &answer
            && !is_refusal(error)
        {
            debug!(host = connection.host, %error, what, "giving up the connection to Redis");
            let mut link = self.link.lock().await;
            if link.current.as_ref().is_some_and(|current| Arc::ptr_eq(current, &connection)) {
                link.current = None;
                self.hints.end();
            }
        }
        Ok(answer)
    }

    /// The connection; makes one if there is none. After a failure it is not tried again for a while.
    pub(crate) async fn connection(&self) -> Result<Arc<Connection>, BackendError> {
        let mut link = self.link.lock().await;
        if let Some(current) = &link.current {
            return Ok(Arc::clone(current));
        }
        let pause = match &link.failed {
            Some((error, _, retry_at)) if Instant::now() < *retry_at => return Err(error.clone()),
            Some((_, pause, _)) => MAX_PAUSE.min(*pause * 2),
            None => FIRST_PAUSE,
        };
        let limit = self.config.settings.request_timeout();
        let late =
            |_| Err(self.failure(&self.config.hosts.join(", "), format!("no answer within {limit:?}")));
        match timeout(limit, self.connect()).await.unwrap_or_else(late) {
            Ok(connection) => {
                let connection = Arc::new(connection);
                *link = Link { current: Some(Arc::clone(&connection)), failed: None };
                if !self.was_warned.swap(true, Ordering::Relaxed) {
                    warn!(host = connection.host, "{SINGLE_NODE}");
                }
                Ok(connection)
            }
            Err(error) => {
                let retry_at = Instant::now() + pause.mul_f64(0.5 + fastrand::f64());
                link.failed = Some((error.clone(), pause, retry_at));
                Err(error)
            }
        }
    }

    /// Connects to all addresses at once, and uses the first that is a primary.
    async fn connect(&self) -> Result<Connection, BackendError> {
        let mut attempts = Vec::new();
        let mut unresolved = None;
        for (host, port) in self.config.endpoints() {
            match lookup_host((host, port)).await {
                Ok(found) => attempts.extend(found.map(|address| self.connect_to(host, address).boxed())),
                Err(error) => unresolved = Some(self.failure(&format!("{host}:{port}"), error)),
            }
        }
        if attempts.is_empty() {
            return Err(
                unresolved.unwrap_or_else(|| self.failure(&self.config.hosts[0], "the name has no address"))
            );
        }
        select_ok(attempts).await.map(|(connection, _)| connection)
    }

    async fn connect_to(&self, host: &str, address: SocketAddr) -> Result<Connection, BackendError> {
        let name = address.to_string();
        let what = format!("connecting to Redis at {name} as {}", self.config.user());
        let info = RedisConnectionInfo::default()
            .set_protocol(ProtocolVersion::RESP3)
            .set_lib_name("tenure", env!("CARGO_PKG_VERSION"))
            .set_db(self.config.database.into());
        let Some((user, password)) = &self.config.login else {
            return self
                .log_in(host, address, &info)
                .await?
                .map_err(|error| classify(&self.config, &what, &error));
        };
        let attempt = async |secret: Secret| {
            let info = info.clone().set_username(user).set_password(secret.expose());
            let opened = self.log_in(host, address, &info).await?;
            opened.map_err(|error| classify(&self.config, &what, &error))
        };
        password.try_each(attempt).await
    }

    /// Opens a connection, and checks what the server is.
    async fn log_in(
        &self,
        host: &str,
        address: SocketAddr,
        info: &RedisConnectionInfo,
    ) -> Result<Result<Connection, RedisError>, BackendError> {
        let name = address.to_string();
        let stream = Bounded { stream: self.open(host, address).await?, received: 0 };
        let hints = Arc::clone(&self.hints);
        let options = AsyncConnectionConfig::new()
            .set_response_timeout(Some(self.config.settings.request_timeout()))
            .set_push_sender(move |push: redis::PushInfo| {
                hints.pass_on(&push);
                Ok::<(), ()>(())
            });
        let opened = MultiplexedConnection::new_with_config(info, stream, options).await;
        let (mut redis, driver) = match opened {
            Ok(opened) => opened,
            Err(error) => return Ok(Err(error)),
        };
        let mut drivers = JoinSet::new();
        drivers.spawn(driver);
        let info: String = match redis::cmd("INFO").query_async(&mut redis).await {
            Ok(info) => info,
            Err(error) => return Ok(Err(error)),
        };
        let info = info.lines().filter_map(|line| line.split_once(':'));
        let info = info.map(|(field, value)| (field.to_owned(), value.trim().to_owned())).collect();
        let connection = Connection { host: name, info, redis: redis.clone(), _driver: drivers };
        self.check(&connection)?;
        match redis.subscribe(&self.config.prefix).await {
            Ok(()) => self.hints.begin(),
            Err(error) => {
                let error = classify(&self.config, "subscribing", &error);
                info!(host = connection.host, %error, "no notifications; records are polled");
            }
        }
        Ok(Ok(connection))
    }

    /// Whether the server is one that may be used.
    fn check(&self, connection: &Connection) -> Result<(), BackendError> {
        let refused = |reason: String| {
            Err(BackendError::new(Invalid, format!("Redis at {}: {reason}", connection.host)))
        };
        match (connection.mode(), connection.get("role")) {
            ("sentinel", _) => {
                refused(format!("it is a Sentinel, but {SINGLE_NODE}; give the primary's host"))
            }
            ("cluster", _) if !self.config.is_failover_allowed => refused(format!(
                "it is a node of a cluster, which fails over, but {SINGLE_NODE}; use a server that is not, or \
                 failover=unsafe if you accept that"
            )),
            (_, "master") => {
                let version = connection.get("redis_version");
                match version.split('.').next().and_then(|major| major.parse::<u32>().ok()) {
                    Some(7..) => Ok(()),
                    _ => refused(format!(
                        "it has version {version:?}; Redis 7.0, or Valkey, or later is needed"
                    )),
                }
            }
            (_, role) => {
                Err(self.failure(&connection.host, format!("its role is {role:?}; name the primary")))
            }
        }
    }

    #[cfg(feature = "tls")]
    async fn open(&self, host: &str, address: SocketAddr) -> Result<Box<dyn Stream>, BackendError> {
        use tokio_rustls::{TlsConnector, rustls::pki_types::ServerName};

        let stream = self.open_plain(address).await?;
        let Some(tls) = &self.config.tls else { return Ok(Box::new(stream)) };
        let failed =
            |error: String| BackendError::new(Invalid, format!("TLS to Redis at {address}: {error}"));
        let config = tls.current().await.client_config().map_err(failed)?;
        let name = ServerName::try_from(host.to_owned()).map_err(|error| failed(error.to_string()))?;
        let opened = TlsConnector::from(Arc::new(config)).connect(name, stream).await;
        Ok(Box::new(opened.map_err(|error| self.failure(&address.to_string(), format!("TLS: {error}")))?))
    }

    /// [`RedisConfig::check`] refuses TLS without the feature.
    #[cfg(not(feature = "tls"))]
    async fn open(&self, _: &str, address: SocketAddr) -> Result<Box<dyn Stream>, BackendError> {
        Ok(Box::new(self.open_plain(address).await?))
    }

    async fn open_plain(&self, address: SocketAddr) -> Result<TcpStream, BackendError> {
        let failed = |error| self.failure(&address.to_string(), error);
        let stream = TcpStream::connect(address).await.map_err(failed)?;
        stream.set_nodelay(true).map_err(failed)?;
        Ok(stream)
    }

    fn failure(&self, host: &str, reason: impl std::fmt::Display) -> BackendError {
        BackendError::new(Unavailable, format!("Redis at {host}: {reason}"))
    }

    pub(crate) async fn close(&self) {
        self.link.lock().await.current = None;
        self.hints.end();
    }
}

impl Connection {
    /// `standalone`, `cluster` or `sentinel`.
    pub(crate) fn mode(&self) -> &str {
        match self.get("server_mode") {
            "" => self.get("redis_mode"),
            mode => mode,
        }
    }

    /// What the server said of itself; empty if it did not.
    pub(crate) fn get(&self, field: &str) -> &str {
        self.info.get(field).map_or("", String::as_str)
    }
}
