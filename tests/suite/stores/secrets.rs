//! Nothing that is printed during failures contains a secret: log lines of all libraries at all levels, errors with their
//! sources, `Debug` output, status and metrics.

use std::{
    fmt::Debug,
    fs,
    io::{self, Write},
    sync::{Arc, Mutex},
    time::Duration,
};

use futures::StreamExt as _;
use metrics_exporter_prometheus::PrometheusBuilder;
use rcgen::{BasicConstraints, CertificateParams, CertifiedIssuer, IsCa, KeyPair};
use tenure::{
    Config, Elector, Error, Leadership, Secret, StoreUrl, Tls,
    consul::ConsulConfig,
    etcd::{EtcdBackend, EtcdConfig},
    mysql::MysqlConfig,
    nats::NatsConfig,
    postgres::PostgresConfig,
    redis::RedisConfig,
    zookeeper::{ZookeeperBackend, ZookeeperConfig},
};
use tenure_containers::{
    ConsulServer, ConsulSettings, EtcdServer, MysqlServer, NatsServer, NatsSettings, Permission,
    PostgresServer, PostgresSettings, RedisServer, S3Server, S3Settings, TlsFiles, Version, ZookeeperServer,
    ZookeeperSettings,
};
use tenure_testkit::suite::{until, within};
use tracing_subscriber::filter::LevelFilter;

/// No secret is a part of another, or of anything else that is printed.
const PASSWORD: &str = "Zanzibar4711";
const WRONG: &str = "Quagmire0815";

/// Everything that was printed.
#[derive(Clone, Default)]
struct Printed(Arc<Mutex<Vec<u8>>>);

impl Printed {
    fn add_debug(&self, what: &impl Debug) {
        writeln!(self.clone(), "{what:?} {what:#?}").unwrap();
    }

    /// Adds an error and all its sources.
    fn add_error(&self, error: &dyn std::error::Error) {
        let mut next = Some(error);
        while let Some(error) = next {
            writeln!(self.clone(), "{error} {error:?}").unwrap();
            next = error.source();
        }
    }

    fn text(&self) -> String {
        String::from_utf8_lossy(&self.0.lock().unwrap()).into_owned()
    }
}

