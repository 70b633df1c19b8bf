//! The tables, and the statements.
//!
//! Each request is one statement in a transaction of its own, so that it takes one round trip, works through PgBouncer in transaction
//! mode, and leaves nothing behind in a connection.

/// The timeline of a primary, which rises when a replica is promoted. The control file lags behind it until the next checkpoint.
const TIMELINE: &str = "('x' || substr(pg_walfile_name(pg_current_wal_lsn()), 1, 8))::bit(32)::int";

/// How far the epoch rises when the tables have come to another cluster, beside its timeline. Failovers of the earlier one may be missing in
/// them. The timeline counts, because the rise itself may be lost in the next failover.
const MOVE: i32 = 16;

/// Serializes migrations: `tenure` in hexadecimal.
const MIGRATION_LOCK: &str = "x'74656e757265'::bigint";

/// The version of a record, in hexadecimal: no two bodies are equal.
const VERSION: &str = "encode(sha256(body), 'hex')";

/// The size of a record beyond which the recipe refuses it, so that no more of it has to be read: tenure did not write it.
const MAX_BYTES: usize = 512 * 1024;

/// The channel of the notifications of a schema is this, and its name.
const CHANNEL: &str = "tenure.";

/// The token in the record of an election, as tenure writes it; null in all other rows. It is a column of a key, so that an update which
/// changes it waits for the transactions that a leader has fenced, and one that keeps it does not.
const TOKEN: &str = "substring(encode(substr(body, 1, 128), 'escape') FROM \
'^[{]\"format\":\"[a-z0-9/-]+\",\"token\":([0-9]+)')";

/// Settings of the transaction of a write, set before a row is locked and in force until the commit is answered:
///
/// - An acknowledged commit is on the disk; `off` would lose it in a crash without a new timeline.
/// - A row that a fenced transaction holds delays what is behind on the connection, such as a heartbeat, for so long only.
/// - The warning of a commit that was not replicated is sent.
const SETTINGS: &str = "\
set_config('synchronous_commit', CASE WHEN current_setting('synchronous_commit') IN ('off', 'local') THEN 'on' \
ELSE current_setting('synchronous_commit') END, true) AS commit, \
set_config('lock_timeout', '250ms', true) AS lock, \
set_config('client_min_messages', 'warning', true) AS messages";

/// A setting that is a time, in milliseconds, under its own name. Zero where the version does not have it.
fn milliseconds(setting: &str) -> String {
    format!(
        "coalesce((extract(epoch FROM current_setting('{setting}', true)::interval) * 1000)::int, 0) AS {setting}"
    )
}

/// The statements for one schema.
#[derive(Debug)]
pub(crate) struct Statements {
    /// What a server is: read-only, its cluster, its timeline, whether the schema and the tables exist, its version, and since when it runs.
    /// Tables that the role may not see do not exist for it: the attempt to create them is refused with the rights that are missing.
    pub(crate) inspect: String,
    /// The quoted name of the schema.
    schema: String,
    create_tables: String,
    pub(crate) read: String,
    pub(crate) list: String,
    pub(crate) replace: String,
    pub(crate) create: String,
    pub(crate) delete: String,
    pub(crate) epoch: String,
    pub(crate) listen: String,
    /// Notifies everybody of a record if it has this version: of nothing if the swap before it was not done.
    pub(crate) notify: String,
    /// Notifies everybody of any text.
    pub(crate) probe: String,
    /// What an operator should know of the database, one row with named columns.
    pub(crate) diagnose: String,
}

