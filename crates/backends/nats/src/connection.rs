//! Connections, and requests that are bounded in time.

use std::{
    future::pending,
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, Ordering::Relaxed},
    },
    time::Duration,
};

use async_nats::{
    Client, ConnectErrorKind, ConnectOptions, Event, HeaderMap, Message, ReconnectToServer, Request,
    RequestErrorKind, ServerAddr,
};
use futures::{FutureExt as _, StreamExt as _, future::join_all, stream::FuturesUnordered};
use serde_json::Value;
use tenure_core::{
    Secret,
    internal::lock,
    spi::{
        BackendError,
        BackendErrorKind::{self, Forbidden, Invalid, Unauthorized, Unavailable},
    },
};
use tokio::{sync::watch, time::timeout};
use tracing::{debug, instrument::WithSubscriber as _, subscriber::NoSubscriber};

use crate::{
    bucket,
    config::{Login, NatsConfig},
};

/// An address where nothing listens.
const UNREACHABLE_ADDRESS: &str = "nats://127.0.0.1:0";
/// How many refusals of a connection are remembered.
const MAX_REFUSALS: usize = 16;

/// In earlier versions two swaps of the same version can both be done when the leader of the stream changes: a new leader serves before it has
/// applied its log, and does not know of conditional writes in flight (nats-server#6194, #6485, #6518).
const MIN_VERSION: (u64, u64, u64) = (2, 11, 0);

/// Connects when there is something to send, and sends requests.
#[derive(Debug)]
pub(crate) struct Requests {
    pub(crate) config: NatsConfig,
    current: Mutex<Option<Arc<Connection>>>,
    /// Held by the one who connects.
    connecting: tokio::sync::Mutex<()>,
    /// When the bucket was created, as it was first seen: identifies it.
    created: Mutex<Option<String>>,
}

/// A connection to a server.
#[derive(Debug)]
pub(crate) struct Connection {
    pub(crate) client: Client,
    inbox: String,
    limit: Duration,
    /// The refusals that the server has reported: for what the user may not do there is no other answer.
    refusals: Arc<watch::Sender<Vec<String>>>,
    /// There was no answer, or a wrong one: another connection is made.
    is_unusable: AtomicBool,
    /// Nobody has answered the last request. The bucket is looked at when somebody answers: without a leader there is nothing to see.
    had_no_responders: AtomicBool,
    /// The bucket may be another one by now.
    is_unchecked: AtomicBool,
}

impl Requests {
    pub(crate) fn new(config: NatsConfig) -> Self {
        Self {
            config,
            current: Mutex::default(),
            connecting: tokio::sync::Mutex::default(),
            created: Mutex::default(),
        }
    }

    /// The connection, if there is one.
    pub(crate) fn current(&self) -> Option<Arc<Connection>> {
        lock(&self.current).clone().filter(|connection| connection.is_open())
    }

    /// Sends a request, and returns its answer in JSON.
    ///
    /// A connection without an answer is replaced: the request may be carried out later.
    pub(crate) async fn json(
        &self,
        what: &str,
        subject: &str,
        headers: HeaderMap,
        body: Vec<u8>,
    ) -> Result<Value, BackendError> {
        let connection = self.connection().await?;
        if body.len() + 1024 > connection.client.max_payload() {
            let text = format!(
                "{what}: the record has {} bytes, which is more than the server's max_payload; raise it",
                body.len()
            );
            return Err(BackendError::new(Invalid, text));
        }
        connection.json(what, subject, headers, body).await
    }

    /// Makes the next request look whether the bucket is the one of before.
    pub(crate) fn check_bucket(&self) {
        if let Some(connection) = &*lock(&self.current) {
            connection.is_unchecked.store(true, Relaxed);
        }
    }

    async fn connection(&self) -> Result<Arc<Connection>, BackendError> {
        let is_checked = |connection: &Arc<Connection>| !connection.is_unchecked.load(Relaxed);
        if let Some(connection) = self.current().filter(is_checked) {
            return Ok(connection);
        }
        let _connecting = self.connecting.lock().await;
        let connection = match self.current() {
            Some(connection) if is_checked(&connection) => return Ok(connection),
            Some(connection) => connection,
            None => Arc::new(self.connect().await?),
        };
        let known = lock(&self.created).clone();
        let created = bucket::open(&connection, &self.config, known.is_none()).await?;
        if known.is_some() && known != created {
            *lock(&self.current) = None;
            let text = format!(
                "the bucket {} was deleted or created again, or the server belongs to another cluster than before: records were lost; stop all \
                 candidates for the longest TTL and start them again",
                self.config.bucket
            );
            return Err(BackendError::new(Unavailable, text));
        }
        if known.is_none() {
            self.compare_hosts().await?;
        }
        connection.is_unchecked.store(false, Relaxed);
        *lock(&self.created) = created;
        *lock(&self.current) = Some(Arc::clone(&connection));
        Ok(connection)
    }