impl Write for Printed {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.0.lock().unwrap().write(bytes)
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

async fn connect(url: &str) -> Arc<dyn Elector> {
    tenure::connect_with(url, Config::new().with_ttl(Duration::from_secs(4))).await.unwrap()
}

/// Runs a campaign that is refused, and prints everything about it.
async fn run_refused(printed: &Printed, url: &str) {
    let elector = connect(url).await;
    printed.add_debug(&elector);
    let error = within("the refusal", elector.campaign("e")).await.unwrap_err();
    assert!(matches!(error, Error::Unauthorized(_)), "{error:?}");
    printed.add_error(&error);
    printed.add_debug(&elector.status());
    if let Err(error) = elector.leader("e").await {
        printed.add_error(&error);
    }
    if let Some(Err(error)) = within("the refusal", elector.observe("e").next()).await {
        printed.add_error(&error);
    }
    elector.close().await;
}

/// Leads, and prints everything about it.
async fn lead(printed: &Printed, url: &str) -> (Arc<dyn Elector>, Leadership) {
    let elector = connect(url).await;
    let leadership = within("leading", elector.campaign("e")).await.unwrap();
    printed.add_debug(&leadership);
    printed.add_debug(&elector.status());
    printed.add_debug(&elector.candidates("e").await);
    (elector, leadership)
}

/// Runs a campaign that is retried until this error has been printed, and prints everything about it.
async fn run_failing(printed: &Printed, url: &str, error: &str) {
    let elector = connect(url).await;
    let campaign = {
        let elector = Arc::clone(&elector);
        tokio::spawn(async move { elector.campaign("e").await })
    };
    until(&format!("it retries and prints {error:?}"), async || {
        elector.status().connection == tenure::Connection::Retrying && printed.text().contains(error)
    })
    .await;
    printed.add_debug(&elector);
    printed.add_debug(&elector.status());
    campaign.abort();
    elector.close().await;
}

/// The environment variables with the right and the wrong password, and those of PostgreSQL's and Consul's own programs.
const VARIABLES: [(&str, &str); 4] = [
    ("TENURE_TEST_PASSWORD", PASSWORD),
    ("TENURE_TEST_WRONG", WRONG),
    ("PGPASSWORD", PASSWORD),
    ("CONSUL_HTTP_TOKEN", PASSWORD),
];

/// Runs this test in a child process with the variables, and returns true; returns false in the child. A process cannot
/// safely set its own variables.
async fn run_in_child_with_variables(test: &str) -> bool {
    if std::env::var_os(VARIABLES[0].0).is_some() {
        return false;
    }
    let mut command = tokio::process::Command::new(std::env::current_exe().unwrap());
    command.args(["--exact", &format!("secrets::{test}"), "--nocapture"]).envs(VARIABLES).kill_on_drop(true);
    assert!(command.status().await.unwrap().success());
    true
}

/// How a record begins in the answers of NATS: `{"format":"tenure-`. Its client prints them at the level of traces.
const RECORD: &str = "eyJmb3JtYXQiOiJ0ZW51cmUt";

/// The first word in the form of an etcd login token: sixteen letters, a dot and a number, or the beginning of a JWT.
fn find_token(line: &str) -> Option<&str> {
    let words = line.split(|c: char| !c.is_ascii_alphanumeric() && c != '.');
    words.into_iter().find(|word| {
        let simple = word.split_once('.').is_some_and(|(letters, number)| {
            letters.len() == 16
                && letters.bytes().all(|byte| byte.is_ascii_alphabetic())
                && !number.is_empty()
                && number.bytes().all(|byte| byte.is_ascii_digit())
        });
        simple || word.starts_with("eyJ") && !word.starts_with(RECORD)
    })
}

#[test]
fn tokens_are_recognized() {
    assert_eq!(find_token("token: \"fDosTzqxMNvNTTbH.57\""), Some("fDosTzqxMNvNTTbH.57"));
    assert_eq!(find_token("eyJhbGciOiJIUzI1NiJ9.e30.x"), Some("eyJhbGciOiJIUzI1NiJ9.e30.x"));
    assert_eq!(find_token("etcd 3.5.16, tenure_etcd::members 127.0.0.1:2379"), None);
}

/// Design rule: passwords, keys and login tokens never appear in `Debug`, errors, logs or printed URLs.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn nothing_that_is_printed_holds_a_secret() {
    if run_in_child_with_variables("nothing_that_is_printed_holds_a_secret").await {
        return;
    }
    // Before anything is printed: the client of the superuser prints the statement that sets the password.
    let settings = PostgresSettings::default().access_rules(&["host all all all scram-sha-256"]);
    let postgres = PostgresServer::start_with(Version::Postgres17, &settings).await.unwrap();
    postgres.admin().add_user("app", PASSWORD).await.unwrap();
    postgres.admin().execute("GRANT CREATE ON DATABASE postgres TO app").await.unwrap();
    let settings = ConsulSettings::default().acl();
    let consul = ConsulServer::start_with(Version::Consul18, &settings).await.unwrap();
    let admin = consul.admin().with_token(ConsulSettings::MANAGEMENT_TOKEN);
    admin.create_management_token(PASSWORD).await.unwrap();
    let mysql = MysqlServer::start(Version::Mariadb1011).await.unwrap();
    mysql.admin().add_user("app", PASSWORD).await.unwrap();
    mysql.admin().grant_all("app").await.unwrap();
    let redis = RedisServer::start(Version::Redis70).await.unwrap();
    redis.admin().set_user("app", PASSWORD, &["~*", "&*", "+@all"]).await.unwrap();
    // So does the client of Docker, with the command of a server.
    let keys = S3Settings::default().identity("app", PASSWORD, &["Read:suite", "Write:suite", "List:suite"]);
    let s3 = S3Server::start(Version::Seaweedfs4).await.unwrap();
    s3.set_identities(&keys).await.unwrap();
    let url = format!("s3://app:{PASSWORD}@suite/first?endpoint=http://{}", s3.endpoint());
    until("the key is known", async || tenure::connect_checked(&url).await.is_ok()).await;
    let printed = Printed::default();
    let writer = printed.clone();
    tracing_subscriber::fmt()
        .with_max_level(LevelFilter::TRACE)
        .with_ansi(false)
        .with_writer(move || writer.clone())
        .init();
    let metrics = PrometheusBuilder::new().install_recorder().unwrap();

