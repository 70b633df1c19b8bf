//! One connection to a server.

use std::{collections::HashMap, fmt, net::IpAddr, sync::Arc, time::Duration};

use futures::{FutureExt as _, future::select_ok};
use mysql_async::{
    Conn, Error, Opts, OptsBuilder, Params, Row, Value,
    prelude::{FromValue, Queryable as _},
};
use tenure_core::{
    Secret, TlsPem,
    spi::{BackendError, BackendErrorKind},
};
use tokio::net::lookup_host;

use crate::{
    config::MysqlConfig,
    error::{NO_SUCH_TABLE, classify, unavailable},
    schema::Statements,
};

/// How soon a connection without traffic is probed. A peer that has gone without a word is noticed by it.
const KEEPALIVE: Duration = Duration::from_secs(5);
/// The largest packet: a record, with what is around it.
const MAX_PACKET: usize = 1 << 20;
/// The largest answer: all records.
const MAX_ANSWER: usize = 64 << 20;

const VARIABLES: &str = "SHOW GLOBAL VARIABLES WHERE Variable_name IN ('version', 'version_comment', 'read_only', 'server_uuid', 'wsrep_on', \
'innodb_flush_log_at_trx_commit', 'sync_binlog', 'log_bin', 'binlog_format', 'max_allowed_packet', 'hostname')";
const STATUS: &str = "SHOW GLOBAL STATUS WHERE Variable_name IN ('Slaves_running', 'Slaves_connected', 'wsrep_cluster_status', \
'wsrep_cluster_size', 'wsrep_local_state_comment')";

/// What tells servers apart.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Flavour {
    /// A node of a Galera cluster, which is one server as far as its records go.
    Galera,
    Mariadb,
    Mysql,
}

/// A connection that was set up.
pub(crate) struct Server {
    conn: Conn,
    pub(crate) statements: Arc<Statements>,
    pub(crate) info: Info,
    /// What its table of epochs had when the connection was made; `None` if there was none, or no row.
    pub(crate) found: Option<Found>,
    /// The number of changes of the primary before the connection was made.
    pub(crate) generation: u64,
}

/// What a server has in its table of epochs.
#[derive(Clone, Debug)]
pub(crate) struct Found {
    /// Whether the last epoch began on this server.
    pub(crate) is_primary: bool,
    pub(crate) epoch: u64,
    /// The server's identity.
    pub(crate) server: String,
}

/// What a server reports about itself.
#[derive(Clone, Debug)]
pub(crate) struct Info {
    pub(crate) name: String,
    pub(crate) flavour: Flavour,
    values: HashMap<String, String>,
}

/// The answer to a statement.
#[derive(Debug)]
pub(crate) struct Answer {
    pub(crate) rows: Vec<Row>,
    pub(crate) affected: u64,
}

impl Server {
    /// Connects to a host: to whichever of its addresses answers first.
    pub(crate) async fn open(config: &MysqlConfig, host: &str, port: u16) -> Result<Self, BackendError> {
        let what = format!("connecting to {host}:{port}");
        let failed = |error: std::io::Error| unavailable(format!("{what}: {error}"));
        let addresses: Vec<_> = lookup_host((host, port)).await.map_err(failed)?.map(|it| it.ip()).collect();
        if addresses.is_empty() {
            return Err(unavailable(format!("{what}: the name has no address")));
        }
        let attempts = addresses.into_iter().map(|ip| Self::open_address(config, host, port, ip).boxed());
        select_ok(attempts).await.map(|(server, _)| server)
    }

    async fn open_address(
        config: &MysqlConfig,
        host: &str,
        port: u16,
        ip: IpAddr,
    ) -> Result<Self, BackendError> {
        let what = format!("connecting to {host}:{port} as {}", config.user);
        let options = OptsBuilder::default()
            .ip_or_hostname(host)
            .resolved_ips(Some(vec![ip]))
            .tcp_port(port)
            .user(Some(&config.user))
            .db_name(Some(&config.database))
            .prefer_socket(false)
            .tcp_keepalive(Some(KEEPALIVE))
            .max_allowed_packet(Some(MAX_PACKET))
            .wait_timeout(Some(0));
        let options = match &config.tls {
            Some(tls) => with_tls(options, &*tls.current().await)
                .map_err(|reason| invalid(format!("{what}: {reason}")))?,
            None => options,
        };
        let conn = log_in(config, &what, options).await?;
        Self::set_up(config, conn, format!("{host}:{port}")).await
    }