    /// Refuses hosts of different clusters, each of which has a bucket of its own (hazard G34). Hosts that do not answer soon are not compared.
    pub(crate) async fn compare_hosts(&self) -> Result<(), BackendError> {
        let (hosts, config) = (&self.config.hosts, &self.config);
        if hosts.len() == 1 {
            return Ok(());
        }
        let buckets = hosts.iter().map(|host| async move {
            let connection = self.connect_host(host).await.ok()?;
            // A cluster without the bucket gets one.
            Some((host, bucket::open(&connection, config, true).await.ok()?))
        });
        let found = join_all(buckets.map(|bucket| timeout(config.settings.request_timeout(), bucket))).await;
        let found: Vec<_> = found.into_iter().filter_map(|found| found.ok().flatten()).collect();
        let Some((first, created)) = found.first() else { return Ok(()) };
        let Some((other, _)) = found.iter().find(|(_, other)| other != created) else { return Ok(()) };
        let text = format!(
            "{first} and {other} belong to different clusters of NATS: two candidates could lead; name the servers of one"
        );
        Err(BackendError::new(Invalid, text))
    }

    /// Connects to all servers at once, and uses the one that answers first: others may be frozen.
    async fn connect(&self) -> Result<Connection, BackendError> {
        let mut attempts: FuturesUnordered<_> =
            self.config.hosts.iter().map(|host| self.connect_host(host)).collect();
        let mut failures = Vec::new();
        while let Some(outcome) = attempts.next().await {
            match outcome {
                Ok(connection) => return Ok(connection),
                Err(error) => {
                    debug!(%error, "cannot use a server of NATS");
                    failures.push(error);
                }
            }
        }
        Err(BackendError::of_hosts(failures))
    }

    /// Connects to a server with the secret, or with each that a rotated file may have (hazard G33).
    pub(crate) async fn connect_host(&self, host: &str) -> Result<Connection, BackendError> {
        let Some(password) = self.config.login.secret() else { return self.log_in(host, None).await };
        password.try_each(async |secret: Secret| self.log_in(host, Some(&secret)).await).await
    }

    async fn log_in(&self, host: &str, secret: Option<&Secret>) -> Result<Connection, BackendError> {
        let what = format!("connecting to NATS at {host}");
        let refusals = Arc::new(watch::Sender::new(Vec::<String>::new()));
        let reported = Arc::clone(&refusals);
        let options = self
            .options(secret)
            .await
            .map_err(|reason| BackendError::new(Invalid, format!("{what}: {reason}")))?
            .event_callback(move |event| {
                if let Event::ServerError(error) = event {
                    reported.send_modify(|reported| {
                        reported.truncate(MAX_REFUSALS - 1);
                        reported.insert(0, error.to_string().to_lowercase());
                    });
                }
                std::future::ready(())
            });
        let scheme = if self.config.tls.is_some() { "tls" } else { "nats" };
        let addresses = [format!("{scheme}://{host}"), UNREACHABLE_ADDRESS.to_owned()];
        let addresses =
            addresses.iter().map(|address| address.parse()).collect::<Result<Vec<ServerAddr>, _>>();
        let addresses = addresses.map_err(|error| BackendError::new(Invalid, format!("{what}: {error}")))?;
        // What it logs is in the errors, and at the level of traces it logs the password.
        let connecting = options.connect(addresses).with_subscriber(NoSubscriber::default());
        let client = timeout(self.config.settings.request_timeout(), connecting)
            .await
            .map_err(|_| timed_out(&what, self.config.settings.request_timeout()))?
            .map_err(|error| self.classify(&what, &error))?;
        let version = client.server_info().version;
        check_version(&version).map_err(|reason| BackendError::new(Invalid, format!("{what}: {reason}")))?;
        Ok(Connection {
            client,
            inbox: format!("{}.", self.config.inbox_prefix).to_lowercase(),
            limit: self.config.settings.request_timeout(),
            refusals,
            is_unusable: AtomicBool::new(false),
            had_no_responders: AtomicBool::new(false),
            is_unchecked: AtomicBool::new(false),
        })
    }