    let etcd = EtcdServer::start(Version::Etcd35).await.unwrap();
    etcd.admin().add_user("app", PASSWORD, Permission::ReadWrite, "/acme/").await.unwrap();
    let root = etcd.admin().enable_auth("root-password").await.unwrap();
    let users = format!(
        "Server {{ org.apache.zookeeper.server.auth.DigestLoginModule required user_app=\"{PASSWORD}\"; }};\n"
    );
    let settings = ZookeeperSettings::default()
        .set("authProvider.1", "org.apache.zookeeper.server.auth.SASLAuthenticationProvider")
        .property("java.security.auth.login.config", "/data/jaas.conf")
        .file("/data/jaas.conf", users);
    let zookeeper = ZookeeperServer::start_with(Version::Zookeeper39, &settings).await.unwrap();

    let settings = NatsSettings::default().user("app", PASSWORD, "");
    let nats = NatsServer::start_with(Version::Nats215, &settings).await.unwrap();
    let at_s3 = format!("endpoint=http://{}", s3.endpoint());

    // Leaders that lose the store and reconnect.
    let (one, other, third) = (etcd.endpoint(), zookeeper.endpoint(), postgres.endpoint());
    let fourth = consul.endpoint();
    let fifth = nats.endpoint();
    let (at_mysql, at_redis) = (mysql.endpoint(), redis.endpoint());
    let folder = tempfile::tempdir().unwrap();
    let path = |name: &str| folder.path().join(name).display().to_string();
    fs::write(path("password"), PASSWORD).unwrap();
    fs::write(path("wrong"), WRONG).unwrap();
    let urls = [
        format!("etcd://app:{PASSWORD}@{one}/acme"),
        format!("etcd://app@{one}/acme/file?password_file={}", path("password")),
        format!("etcd://app@{one}/acme/variable?password_env={}", VARIABLES[0].0),
        format!("zookeeper://app:{PASSWORD}@{other}/digest"),
        format!("zookeeper://app:{PASSWORD}@{other}/sasl?auth=sasl"),
        format!("postgres://app:{PASSWORD}@{third}/postgres"),
        format!("postgres://app@{third}/postgres?schema=file&password_file={}", path("password")),
        format!("postgres://app@{third}/postgres?schema=variable&password_env={}", VARIABLES[0].0),
        format!("postgres://app@{third}/postgres?schema=libpq"),
        format!("consul://token:{PASSWORD}@{fourth}/acme"),
        format!("consul://{fourth}/file?password_file={}", path("password")),
        format!("consul://{fourth}/variable?password_env={}", VARIABLES[0].0),
        format!("consul://{fourth}/own"),
        format!("nats://app:{PASSWORD}@{fifth}/acme"),
        format!("nats://app@{fifth}/file?password_file={}", path("password")),
        format!("s3://app:{PASSWORD}@suite/acme?{at_s3}"),
        format!("s3://app@suite/file?{at_s3}&password_file={}", path("password")),
        format!("s3://app@suite/variable?{at_s3}&password_env={}", VARIABLES[0].0),
        format!("mysql://app:{PASSWORD}@{at_mysql}/tenure"),
        format!("redis://app:{PASSWORD}@{at_redis}/0"),
        format!("redis://app@{at_redis}/0?prefix=file&password_file={}", path("password")),
        format!("redis://app@{at_redis}/0?prefix=variable&password_env={}", VARIABLES[0].0),
    ];
    let mut leaders = Vec::new();
    for url in &urls {
        leaders.push(lead(&printed, url).await);
    }
    for url in [
        format!("etcd://app:{WRONG}@{one}/acme"),
        format!("etcd://app:{PASSWORD}@{one}/elsewhere"),
        format!("etcd://app@{one}/acme?password_env={}", VARIABLES[1].0),
        format!("zookeeper://app:{WRONG}@{other}/digest"),
        format!("zookeeper://app:{WRONG}@{other}/sasl?auth=sasl"),
        format!("postgres://app:{WRONG}@{third}/postgres"),
        format!("postgres://app@{third}/postgres?password_env={}", VARIABLES[1].0),
        format!("consul://token:{WRONG}@{fourth}/acme"),
        format!("consul://{fourth}/acme?password_env={}", VARIABLES[1].0),
        format!("nats://app:{WRONG}@{fifth}/acme"),
        format!("s3://app:{WRONG}@suite/acme?{at_s3}"),
        format!("mysql://app:{WRONG}@{at_mysql}/tenure"),
        format!("redis://app:{WRONG}@{at_redis}/0"),
        format!("redis://app@{at_redis}/0?password_env={}", VARIABLES[1].0),
    ] {
        run_refused(&printed, &url).await;
    }
    for store in [
        format!("etcd://app@{one}/acme"),
        format!("postgres://app@{third}/postgres"),
        format!("consul://{fourth}/acme"),
        format!("mysql://app@{at_mysql}/tenure"),
        format!("redis://app@{at_redis}/0"),
    ] {
        let url = format!("{store}?password_file={}", path("wrong"));
        run_failing(&printed, &url, "is read again and the login retried").await;
    }
    root.change_password("app", WRONG).await.unwrap();
    let faults = [
        zookeeper.kill().await.unwrap(),
        postgres.kill().await.unwrap(),
        consul.kill().await.unwrap(),
        mysql.kill().await.unwrap(),
        redis.kill().await.unwrap(),
        s3.kill().await.unwrap(),
        nats.kill().await.unwrap(),
    ];
    for (elector, leadership) in &leaders {
        within("the loss", leadership.lost()).await;
        printed.add_debug(&leadership.loss());
        printed.add_debug(leadership);
        printed.add_debug(&elector.status());
        if let Err(lost) = leadership.ensure() {
            printed.add_error(&lost);
        }
    }
    for fault in faults {
        fault.heal().await.unwrap();
    }
    for (elector, leadership) in leaders {
        drop(leadership);
        elector.close().await;
    }

