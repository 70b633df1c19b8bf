//! The settings of a PostgreSQL server in tests.

use crate::{
    spec::ContainerSpec,
    tls::{TlsFiles, write_file_script},
    version::Version,
};

const PORT: u16 = 5432;
const PGBOUNCER_PORT: u16 = 6432;

/// Makes the programs of the one version in the image known, and runs some of them as the user that PostgreSQL asks for.
const PRELUDE: &str = "\
PATH=$(echo /usr/lib/postgresql/*/bin):$PATH
as_postgres() { setpriv --reuid=postgres --regid=postgres --init-groups \"$@\"; }
chown postgres /data
";

/// Segments of 1 MB keep the disk small.
const INITDB: &str = "as_postgres initdb --pgdata=/data/new --username=postgres --auth=trust --encoding=UTF8 \
                      --locale=C.UTF-8 --wal-segsize=1 --no-sync";

/// Every rule for connections starts with these: a test administers the server, and replicas copy it, without a password.
const ADMIN_RULES: [&str; 3] =
    ["local all all trust", "host all postgres all trust", "host replication postgres all trust"];

/// The settings of a PostgreSQL server in tests.
///
/// By default everybody may log in without a password, nothing is flushed to the disk, and there is no TLS.
#[derive(Clone, Debug)]
pub struct PostgresSettings {
    configuration: Vec<(String, String)>,
    rules: Vec<String>,
    tls: Option<TlsFiles>,
    pgbouncer: Option<Vec<(String, String)>>,
    /// Decides at the start of a member of a cluster what the member is.
    role: Option<Role>,
}

/// What a member of a cluster starts as.
#[derive(Clone, Debug)]
pub(super) struct Role {
    /// The address of the other member.
    pub(super) peer: String,
    /// Whether the member starts with a copy of the other.
    pub(super) starts_as_replica: bool,
}

impl Default for PostgresSettings {
    fn default() -> Self {
        let settings = Self {
            configuration: Vec::new(),
            rules: vec!["host all all all trust".to_owned()],
            tls: None,
            pgbouncer: None,
            role: None,
        };
        settings
            .set("listen_addresses", "*")
            .set("unix_socket_directories", "/tmp")
            .set("fsync", "off")
            // A trial has fifty candidates, each with three connections.
            .set("max_connections", "300")
            .set("shared_buffers", "32MB")
            .set("max_wal_size", "64MB")
    }
}

impl PostgresSettings {
    /// Sets a setting of `postgresql.conf`. The last value counts.
    pub fn set(mut self, key: impl Into<String>, value: impl Into<String>) -> Self {
        let (key, value) = (key.into(), value.into());
        self.configuration.retain(|(existing, _)| *existing != key);
        self.configuration.push((key, value));
        self
    }

    /// Replaces the rules of `pg_hba.conf` by which users other than `postgres` connect, for example
    /// `hostssl all all all scram-sha-256`.
    pub fn access_rules(mut self, rules: &[&str]) -> Self {
        self.rules = rules.iter().map(|&rule| rule.to_owned()).collect();
        self
    }

    /// Clients may speak TLS, at the same endpoint, and present a certificate. The [rules](Self::access_rules) say who has
    /// to.
    pub fn tls(mut self, files: TlsFiles) -> Self {
        self.tls = Some(files);
        self.set("ssl", "on")
            .set("ssl_ca_file", TlsFiles::CA)
            .set("ssl_cert_file", TlsFiles::CERT)
            .set("ssl_key_file", TlsFiles::KEY)
    }

    /// Starts PgBouncer before the server, in transaction mode and for the user `postgres`, with additional settings of its
    /// section `[pgbouncer]`. Only PostgreSQL 17's image has it.
    pub fn pgbouncer(mut self, settings: &[(&str, &str)]) -> Self {
        let owned = settings.iter().map(|&(key, value)| (key.to_owned(), value.to_owned()));
        self.pgbouncer = Some(owned.collect());
        self
    }

    pub(super) fn role(mut self, role: Role) -> Self {
        self.role = Some(role);
        self
    }

    pub(super) fn spec(&self, version: Version) -> ContainerSpec {
        let arguments = vec!["-ec".to_owned(), self.start_script()];
        ContainerSpec {
            second_port: self.pgbouncer.as_ref().map(|_| PGBOUNCER_PORT),
            // A fast shutdown: SIGTERM would wait for the clients.
            stop_signal: "SIGINT",
            ..ContainerSpec::new(version, PORT, "sh", arguments)
        }
    }

    /// A shell script that makes the data directory, unless there is one, and runs the server.
    fn start_script(&self) -> String {
        let create = self.create_script();
        let tls = self.tls.as_ref().map(tls_script).unwrap_or_default();
        let pgbouncer = self.pgbouncer.as_deref().map(pgbouncer_script).unwrap_or_default();
        let run = "exec setpriv --reuid=postgres --regid=postgres --init-groups postgres -D /data/postgres";
        match &self.role {
            None => format!(
                "{PRELUDE}if [ ! -e /data/postgres ]; then\nrm -rf /data/new\n{create}{tls}mv /data/new /data/postgres\nfi\n\
                 {pgbouncer}{run}"
            ),
            Some(role) => {
                let Role { peer, starts_as_replica } = role;
                let create = match starts_as_replica {
                    true => "copy_peer\n".to_owned(),
                    false => format!("rm -rf /data/new\n{create}mv /data/new /data/postgres\n"),
                };
                format!(
                    "{PRELUDE}peer={peer}\n{MEMBER_FUNCTIONS}if [ ! -e /data/postgres ]; then\n{create}fi\n{DECIDE_ROLE}\
                     {run} -c primary_conninfo=\"$from_peer\""
                )
            }
        }
    }

    /// A shell script that makes `/data/new`.
    fn create_script(&self) -> String {
        let configuration: String =
            self.configuration.iter().map(|(key, value)| format!("{key} = '{value}'\n")).collect();
        let rules: String = ADMIN_RULES
            .iter()
            .copied()
            .chain(self.rules.iter().map(String::as_str))
            .map(|rule| format!("{rule}\n"))
            .collect();
        [
            format!("{INITDB}\n"),
            write_file_script("/data/new/pg_hba.conf", rules.as_bytes()),
            write_file_script("/tmp/settings", configuration.as_bytes()),
            "cat /tmp/settings >>/data/new/postgresql.conf\n".to_owned(),
        ]
        .concat()
    }
}

/// PostgreSQL refuses a key that others can read.
fn tls_script(files: &TlsFiles) -> String {
    format!("{}chown postgres /data/*.pem\nchmod 600 /data/*.pem\n", files.write_script())
}

fn pgbouncer_script(settings: &[(String, String)]) -> String {
    let own: String = settings.iter().map(|(key, value)| format!("{key} = {value}\n")).collect();
    let configuration = format!(
        "[databases]\n* = host=127.0.0.1 port={PORT}\n[pgbouncer]\nlisten_addr = *\nlisten_port = {PGBOUNCER_PORT}\n\
         unix_socket_dir =\nauth_type = trust\nauth_file = /data/pgbouncer-users\npool_mode = transaction\n{own}"
    );
    let files = [
        write_file_script("/data/pgbouncer.ini", configuration.as_bytes()),
        write_file_script("/data/pgbouncer-users", b"\"postgres\" \"\"\n"),
    ];
    format!("{}as_postgres pgbouncer --quiet /data/pgbouncer.ini &\n", files.concat())
}

/// What a member of a cluster does with the other: ask it what it is, and make its own data a copy of the other's. A member
/// may start before it is connected to the other's network, and its packets are lost then.
const MEMBER_FUNCTIONS: &str = "\
from_peer=\"host=$peer user=postgres connect_timeout=2 keepalives_idle=1 keepalives_interval=1 keepalives_count=3\"
at_peer() { timeout 10 psql --dbname=\"$from_peer\" --no-psqlrc -qAtc \"$1\" 2>&1; }
copy_peer() {
    rm -rf /data/new /data/postgres
    until as_postgres timeout 60 pg_basebackup --dbname=\"$from_peer\" --pgdata=/data/new -R --checkpoint=fast --no-sync; do
        rm -rf /data/new
        sleep 0.1
    done
    mv /data/new /data/postgres
}
follow_peer() {
    # What it was promoted to is not in its control file before a checkpoint.
    at_peer CHECKPOINT || true
    as_postgres timeout 30 pg_rewind --target-pgdata=/data/postgres -R --no-sync \\
        --source-server=\"$from_peer dbname=postgres\" || copy_peer
}
";

/// Exists once a member that waits was told to be the primary.
pub(super) const LEAD: &str = "touch /tmp/lead";

/// A former primary may be a primary again only if the other member still waits for it, or if it is told to. If the other was
/// promoted meanwhile, the former primary becomes its replica.
const DECIDE_ROLE: &str = "\
rm -f /tmp/lead
while [ ! -e /data/postgres/standby.signal ] && [ -e /data/started ] && [ ! -e /tmp/lead ]; do
    case $(at_peer 'SELECT pg_is_in_recovery()') in
        t) break ;;
        f) follow_peer ;;
        *) sleep 0.1 ;;
    esac
done
touch /data/started
";