    async fn options(&self, secret: Option<&Secret>) -> Result<ConnectOptions, String> {
        let is_first = AtomicBool::new(true);
        let options = ConnectOptions::new()
            .name("tenure")
            .custom_inbox_prefix(&self.config.inbox_prefix)
            .connection_timeout(self.config.settings.request_timeout())
            .ping_interval(self.config.settings.request_timeout())
            .ignore_discovered_servers()
            // The client library opens a connection again by itself, with the password and the certificates of before, and without looking at
            // the bucket. It is led to an address where nothing listens, and gives up.
            .max_reconnects(1)
            .reconnect_to_server_callback(move |servers, _| {
                let is_first = is_first.swap(false, Relaxed);
                let server = servers.into_iter().find(|server| (server.addr.port() == 0) != is_first);
                let chosen =
                    server.map(|server| ReconnectToServer { addr: server.addr, delay: Some(Duration::ZERO) });
                std::future::ready(chosen)
            });
        let secret = || secret.map(|secret| secret.expose().to_owned()).unwrap_or_default();
        let options = match &self.config.login {
            Login::None => options,
            Login::User(user, _) => options.user_and_password(user.clone(), secret()),
            Login::Token(_) => options.token(secret()),
            Login::Credentials(_) => options
                .credentials(&secret())
                .map_err(|_| "the file of credentials has no JWT with the seed of its key".to_owned())?,
            Login::Nkey(_) => options.nkey(secret()),
        };
        Ok(options.tls_client_config(self.tls_config().await?))
    }

    /// The configured authorities; none without TLS, so that a server that asks for it is not trusted.
    async fn tls_config(&self) -> Result<rustls::ClientConfig, String> {
        #[cfg(feature = "tls")]
        if let Some(tls) = &self.config.tls {
            return tls.current().await.client_config();
        }
        let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
        let config =
            rustls::ClientConfig::builder_with_provider(provider).with_safe_default_protocol_versions();
        let roots = rustls::RootCertStore::empty();
        Ok(config.map_err(|error| error.to_string())?.with_root_certificates(roots).with_no_client_auth())
    }

    fn classify(&self, what: &str, error: &async_nats::ConnectError) -> BackendError {
        let is_refused = matches!(
            error.kind(),
            ConnectErrorKind::AuthorizationViolation | ConnectErrorKind::Authentication
        );
        if is_refused {
            let advice = match self.config.login {
                Login::None => {
                    "the server asks for a login; give user:password@, token_file, credentials or nkey_file"
                }
                _ => "the server refuses the login; check the user, and the password or the key",
            };
            return BackendError::new(Unauthorized, format!("{what}: {advice}"));
        }
        let text = error.to_string();
        let advice = match text.contains("certificate") {
            true if self.config.tls.is_none() => {
                "; the server asks for TLS: give ca=/path/to/authorities.pem"
            }
            true => "; check ca, and the name and the date of the server's certificate",
            false => "",
        };
        BackendError::new(Unavailable, format!("{what}: {text}{advice}"))
    }

    /// Sends what is left to be sent, and disconnects.
    pub(crate) async fn close(&self) {
        let connection = lock(&self.current).take();
        if let Some(connection) = connection {
            let _ = timeout(self.config.settings.request_timeout(), connection.client.flush()).await;
        }
    }
}

impl Connection {
    fn is_open(&self) -> bool {
        let is_connected = self.client.connection_state() == async_nats::connection::State::Connected;
        is_connected && !self.is_unusable.load(Relaxed)
    }

    /// As [`Requests::json`].
    pub(crate) async fn json(
        &self,
        what: &str,
        subject: &str,
        headers: HeaderMap,
        body: Vec<u8>,
    ) -> Result<Value, BackendError> {
        let answer = self.request(what, subject, headers, body).await?;
        let answer: Value =
            serde_json::from_slice(&answer.payload).map_err(|_| self.unusable(unexpected(what)))?;
        if self.had_no_responders.swap(false, Relaxed) || error_code(&answer["error"]) == NOT_FOUND {
            self.is_unchecked.store(true, Relaxed);
        }
        Ok(answer)
    }

    async fn request(
        &self,
        what: &str,
        subject: &str,
        headers: HeaderMap,
        body: Vec<u8>,
    ) -> Result<Message, BackendError> {
        let request = Request::new().headers(headers).payload(body.into()).timeout(None);
        let answer = timeout(self.limit, self.client.send_request(subject.to_owned(), request));
        tokio::select! {
            biased;
            answer = answer => match answer {
                Ok(Ok(message)) => Ok(message),
                Ok(Err(error)) if error.kind() == RequestErrorKind::NoResponders => {
                    self.had_no_responders.store(true, Relaxed);
                    let text = format!("{what}: nobody answers at {subject}: JetStream is not enabled, is starting, or the bucket has no leader or was deleted");
                    Err(BackendError::new(Unavailable, text))
                }
                Ok(Err(error)) => Err(self.unusable(BackendError::new(Unavailable, format!("{what}: {error}")))),
                Err(_) => Err(self.unusable(timed_out(what, self.limit))),
            },
            refusal = self.refusal(subject) => {
                Err(BackendError::new(Forbidden, format!("{what}: {refusal}; have an administrator allow it: see the permissions in tenure's guide to NATS")))
            }
        }
    }