    // Private keys and configurations.
    let key = KeyPair::generate().unwrap();
    let certificate = CertificateParams::new(["h".to_owned()]).unwrap().self_signed(&key).unwrap().pem();
    let key = key.serialize_pem();
    let (authority, server_certificate, server_key) = server_identity();
    let key_lines: Vec<&str> = key.lines().filter(|line| !line.starts_with("-----")).collect();
    for (name, text) in
        [("cert", &certificate), ("key", &key), ("broken", &key.replace("PRIVATE KEY", "KEY"))]
    {
        fs::write(path(name), text).unwrap();
    }
    let tls = Tls::new(&certificate).unwrap().with_identity(&certificate, Secret::new(key.clone())).unwrap();
    printed.add_debug(&tls);
    for url in &urls {
        let url: StoreUrl = url.parse().unwrap();
        writeln!(printed.clone(), "{url} {url:?}").unwrap();
        printed.add_error(&url.invalid("for some reason"));
        match url.scheme() {
            "etcd" => {
                let config = EtcdConfig::from_url(&url).unwrap().tls(tls.clone());
                printed.add_debug(&config);
                printed.add_debug(&EtcdBackend::new(config).unwrap());
            }
            "zookeeper" => {
                let config = ZookeeperConfig::from_url(&url).unwrap().tls(tls.clone());
                printed.add_debug(&config);
                printed.add_debug(&ZookeeperBackend::new(config).unwrap());
            }
            "consul" => {
                let config = ConsulConfig::from_url(&url).unwrap().tls(tls.clone());
                printed.add_debug(&config);
                printed.add_debug(&tenure::consul::backend(config).unwrap());
            }
            "nats" => {
                let config = NatsConfig::from_url(&url).unwrap().tls(tls.clone());
                printed.add_debug(&config);
                printed.add_debug(&tenure::nats::backend(config).unwrap());
            }
            "s3" => {
                let config = tenure::s3::S3Config::from_url(&url).unwrap();
                printed.add_debug(&config);
                printed.add_debug(&tenure::s3::backend(config).unwrap());
            }
            "mysql" => {
                let config = MysqlConfig::from_url(&url).unwrap().tls(tls.clone());
                printed.add_debug(&config);
                printed.add_debug(&tenure::mysql::backend(config).unwrap());
            }
            "redis" => {
                let config = RedisConfig::from_url(&url).unwrap().tls(tls.clone());
                printed.add_debug(&config);
                printed.add_debug(&tenure::redis::backend(config).unwrap());
            }
            _ => {
                let config = PostgresConfig::from_url(&url).unwrap();
                printed.add_debug(&config);
                printed.add_debug(&tenure::postgres::backend(config).unwrap());
            }
        }
    }
    let (cert, key, broken) = (path("cert"), path("key"), path("broken"));
    for scheme in ["etcd", "zookeeper", "nats"] {
        for url in [
            format!("{scheme}://app:{PASSWORD}@h:port"),
            format!("{scheme}://app:{PASSWORD}@h?password={PASSWORD}"),
            format!("{scheme}://app@h?passwd={PASSWORD}"),
            format!("{scheme}://app@h?password_env={PASSWORD}"),
            format!("{scheme}://app:{PASSWORD}@h?password_file=/nowhere"),
            format!("{scheme}://app:{PASSWORD}@h?ca={cert}&cert={cert}&key={broken}"),
            format!("{scheme}://h?ca={cert}&cert={key}&key={cert}"),
            format!("{scheme}://h?ca={key}"),
        ] {
            printed.add_error(&tenure::connect(&url).await.unwrap_err());
        }
        // Nothing listens there.
        let closed = format!("{scheme}://app:{PASSWORD}@127.0.0.1:1/x?ca={cert}&cert={cert}&key={key}");
        run_failing(&printed, &closed, "").await;
    }
    for url in [
        format!("postgres://app:{PASSWORD}@h:port/db"),
        format!("postgres://app:{PASSWORD}@h/db?password={PASSWORD}"),
        format!("postgres://app@h/db?passwd={PASSWORD}"),
        format!("postgres://app@h/db?password_env={PASSWORD}"),
        format!("postgres://app:{PASSWORD}@h/db?password_file=/nowhere"),
        format!("postgres://app:{PASSWORD}@h"),
        format!("mysql://app:{PASSWORD}@h:port/db"),
        format!("mysql://app:{PASSWORD}@h/db?password={PASSWORD}"),
        format!("mysql://app:{PASSWORD}@h/db?password_file=/nowhere"),
        format!("redis://app:{PASSWORD}@h:port/0"),
        format!("redis://app:{PASSWORD}@h/billing"),
        format!("redis://app:{PASSWORD}@h/0?password={PASSWORD}"),
        format!("redis://app:{PASSWORD}@h/0?password_file=/nowhere"),
        format!("redis+sentinel://app:{PASSWORD}@h/mymaster"),
    ] {
        printed.add_error(&tenure::connect(&url).await.unwrap_err());
    }
    run_failing(&printed, &format!("postgres://app:{PASSWORD}@127.0.0.1:1/x"), "").await;
    for url in [
        format!("consul://token:{PASSWORD}@h:port"),
        format!("consul://{PASSWORD}@h"),
        format!("consul://{PASSWORD}:{PASSWORD}@h"),
        format!("consul://h?token={PASSWORD}"),
        format!("consul://h?password_env={PASSWORD}"),
        format!("consul://token:{PASSWORD}@h?password_file=/nowhere"),
        format!("consul://token:{PASSWORD}@h/a//b"),
    ] {
        printed.add_error(&tenure::connect(&url).await.unwrap_err());
    }
    run_failing(&printed, &format!("consul://token:{PASSWORD}@127.0.0.1:1/x"), "").await;
    for url in [
        format!("s3://app:{PASSWORD}@a,b"),
        format!("s3://app:{PASSWORD}@b?secret={PASSWORD}"),
        format!("s3://app@b?password_env={PASSWORD}"),
    ] {
        printed.add_error(&tenure::connect(&url).await.unwrap_err());
    }
    run_failing(&printed, &format!("s3://app:{PASSWORD}@b?endpoint=http://127.0.0.1:1"), "").await;
    for (scheme, path) in [("mysql", "x"), ("redis", "0")] {
        let closed = format!("{scheme}://app:{PASSWORD}@127.0.0.1:1/{path}?ca={cert}&cert={cert}&key={key}");
        run_failing(&printed, &closed, "").await;
    }
    // A server that rejects the client's certificate, and one whose certificate the client does not trust.
    let files = TlsFiles { ca: authority.clone(), certificate: server_certificate, key: server_key };
    let strict = EtcdServer::start_tls(Version::Etcd35, &files).await.unwrap();
    let strict = strict.tls_endpoint().unwrap();
    fs::write(path("authority"), authority).unwrap();
    // It may close the connection before the client has read the reason.
    for (ca, error) in
        [("authority", "the member refused our certificate"), ("cert", "invalid peer certificate")]
    {
        let settings = format!("ca={}&cert={cert}&key={key}", path(ca));
        run_failing(&printed, &format!("etcd://app:{PASSWORD}@{strict}/acme?{settings}"), error).await;
    }
    writeln!(printed.clone(), "{}", metrics.render()).unwrap();

