//! The settings of a MariaDB server in tests.

use crate::{
    spec::ContainerSpec,
    tls::{TlsFiles, write_file_script},
    version::Version,
};

const PORT: u16 = 3306;

/// Makes the data directory, unless there is one. Without a password `root` may do everything, from everywhere.
const PREPARE: &str = "\
chown mysql /data
if [ ! -e /data/mysql ]; then
    rm -rf /data/new
    mariadb-install-db --no-defaults --user=mysql --datadir=/data/new --auth-root-authentication-method=normal --skip-test-db >/tmp/install
    mv /data/new /data/mysql
fi
";

/// One statement in each line, at every start. They are not replicated.
const INIT: &str = "\
SET sql_log_bin = 0;
CREATE USER IF NOT EXISTS root@'%';
GRANT ALL ON *.* TO root@'%' WITH GRANT OPTION;
CREATE DATABASE IF NOT EXISTS tenure;
";

/// The settings of a MariaDB server in tests.
///
/// By default `root` may log in without a password, nothing is flushed to the disk, and there is neither TLS nor replication.
#[derive(Clone, Debug)]
pub struct MysqlSettings {
    options: Vec<(String, String)>,
    tls: Option<TlsFiles>,
}

impl Default for MysqlSettings {
    fn default() -> Self {
        let settings = Self { options: Vec::new(), tls: None };
        settings
            .set("bind-address", "0.0.0.0")
            .set("socket", "/tmp/mariadb.sock")
            .set("init-file", "/tmp/init.sql")
            .set("skip-name-resolve", "on")
            .set("max-connections", "500")
            .set("innodb-buffer-pool-size", "32M")
            .set("innodb-flush-method", "nosync")
    }
}

impl MysqlSettings {
    /// Sets an option of the server, as on its command line. The last value counts.
    pub fn set(mut self, option: impl Into<String>, value: impl Into<String>) -> Self {
        let (option, value) = (option.into(), value.into());
        self.options.retain(|(existing, _)| *existing != option);
        self.options.push((option, value));
        self
    }

    /// Clients may speak TLS, at the same endpoint, and present a certificate. A user may be created who has to.
    pub fn tls(mut self, files: TlsFiles) -> Self {
        self.tls = Some(files);
        self.set("ssl-ca", TlsFiles::CA).set("ssl-cert", TlsFiles::CERT).set("ssl-key", TlsFiles::KEY)
    }

    pub(super) fn spec(&self, version: Version) -> ContainerSpec {
        let tls = self.tls.as_ref().map_or_else(String::new, |files| {
            format!("{}chown mysql /data/*.pem\nchmod 600 /data/*.pem\n", files.write_script())
        });
        let init = write_file_script("/tmp/init.sql", INIT.as_bytes());
        let options: String =
            self.options.iter().map(|(option, value)| format!(" '--{option}={value}'")).collect();
        let run = format!("exec mariadbd --no-defaults --user=mysql --datadir=/data/mysql{options}");
        let arguments = vec!["-ec".to_owned(), [PREPARE, &tls, &init, &run].concat()];
        ContainerSpec::new(version, PORT, "sh", arguments)
    }
}
