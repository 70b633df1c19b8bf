//! The tables, and the statements.
//!
//! Each request is one statement in a transaction of its own. A write names the version that it replaces, the server and its epoch, so that it
//! changes nothing on another server, in another epoch, or when it is carried out late.

use crate::server::Flavour;

/// The version of a record, in hexadecimal: no two bodies are equal.
const VERSION: &str = "SHA2(body, 256)";

/// The size of a record beyond which the recipe refuses it, so that no more of it has to be read: tenure did not write it.
const MAX_BYTES: usize = 512 * 1024;

/// The tables. Keys are compared by byte: with any collation of text `a` would be `A`, or `a` with a space after it.
///
/// Every swap changes the counter `writes`, so that the server counts the same rows whether it counts matched or changed ones.
pub(crate) const TABLES: [&str; 2] = [
    "CREATE TABLE IF NOT EXISTS tenure_records (id VARBINARY(512) NOT NULL PRIMARY KEY, body MEDIUMBLOB NOT NULL, \
     writes BIGINT UNSIGNED NOT NULL) ENGINE=InnoDB",
    "CREATE TABLE IF NOT EXISTS tenure_epoch (one TINYINT NOT NULL PRIMARY KEY, server VARBINARY(512) NOT NULL, \
     epoch INT UNSIGNED NOT NULL) ENGINE=InnoDB",
];

/// The first epoch of new tables: the five-minute steps of the server's time since 2026. Never 0, in which nobody waits: a promoted replica may
/// lack tables that the former primary had.
const FIRST_EPOCH: &str = "LEAST(GREATEST(UNIX_TIMESTAMP(), 1767225600) DIV 300 - 5890751, 4000000)";

/// The statements for one kind of server. The first column of each that reads is whether the server is the primary of the current epoch.
#[derive(Debug)]
pub(crate) struct Statements {
    /// The row of a new table.
    pub(crate) create_epoch: String,
    /// Begins the next epoch, if the table has come to another server: at a promotion, with the rows. Its parameters are the highest epoch
    /// that was seen, the same again, and the server of it: one that was promoted later may have missed an epoch, and given it again.
    pub(crate) raise: String,
    pub(crate) epoch: String,
    pub(crate) read: String,
    pub(crate) list: String,
    pub(crate) replace: String,
    pub(crate) create: String,
    pub(crate) delete: String,
    /// The tables that are not InnoDB's.
    pub(crate) engines: String,
}

impl Statements {
    pub(crate) fn new(flavour: Flavour) -> Self {
        // Servers that replicate from each other have different identifiers. The names of the machine and its port make a copy noticed, too.
        let identity = match flavour {
            Flavour::Galera => "CONCAT('galera ', @@wsrep_cluster_name)",
            Flavour::Mysql => "CONCAT_WS(' ', 'mysql', @@server_uuid, @@server_id)",
            Flavour::Mariadb => "CONCAT_WS(' ', 'mariadb', @@server_id, @@hostname, @@port)",
        };
        // A number, or a word in later versions.
        let primary = format!("(server = {identity} AND CONCAT(@@read_only) IN ('0', 'OFF'))");
        let in_epoch = format!("EXISTS (SELECT 1 FROM tenure_epoch WHERE {primary} AND epoch = ?)");
        Self {
            create_epoch: format!(
                "INSERT IGNORE INTO tenure_epoch (one, server, epoch) VALUES (1, {identity}, {FIRST_EPOCH})"
            ),
            raise: format!(
                "UPDATE tenure_epoch SET epoch = GREATEST(epoch, COALESCE(?, 0)) + 1, server = {identity} \
                 WHERE server <> {identity} OR (epoch = ? AND ? <> {identity})"
            ),
            epoch: format!("SELECT SQL_NO_CACHE {primary}, epoch, {identity} FROM tenure_epoch"),
            read: format!(
                "SELECT SQL_NO_CACHE {primary}, SUBSTR(body, 1, {MAX_BYTES} + 1) \
                 FROM tenure_epoch LEFT JOIN tenure_records ON id = ?"
            ),
            list: format!(
                "SELECT SQL_NO_CACHE {primary}, id, IF(LENGTH(body) <= {MAX_BYTES}, body, '') \
                 FROM tenure_epoch LEFT JOIN tenure_records ON id LIKE ?"
            ),
            replace: format!(
                "UPDATE tenure_records SET body = ?, writes = writes + 1 WHERE id = ? AND {VERSION} = ? AND {in_epoch}"
            ),
            create: format!(
                "INSERT INTO tenure_records (id, body, writes) SELECT ?, ?, 1 FROM tenure_epoch WHERE {primary} AND epoch = ?"
            ),
            delete: format!(
                "DELETE FROM tenure_records WHERE id = ? AND {VERSION} = ? \
                 AND EXISTS (SELECT 1 FROM tenure_epoch WHERE {primary})"
            ),
            engines: format!(
                "SELECT {primary}, CONCAT(TABLE_NAME, ' ', COALESCE(ENGINE, '')) FROM tenure_epoch LEFT JOIN information_schema.TABLES \
                 ON TABLE_SCHEMA = DATABASE() AND TABLE_NAME IN ('tenure_records', 'tenure_epoch') AND ENGINE <> 'InnoDB'"
            ),
        }
    }
}

/// What an owner of the database has to run for a user that may not create the tables.
pub(crate) fn permission(database: &str, user: &str) -> String {
    let [records, epoch] = TABLES;
    format!(
        "have an owner of the database run: {records}; {epoch}; \
         GRANT SELECT, INSERT, UPDATE, DELETE ON `{database}`.tenure_records TO '{user}'; \
         GRANT SELECT, INSERT, UPDATE ON `{database}`.tenure_epoch TO '{user}'"
    )
}