    /// Makes the next request open another connection.
    fn unusable(&self, error: BackendError) -> BackendError {
        self.is_unusable.store(true, Relaxed);
        error
    }

    /// Waits until the server has reported that the user may not use `subject`, or may not receive answers.
    async fn refusal(&self, subject: &str) -> String {
        let subject = format!("\"{}\"", subject.to_lowercase());
        let inbox = format!("subscription to \"{}", self.inbox);
        let is_about = |refusal: &String| refusal.contains(&subject) || refusal.contains(&inbox);
        let mut refusals = self.refusals.subscribe();
        let found = refusals.wait_for(|refusals| refusals.iter().any(is_about)).await;
        let found =
            found.ok().and_then(|refusals| refusals.iter().find(|refusal| is_about(refusal)).cloned());
        let Some(found) = found else { return pending().await };
        if found.contains(&inbox) {
            // A connection reports it once.
            self.is_unusable.store(true, Relaxed);
        } else {
            // The next request is reported again, or is allowed by then.
            self.refusals.send_modify(|refusals| {
                if let Some(reported) = refusals.iter().position(|refusal| *refusal == found) {
                    refusals.remove(reported);
                }
            });
        }
        found
    }

    /// Publishes without an answer, or not at all when the connection is busy.
    pub(crate) fn publish(&self, subject: String) {
        let _ = self.client.publish(subject, Vec::new().into()).now_or_never();
    }
}

/// Refuses a server that is too old, or that does not tell its version.
fn check_version(version: &str) -> Result<(), String> {
    let (numbers, rest) = version.split_at(version.find(['-', '+']).unwrap_or(version.len()));
    let is_preview = rest.starts_with('-');
    let numbers: Vec<_> = numbers.split('.').map(str::parse).collect();
    if let [Ok(major), Ok(minor), Ok(patch)] = numbers[..]
        && ((major, minor, patch) > MIN_VERSION || (major, minor, patch) == MIN_VERSION && !is_preview)
    {
        return Ok(());
    }
    Err(format!(
        "the server is NATS {version:?}, and a conditional write is safe only from 2.11.0 on: with earlier ones two candidates could lead when the \
         leader of the bucket changes; update all servers of the cluster"
    ))
}

/// The error in an answer of JetStream, by its kind.
pub(crate) fn refused(what: &str, error: &Value) -> BackendError {
    let (code, text) =
        (error["code"].as_u64(), error["description"].as_str().unwrap_or("refused without a reason"));
    let (kind, advice) = match error_code(error) {
        NOT_FOUND => (Unavailable, "; it was deleted"),
        // Of the account, or of the server.
        10_039 | 10_076 => {
            (Unavailable, "; enable JetStream in the servers' configuration, for this account")
        }
        _ if code.is_some_and(|code| (400..500).contains(&code)) => (Invalid, ""),
        _ => (Unavailable, ""),
    };
    BackendError::new(kind, format!("{what}: {text}{advice}"))
}

/// The stream does not exist.
pub(crate) const NOT_FOUND: u64 = 10_059;

/// JetStream's number of an error.
pub(crate) fn error_code(error: &Value) -> u64 {
    error["err_code"].as_u64().unwrap_or_default()
}

fn timed_out(what: &str, limit: Duration) -> BackendError {
    BackendError::new(BackendErrorKind::Unavailable, format!("{what}: no answer within {limit:?}"))
}

/// The request may have been carried out.
pub(crate) fn unexpected(what: &str) -> BackendError {
    BackendError::new(Unavailable, format!("{what}: the server's answer is not what was asked for"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_server_that_is_too_old_is_refused() {
        for version in ["2.11.0", "2.11.3+build-1", "2.12.0-RC.1", "2.15.1", "3.0.0", "10.1.0"] {
            assert_eq!(check_version(version), Ok(()), "{version}");
        }
        for version in
            ["2.10.27", "2.9.25", "1.99.0", "2.11.0-RC.1", "v2", "2", "2.15", "", "nats", "-", "9.9.9.9"]
        {
            let refused = check_version(version).unwrap_err();
            let names = refused.contains(&format!("{version:?}")) && refused.contains("2.11.0");
            assert!(names && refused.contains("update all servers"), "{refused}");
        }
    }
}