    let text = printed.text();
    // The expected output was captured.
    for expected in [
        "tenure",
        "Unauthorized",
        "invalid user ID or password",
        "etcd lease granted",
        "invalid peer certificate",
        "the member refused our certificate",
        "password authentication failed for user",
        "Consul does not know the token",
        "Access denied for user 'app'",
        "tenure_is_leader{",
        "tenure_store_failures_total",
    ] {
        assert!(text.contains(expected), "{expected:?} is not in {} bytes of output", text.len());
    }
    let token = text.lines().find_map(|line| Some((find_token(line)?, line)));
    assert_eq!(token, None, "a login token is printed");
    for secret in [PASSWORD, WRONG, "root-password"].into_iter().chain(key_lines) {
        for form in [secret.to_owned(), hex(secret), format!("{:?}", secret.as_bytes())] {
            if let Some(line) = text.lines().find(|line| line.contains(form.trim_matches(['[', ']']))) {
                panic!("{secret} is printed: {line}");
            }
        }
    }
}

/// An authority, a server certificate that it issued, and the server's key.
fn server_identity() -> (String, String, String) {
    let mut params = CertificateParams::new([]).unwrap();
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    let authority = CertifiedIssuer::self_signed(params, KeyPair::generate().unwrap()).unwrap();
    let key = KeyPair::generate().unwrap();
    let params = CertificateParams::new(["127.0.0.1".to_owned()]).unwrap();
    let certificate = params.signed_by(&key, &authority).unwrap();
    (authority.pem(), certificate.pem(), key.serialize_pem())
}

/// The bytes of a text as hexadecimal digits.
fn hex(text: &str) -> String {
    text.bytes().map(|byte| format!("{byte:02x}")).collect()
}