impl Statements {
    /// For a schema whose name has none but plain characters.
    pub(crate) fn new(schema: &str) -> Self {
        let (records, epochs) = (format!("\"{schema}\".records"), format!("\"{schema}\".epoch"));
        // The epoch that is in force: null when the tables have come from another cluster.
        let epoch = format!(
            "(SELECT base + {TIMELINE} FROM {epochs} WHERE cluster = (SELECT system_identifier FROM pg_control_system()))"
        );
        let checked = format!(
            "checked AS MATERIALIZED (SELECT coalesce({epoch} = $1, false) AS is_current, {SETTINGS})"
        );
        // A notification is committed under a lock of the whole cluster. So the commit waits for neither a flush nor a standby, and not for long for
        // the lock, because other requests are behind it.
        let hint_settings =
            "SELECT set_config('synchronous_commit', 'off', true), set_config('lock_timeout', '100ms', true)";
        let outcome = "SELECT is_current, key IS NOT NULL FROM checked LEFT JOIN swapped ON true";
        Self {
            inspect: format!(
                "SELECT pg_is_in_recovery() OR current_setting('transaction_read_only')::bool AS is_read_only, \
                 (SELECT system_identifier FROM pg_control_system()) AS cluster, \
                 CASE WHEN pg_is_in_recovery() THEN 0 ELSE {TIMELINE} END AS timeline, \
                 to_regnamespace('\"{schema}\"') IS NOT NULL AS has_schema, \
                 CASE WHEN has_schema_privilege(to_regnamespace('\"{schema}\"')::oid, 'USAGE') \
                 THEN to_regclass('{records}') IS NOT NULL AND to_regclass('{epochs}') IS NOT NULL ELSE false END AS has_tables, \
                 current_setting('server_version') AS version, \
                 (extract(epoch FROM pg_postmaster_start_time()) * 1000000)::bigint AS started"
            ),
            schema: format!("\"{schema}\""),
            create_tables: format!(
                "CREATE TABLE IF NOT EXISTS {records} (key text COLLATE \"C\" PRIMARY KEY, body bytea NOT NULL, \
                 token text GENERATED ALWAYS AS ({TOKEN}) STORED, UNIQUE (key, token)) WITH (fillfactor = 50); \
                 CREATE TABLE IF NOT EXISTS {epochs} (id bool PRIMARY KEY DEFAULT true CHECK (id), cluster bigint NOT NULL, \
                 base int NOT NULL, highest int NOT NULL); \
                 INSERT INTO {epochs} (cluster, base, highest) SELECT system_identifier, -1, 0 FROM pg_control_system() \
                 ON CONFLICT DO NOTHING"
            ),
            read: format!("SELECT substr(body, 1, {MAX_BYTES} + 1) FROM {records} WHERE key = $1"),
            list: format!(
                "SELECT key, CASE WHEN octet_length(body) <= {MAX_BYTES} THEN body ELSE '' END FROM {records} WHERE starts_with(key, $1)"
            ),
            replace: format!(
                "WITH {checked}, swapped AS (UPDATE {records} SET body = $3 FROM checked \
                 WHERE is_current AND key = $2 AND {VERSION} = $4 RETURNING key) {outcome}"
            ),
            create: format!(
                "WITH {checked}, swapped AS (INSERT INTO {records} (key, body) SELECT $2, $3 FROM checked WHERE is_current \
                 ON CONFLICT (key) DO NOTHING RETURNING key) {outcome}"
            ),
            delete: format!("DELETE FROM {records} WHERE key = $1 AND {VERSION} = $2 RETURNING true"),
            epoch: format!(
                "WITH now AS MATERIALIZED (SELECT system_identifier, {TIMELINE} AS timeline, {SETTINGS} FROM pg_control_system()), \
                 raised AS (UPDATE {epochs} SET cluster = system_identifier, \
                 base = CASE WHEN cluster = system_identifier AND base + timeline > highest THEN base ELSE highest + {MOVE} END, \
                 highest = CASE WHEN cluster = system_identifier AND base + timeline > highest THEN base + timeline ELSE highest + {MOVE} + timeline END \
                 FROM now WHERE cluster <> system_identifier OR base + timeline <> highest RETURNING highest) \
                 SELECT coalesce((SELECT highest FROM raised), highest) FROM {epochs}"
            ),
            diagnose: format!(
                "SELECT current_setting('fsync')::bool AS fsync, current_setting('full_page_writes')::bool AS full_page_writes, \
                 current_setting('synchronous_standby_names') AS standby_names, current_setting('synchronous_commit') AS commit, \
                 (SELECT count(*) FROM pg_stat_replication) AS standbys, \
                 has_table_privilege('{records}', 'SELECT') AND has_table_privilege('{records}', 'INSERT') AND \
                 has_table_privilege('{records}', 'UPDATE') AND has_table_privilege('{records}', 'DELETE') AND \
                 has_table_privilege('{epochs}', 'SELECT') AND has_table_privilege('{epochs}', 'UPDATE') AS is_permitted, \
                 EXISTS (SELECT FROM pg_class WHERE oid IN ('{records}'::regclass, '{epochs}'::regclass) AND relpersistence <> 'p') \
                 AS is_unlogged, \
                 coalesce((SELECT n_dead_tup FROM pg_stat_user_tables WHERE relid = '{records}'::regclass), 0) AS dead_rows, {}",
                ["statement_timeout", "transaction_timeout", "idle_session_timeout"]
                    .map(milliseconds)
                    .join(", ")
            ),
            listen: format!("LISTEN \"{CHANNEL}{schema}\""),
            notify: format!(
                "WITH settings AS MATERIALIZED ({hint_settings}) \
                 SELECT pg_notify('{CHANNEL}{schema}', key)::text FROM settings, {records} WHERE key = $1 AND {VERSION} = $2"
            ),
            probe: format!(
                "WITH settings AS MATERIALIZED ({hint_settings}) SELECT pg_notify('{CHANNEL}{schema}', $1)::text FROM settings"
            ),
        }
    }

    /// What gives a role the rights that it needs to the tables.
    pub(crate) fn grant(&self, role: &str) -> String {
        let (schema, role) = (&self.schema, quoted(role));
        format!(
            "GRANT USAGE ON SCHEMA {schema} TO {role}; \
             GRANT SELECT, INSERT, UPDATE, DELETE ON ALL TABLES IN SCHEMA {schema} TO {role}"
        )
    }

    /// What lets a role create the tables.
    pub(crate) fn permission_to_create(&self, role: &str, has_schema: bool) -> String {
        let (schema, role) = (&self.schema, quoted(role));
        match has_schema {
            true => format!("GRANT USAGE, CREATE ON SCHEMA {schema} TO {role}"),
            false => format!("CREATE SCHEMA {schema} AUTHORIZATION {role}"),
        }
    }

    /// The statements that make the tables, in one transaction of their own. After an error the connection cannot be used.
    pub(crate) fn migration(&self, has_schema: bool) -> String {
        let schema = match has_schema {
            true => String::new(),
            false => format!("CREATE SCHEMA IF NOT EXISTS {};", self.schema),
        };
        // The server goes on waiting for a lock when the client has given up.
        let bound = "SELECT set_config('lock_timeout', '1s', true)";
        // Whatever the role's isolation level is: what another candidate has made in the meantime has to be seen.
        format!(
            "BEGIN ISOLATION LEVEL READ COMMITTED; {bound}; SELECT pg_advisory_xact_lock({MIGRATION_LOCK}); {schema} {}; COMMIT",
            self.create_tables
        )
    }
}

fn quoted(name: &str) -> String {
    format!("\"{}\"", name.replace('"', "\"\""))
}