    async fn set_up(config: &MysqlConfig, mut conn: Conn, host: String) -> Result<Self, BackendError> {
        let what = format!("setting up a connection to {host}");
        let failed = |error: Error| classify(&what, &error);
        let mut values = HashMap::new();
        for statement in [VARIABLES, STATUS] {
            let rows: Vec<Row> = conn.query(statement).await.map_err(failed)?;
            let pairs =
                rows.into_iter().filter_map(|mut row| Some((column(&mut row, 0)?, column(&mut row, 1)?)));
            values.extend(pairs.take(100));
        }
        let info = Info::new(host, values)?;
        info.check(config)?;
        // The last wait is that for a lock of a whole table, such as of ALTER TABLE.
        let galera = if info.flavour == Flavour::Galera { ", wsrep_sync_wait = 15" } else { "" };
        for statement in [
            "SET SESSION TRANSACTION ISOLATION LEVEL REPEATABLE READ, READ WRITE".to_owned(),
            format!(
                "SET SESSION autocommit = 1, sql_mode = 'STRICT_ALL_TABLES,NO_ENGINE_SUBSTITUTION', wait_timeout = 28800, \
                 innodb_lock_wait_timeout = 1, lock_wait_timeout = 1{galera}"
            ),
        ] {
            conn.query_drop(statement).await.map_err(failed)?;
        }
        let statements = Arc::new(Statements::new(info.flavour));
        let mut server = Self { conn, statements, info, found: None, generation: 0 };
        server.look().await?;
        Ok(server)
    }

    /// Reads the table of epochs.
    pub(crate) async fn look(&mut self) -> Result<(), BackendError> {
        let what = format!("reading the epoch of {}", self.info.name);
        let statements = Arc::clone(&self.statements);
        let mut rows = match self.run(&statements.epoch, Vec::new()).await {
            Ok(answer) => answer.rows,
            Err(Error::Server(refusal)) if refusal.code == NO_SUCH_TABLE => Vec::new(),
            Err(error) => return Err(classify(&what, &error)),
        };
        let found = rows.first_mut().map(|row| (column(row, 0), column(row, 1), column(row, 2)));
        self.found = match found {
            None => None,
            Some((Some(is_primary), Some(epoch), Some(server))) => Some(Found { is_primary, epoch, server }),
            Some(_) => return Err(unavailable(format!("{what}: the answer is not what was asked for"))),
        };
        Ok(())
    }

    /// Carries out one statement. After an error that is not the server's, and when the future was dropped, the connection cannot be used.
    pub(crate) async fn run(&mut self, statement: &str, parameters: Vec<Value>) -> Result<Answer, Error> {
        let parameters = if parameters.is_empty() { Params::Empty } else { Params::Positional(parameters) };
        let mut result = self.conn.exec_iter(statement, parameters).await?;
        let (mut answer, mut bytes) = (Answer { rows: Vec::new(), affected: result.affected_rows() }, 0);
        while let Some(row) = result.next().await? {
            let sizes = (0..row.len()).filter_map(|column| row.as_ref(column)).map(|value| match value {
                Value::Bytes(bytes) => bytes.len(),
                _ => size_of::<Value>(),
            });
            bytes += sizes.sum::<usize>();
            if bytes > MAX_ANSWER {
                return Err(Error::Other(format!("the answer is larger than {MAX_ANSWER} bytes").into()));
            }
            answer.rows.push(row);
        }
        Ok(answer)
    }

    /// Carries out a statement that only an owner may be allowed to.
    pub(crate) async fn define(&mut self, statement: &str) -> Result<(), Error> {
        self.conn.query_drop(statement).await
    }

    pub(crate) async fn close(self) {
        let _ = self.conn.disconnect().await;
    }
}

impl fmt::Debug for Server {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Server").field("info", &self.info).finish_non_exhaustive()
    }
}

/// Logs in with the password, or with each that a rotated file may have (hazard G33).
async fn log_in(config: &MysqlConfig, what: &str, options: OptsBuilder) -> Result<Conn, BackendError> {
    let open = |password: Option<&str>| Conn::new(Opts::from(options.clone().pass(password)));
    let Some(password) = &config.password else {
        return open(None).await.map_err(|error| classify(what, &error));
    };
    let attempt =
        async |secret: Secret| open(Some(secret.expose())).await.map_err(|error| classify(what, &error));
    password.try_each(attempt).await
}

