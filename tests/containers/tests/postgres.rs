//! PostgreSQL servers of every version are started and administered; a replica is promoted, and a former primary joins again.

use tenure_containers::{
    ContainerError, PostgresAdmin, PostgresCluster, PostgresServer, PostgresSettings, Replication,
    SharedPostgres, TlsFiles, Version,
};
use tokio_postgres::{Config, NoTls, SimpleQueryMessage};

/// Defines one test per function and version of PostgreSQL.
macro_rules! for_every_postgres {
    ($($case:ident),* $(,)?) => {
        mod postgres_15 {
            $(#[tokio::test] async fn $case() { super::$case(super::Version::Postgres15).await.unwrap() })*
        }
        mod postgres_17 {
            $(#[tokio::test] async fn $case() { super::$case(super::Version::Postgres17).await.unwrap() })*
        }
    };
}

for_every_postgres!(
    a_shared_server_has_a_database_for_each_test,
    a_server_recovers_from_faults,
    users_need_a_password_and_tls,
    a_replica_is_promoted_and_the_former_primary_joins_again,
    a_synchronous_primary_waits_for_its_replica,
    both_are_primaries_when_the_former_one_lives_on,
);

type Outcome = Result<(), ContainerError>;

async fn a_shared_server_has_a_database_for_each_test(version: Version) -> Outcome {
    let shared = SharedPostgres::get(version).await?;
    assert_eq!(shared.is_dedicated(), std::env::var(version.shared_variable()).is_err());
    let name = format!("own_{:016x}", fastrand::u64(..));
    let own = shared.admin().create_database(&name).await?;
    own.execute("CREATE TABLE t (n int); INSERT INTO t VALUES (1), (NULL)").await?;
    assert_eq!(
        own.query("SELECT n, 'x' FROM t").await?,
        [[Some("1".to_owned()), Some("x".to_owned())], [None, Some("x".to_owned())]]
    );
    assert!(shared.admin().query("SELECT n FROM t").await.is_err(), "another database");
    assert!(own.value("SELECT n FROM t WHERE n IS NULL").await.is_err());
    let refused = own.execute("SELECT 1/0").await.unwrap_err().to_string();
    assert!(refused.contains("division by zero (22012)"), "{refused}");
    assert!(shared.admin().create_database(&name).await.is_err(), "it exists");
    shared.admin().execute(&format!("DROP DATABASE {name}")).await?;
    let number: u32 = shared.admin().value("SHOW server_version_num").await?.parse().expect("it is a number");
    assert_eq!(format!("postgres:{}", number / 10_000), version.to_string());
    assert_eq!(shared.admin().timeline().await?, 1);
    Ok(())
}

async fn a_server_recovers_from_faults(version: Version) -> Outcome {
    let server = PostgresServer::start(version).await?;
    let (admin, endpoint) = (server.admin(), server.endpoint());
    admin.execute("CREATE TABLE kept (n int)").await?;
    let connected = Connected::to(admin, &[]).await.unwrap();
    assert_eq!(admin.terminate_connections().await?, 1);
    assert!(connected.value("SELECT 1").await.is_err());

    for kill in [true, false] {
        // A stopped server does not wait for its clients.
        let connected = Connected::to(admin, &[]).await.unwrap();
        let fault = if kill { server.kill().await? } else { server.stop().await? };
        assert!(admin.health().await.is_err());
        assert!(connected.value("SELECT 1").await.is_err());
        fault.heal().await?;
        admin.query("SELECT n FROM kept").await?;
    }
    let frozen = server.pause().await?;
    assert!(admin.health().await.is_err());
    frozen.heal().await?;
    admin.query("SELECT n FROM kept").await?;
    server.wipe().await?;
    assert_eq!(server.endpoint(), endpoint);
    assert!(admin.query("SELECT n FROM kept").await.is_err());
    Ok(())
}

async fn users_need_a_password_and_tls(version: Version) -> Outcome {
    let settings = PostgresSettings::default()
        .tls(tls_files().expect("a certificate can be made"))
        .access_rules(&["host all plain all scram-sha-256", "hostssl all all all scram-sha-256"]);
    let server = PostgresServer::start_with(version, &settings).await?;
    let admin = server.admin();
    admin.add_user("plain", "secret").await?;
    admin.add_user("encrypted", "secret").await?;
    assert_eq!(admin.value("SHOW ssl").await?, "on");

    let plain = Connected::to(admin, &[("user", "plain"), ("password", "secret")]).await.unwrap();
    assert_eq!(plain.value("SELECT current_user").await.unwrap(), "plain");
    for (user, password, code) in [("plain", "wrong", "28P01"), ("encrypted", "secret", "28000")] {
        let refused = Connected::to(admin, &[("user", user), ("password", password)]).await.err().unwrap();
        assert_eq!(refused.code().map(|code| code.code()), Some(code), "{refused:?}");
    }
    // The server's answer to a request for TLS.
    assert_eq!(tls_answer(&server.endpoint()).await, b'S');
    server.kill().await?.heal().await?;
    assert_eq!(tls_answer(&server.endpoint()).await, b'S');
    Ok(())
}

#[tokio::test]
async fn pgbouncer_shares_connections_between_transactions() {
    let settings = PostgresSettings::default().pgbouncer(&[("default_pool_size", "1")]);
    let server = PostgresServer::start_with(Version::Postgres17, &settings).await.unwrap();
    let pgbouncer = PostgresAdmin::new(server.pgbouncer_endpoint().unwrap());
    let connect = || Connected::to(&pgbouncer, &[]);
    let (first, second) = (connect().await.unwrap(), connect().await.unwrap());
    let backend = "SELECT pg_backend_pid()";
    // In session mode, the second connection would wait until the first is closed.
    assert_eq!(first.value(backend).await.unwrap(), second.value(backend).await.unwrap());
    server.kill().await.unwrap().heal().await.unwrap();
    pgbouncer.health().await.unwrap();
    // Without it there is no such endpoint.
    let server = PostgresServer::start(Version::Postgres17).await.unwrap();
    assert_eq!(server.pgbouncer_endpoint(), None);
}

async fn a_replica_is_promoted_and_the_former_primary_joins_again(version: Version) -> Outcome {
    let cluster = PostgresCluster::start(version, Replication::Synchronous).await?;
    let [first, second] = [0, 1].map(|index| cluster.member(index).admin());
    assert_eq!(cluster.primary().await?, 0);
    assert!(second.is_replica().await?);
    let refused = second.execute("CREATE TABLE t (n int)").await.unwrap_err().to_string();
    assert!(refused.contains("read-only"), "{refused}");
    first.execute("CREATE TABLE t (n int)").await?;
    first.execute("INSERT INTO t VALUES (1)").await?;

    let killed = cluster.member(0).kill().await?;
    cluster.promote(1).await?;
    cluster.replicate_asynchronously(1).await?;
    assert_eq!((cluster.primary().await?, second.timeline().await?), (1, 2));
    assert_eq!(second.value("SELECT n FROM t").await?, "1");
    second.execute("UPDATE t SET n = 2").await?;

    killed.heal().await?;
    cluster.wait_for_replica(1).await?;
    assert_eq!(cluster.primary().await?, 1);
    cluster.replicate_synchronously(1).await?;
    second.execute("UPDATE t SET n = 3").await?;
    // And back again. The primary lives, is stopped first, and joins in one step.
    cluster.fence(1).await?;
    cluster.promote(0).await?;
    cluster.replicate_asynchronously(0).await?;
    assert_eq!((first.value("SELECT n FROM t").await?, first.timeline().await?), ("3".to_owned(), 3));
    cluster.rejoin(1).await?;
    assert_eq!(cluster.primary().await?, 0);
    // A primary that was killed is one again, when its replica was not promoted meanwhile.
    cluster.member(0).kill().await?.heal().await?;
    cluster.wait_for_replica(0).await?;
    assert_eq!((cluster.primary().await?, first.timeline().await?), (0, 3));
    // One whose replica does not answer waits until it is told what it is.
    let ended = cluster.member(1).kill().await?;
    cluster.fence(0).await?;
    let tell = async {
        loop {
            // Not before it runs.
            cluster.resume_primary(0).await.ok();
        }
    };
    tokio::select! {
        restarted = cluster.restart(0) => restarted?,
        () = tell => {}
    }
    assert!(!first.is_replica().await?);
    ended.heal().await?;
    cluster.wait_for_replica(0).await
}

async fn a_synchronous_primary_waits_for_its_replica(version: Version) -> Outcome {
    let cluster = PostgresCluster::start(version, Replication::Synchronous).await?;
    let primary = cluster.member(0).admin();
    primary.execute("CREATE TABLE t (n int)").await?;
    let frozen = cluster.member(1).pause().await?;
    let unanswered = primary.execute("INSERT INTO t VALUES (1)").await.unwrap_err();
    assert!(matches!(unanswered, ContainerError::NoAnswer { .. }), "{unanswered}");
    cluster.replicate_asynchronously(0).await?;
    primary.execute("INSERT INTO t VALUES (2)").await?;
    frozen.heal().await?;
    cluster.replicate_synchronously(0).await?;
    let replica = cluster.member(1).admin();
    assert_eq!(replica.value("SELECT count(*) FROM t WHERE n = 2").await?, "1");
    Ok(())
}

/// What an operator does who promotes a replica without stopping the primary.
async fn both_are_primaries_when_the_former_one_lives_on(version: Version) -> Outcome {
    let cluster = PostgresCluster::start(version, Replication::Asynchronous).await?;
    let [former, promoted] = [0, 1].map(|index| cluster.member(index).admin());
    former.execute("CREATE TABLE t (n int)").await?;
    cluster.wait_for_replica(0).await?;
    cluster.promote(1).await?;
    former.execute("INSERT INTO t VALUES (1)").await?;
    promoted.execute("INSERT INTO t VALUES (2)").await?;
    assert_eq!((former.timeline().await?, promoted.timeline().await?), (1, 2));
    cluster.rejoin(0).await?;
    assert!(former.is_replica().await?);
    assert_eq!(former.value("SELECT n FROM t").await?, "2", "its own write is gone");
    Ok(())
}

/// A connection that stays open.
struct Connected(tokio_postgres::Client);

impl Connected {
    async fn to(admin: &PostgresAdmin, settings: &[(&str, &str)]) -> Result<Self, tokio_postgres::Error> {
        let mut config: Config = admin.url().parse()?;
        for (setting, value) in settings {
            match *setting {
                "user" => config.user(*value),
                _ => config.password(value),
            };
        }
        let (client, connection) = config.connect(NoTls).await?;
        tokio::spawn(connection);
        Ok(Self(client))
    }

    async fn value(&self, sql: &str) -> Result<String, tokio_postgres::Error> {
        let messages = self.0.simple_query(sql).await?;
        let values = messages.into_iter().filter_map(|message| match message {
            SimpleQueryMessage::Row(row) => row.get(0).map(str::to_owned),
            _ => None,
        });
        Ok(values.last().expect("a row"))
    }
}

/// A certificate that signs itself.
fn tls_files() -> Result<TlsFiles, rcgen::Error> {
    let signed = rcgen::generate_simple_self_signed(["127.0.0.1".to_owned()])?;
    let certificate = signed.cert.pem();
    Ok(TlsFiles { ca: certificate.clone(), certificate, key: signed.signing_key.serialize_pem() })
}

/// What a server answers to the request for TLS with which a client begins.
async fn tls_answer(endpoint: &str) -> u8 {
    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
    let mut stream = tokio::net::TcpStream::connect(endpoint).await.unwrap();
    stream.write_all(&[0, 0, 0, 8, 4, 210, 22, 47]).await.unwrap();
    stream.read_u8().await.unwrap()
}