#[cfg(feature = "tls")]
fn with_tls(options: OptsBuilder, pem: &TlsPem) -> Result<OptsBuilder, String> {
    use mysql_async::{ClientIdentity, SslOpts};

    // What is wrong with the certificates is said here, by name.
    pem.client_config()?;
    if pem.ca().contains("X509 CRL") {
        return Err("the file of the authorities has a revocation list, which the client library does not check; remove it".to_owned());
    }
    let bytes = |text: &str| text.as_bytes().to_vec().into();
    let identity = pem.identity().map(|(cert, key)| ClientIdentity::new(bytes(cert), bytes(key.expose())));
    let tls = SslOpts::default()
        .with_root_certs(vec![bytes(pem.ca())])
        .with_disable_built_in_roots(true)
        .with_client_identity(identity);
    Ok(options.ssl_opts(tls))
}

/// [`MysqlConfig::check`] refuses TLS without the feature.
#[cfg(not(feature = "tls"))]
fn with_tls(options: OptsBuilder, _: &TlsPem) -> Result<OptsBuilder, String> {
    Ok(options)
}

impl Info {
    fn new(host: String, values: HashMap<String, String>) -> Result<Self, BackendError> {
        let value = |name: &str| values.get(name).map_or("", String::as_str);
        let version = value("version");
        if version.is_empty() {
            return Err(unavailable(format!("{host} does not say what it is")));
        }
        let (product, flavour) = match (value("wsrep_on"), version.contains("MariaDB"), value("server_uuid"))
        {
            ("ON", ..) => ("a Galera node", Flavour::Galera),
            (_, true, _) => ("MariaDB", Flavour::Mariadb),
            (_, false, "") => {
                return Err(invalid(format!("{host} is neither MariaDB nor MySQL: it has no server_uuid")));
            }
            (_, false, _) => ("MySQL", Flavour::Mysql),
        };
        let name = format!("{host} ({product} {version}, host {})", value("hostname"));
        Ok(Self { name, flavour, values })
    }

    /// A variable or a status of the server.
    pub(crate) fn value(&self, name: &str) -> &str {
        self.values.get(name).map_or("", String::as_str)
    }

    /// Whether the server may hold the elections.
    fn check(&self, config: &MysqlConfig) -> Result<(), BackendError> {
        let name = &self.name;
        if !matches!(self.value("read_only"), "OFF" | "0") {
            return Err(unavailable(format!(
                "{name} is read-only, as a replica is; name the primary in the URL, too"
            )));
        }
        if !matches!(self.value("Slaves_running"), "" | "0") {
            return Err(unavailable(format!(
                "{name} replicates from another server: two primaries could elect two leaders; set read_only on it, or end the replication if it \
                 was promoted"
            )));
        }
        if self.value("max_allowed_packet").parse().is_ok_and(|bytes: usize| bytes < MAX_PACKET) {
            return Err(invalid(format!(
                "{name} has a max_allowed_packet of less than 1M: set it to at least that"
            )));
        }
        if self.value("log_bin") == "ON" && self.value("binlog_format") == "STATEMENT" {
            return Err(invalid(format!(
                "{name} has binlog_format=STATEMENT, with which its replicas would not have its elections: set ROW or MIXED"
            )));
        }
        match self.unsafe_durability() {
            Some(reason) if !config.allows_unsafe_durability => Err(invalid(format!(
                "{name} has {reason}: a crash of its machine loses acknowledged writes, after which two candidates could lead, with the same \
                 fencing token; set it to 1, or give durability=unsafe to accept that"
            ))),
            _ => Ok(()),
        }
    }

    /// The setting with which a crash of the machine loses acknowledged writes. In a Galera cluster the other nodes have them.
    pub(crate) fn unsafe_durability(&self) -> Option<String> {
        let flush = self.value("innodb_flush_log_at_trx_commit");
        if self.flavour == Flavour::Galera {
            None
        } else if flush != "1" {
            Some(format!("innodb_flush_log_at_trx_commit={flush}"))
        } else if self.value("log_bin") == "ON" && self.value("sync_binlog") != "1" {
            Some(format!("log_bin and sync_binlog={}", self.value("sync_binlog")))
        } else {
            None
        }
    }
}

/// A column, if there is one of this type.
pub(crate) fn column<T: FromValue>(row: &mut Row, column: usize) -> Option<T> {
    row.take_opt(column)?.ok()
}

pub(crate) fn invalid(text: String) -> BackendError {
    BackendError::new(BackendErrorKind::Invalid, text)
}
