//! Nothing that a failing run prints holds a secret: every log line of every library at every level, errors with their causes,
//! what is shown for debugging, status and metrics.

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
    etcd::{EtcdBackend, EtcdConfig},
    zookeeper::{ZookeeperBackend, ZookeeperConfig},
};
use tenure_containers::{EtcdServer, Permission, TlsFiles, Version, ZookeeperServer, ZookeeperSettings};
use tenure_testkit::suite::{until, within};
use tracing_subscriber::filter::LevelFilter;

/// No secret here has a part of another's, or of anything else that is printed.
const PASSWORD: &str = "Zanzibar4711";
const WRONG: &str = "Quagmire0815";

/// All that was printed.
#[derive(Clone, Default)]
struct Printed(Arc<Mutex<Vec<u8>>>);

impl Printed {
    fn show(&self, what: &impl Debug) {
        writeln!(self.clone(), "{what:?} {what:#?}").unwrap();
    }

    /// An error in words, with all its causes.
    fn tell(&self, error: &dyn std::error::Error) {
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

/// A campaign that is refused, and whatever can be seen of it.
async fn refused(printed: &Printed, url: &str) {
    let elector = connect(url).await;
    printed.show(&elector);
    let error = within("the refusal", elector.campaign("e")).await.unwrap_err();
    assert!(matches!(error, Error::Unauthorized(_)), "{error:?}");
    printed.tell(&error);
    printed.show(&elector.status());
    if let Err(error) = elector.leader("e").await {
        printed.tell(&error);
    }
    if let Some(Err(error)) = within("the refusal", elector.observe("e").next()).await {
        printed.tell(&error);
    }
    elector.close().await;
}

async fn led(printed: &Printed, url: &str) -> (Arc<dyn Elector>, Leadership) {
    let elector = connect(url).await;
    let leadership = within("leading", elector.campaign("e")).await.unwrap();
    printed.show(&leadership);
    printed.show(&elector.status());
    printed.show(&elector.candidates("e").await);
    (elector, leadership)
}

/// A campaign that gets nowhere, until that is said in these words, and whatever can be seen of it.
async fn in_vain(printed: &Printed, url: &str, words: &str) {
    let elector = connect(url).await;
    let campaign = {
        let elector = Arc::clone(&elector);
        tokio::spawn(async move { elector.campaign("e").await })
    };
    until(&format!("it tries, and says {words:?}"), async || {
        elector.status().connection == tenure::Connection::Retrying && printed.text().contains(words)
    })
    .await;
    printed.show(&elector);
    printed.show(&elector.status());
    campaign.abort();
    elector.close().await;
}

/// The variables that hold the passwords, right and wrong, while the test runs.
const VARIABLES: [(&str, &str); 2] = [("TENURE_TEST_PASSWORD", PASSWORD), ("TENURE_TEST_WRONG", WRONG)];

/// Runs this test in a process that has the variables: a process cannot safely set its own.
async fn in_a_process_with_variables(test: &str) -> bool {
    if std::env::var_os(VARIABLES[0].0).is_some() {
        return false;
    }
    let mut command = tokio::process::Command::new(std::env::current_exe().unwrap());
    command.args(["--exact", test, "--nocapture"]).envs(VARIABLES).kill_on_drop(true);
    assert!(command.status().await.unwrap().success());
    true
}

/// The first word like a token that etcd hands out for a login: sixteen letters, a dot, and a number; or the beginning of
/// a JWT.
fn token_in(line: &str) -> Option<&str> {
    let words = line.split(|c: char| !c.is_ascii_alphanumeric() && c != '.');
    words.into_iter().find(|word| {
        let simple = word.split_once('.').is_some_and(|(letters, number)| {
            letters.len() == 16
                && letters.bytes().all(|byte| byte.is_ascii_alphabetic())
                && !number.is_empty()
                && number.bytes().all(|byte| byte.is_ascii_digit())
        });
        simple || word.starts_with("eyJ")
    })
}

#[test]
fn a_token_is_known_when_it_is_seen() {
    assert_eq!(token_in("token: \"fDosTzqxMNvNTTbH.57\""), Some("fDosTzqxMNvNTTbH.57"));
    assert_eq!(token_in("eyJhbGciOiJIUzI1NiJ9.e30.x"), Some("eyJhbGciOiJIUzI1NiJ9.e30.x"));
    assert_eq!(token_in("etcd 3.5.16, tenure_etcd::members 127.0.0.1:2379"), None);
}

/// Design rule: passwords never appear in `Debug`, errors, logs or URLs printed; nor do keys, nor what a login is known by.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn nothing_that_is_printed_holds_a_secret() {
    if in_a_process_with_variables("nothing_that_is_printed_holds_a_secret").await {
        return;
    }
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

    // Who leads, loses the store, and finds it again.
    let (one, other) = (etcd.endpoint(), zookeeper.endpoint());
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
    ];
    let mut leaders = Vec::new();
    for url in &urls {
        leaders.push(led(&printed, url).await);
    }
    for url in [
        format!("etcd://app:{WRONG}@{one}/acme"),
        format!("etcd://app:{PASSWORD}@{one}/elsewhere"),
        format!("etcd://app@{one}/acme?password_env={}", VARIABLES[1].0),
        format!("zookeeper://app:{WRONG}@{other}/digest"),
        format!("zookeeper://app:{WRONG}@{other}/sasl?auth=sasl"),
    ] {
        refused(&printed, &url).await;
    }
    let url = format!("etcd://app@{one}/acme?password_file={}", path("wrong"));
    in_vain(&printed, &url, "is read again and the login retried").await;
    root.change_password("app", WRONG).await.unwrap();
    let fault = zookeeper.kill().await.unwrap();
    for (elector, leadership) in &leaders {
        within("the loss", leadership.lost()).await;
        printed.show(&leadership.loss());
        printed.show(leadership);
        printed.show(&elector.status());
        if let Err(lost) = leadership.ensure() {
            printed.tell(&lost);
        }
    }
    fault.heal().await.unwrap();
    for (elector, leadership) in leaders {
        drop(leadership);
        elector.close().await;
    }

    // Keys, and configurations.
    let key = KeyPair::generate().unwrap();
    let certificate = CertificateParams::new(["h".to_owned()]).unwrap().self_signed(&key).unwrap().pem();
    let key = key.serialize_pem();
    let (authority, theirs, their_key) = others();
    let in_key: Vec<&str> = key.lines().filter(|line| !line.starts_with("-----")).collect();
    for (name, text) in
        [("cert", &certificate), ("key", &key), ("broken", &key.replace("PRIVATE KEY", "KEY"))]
    {
        fs::write(path(name), text).unwrap();
    }
    let tls = Tls::new(&certificate).unwrap().with_identity(&certificate, Secret::new(key.clone())).unwrap();
    printed.show(&tls);
    for url in &urls {
        let url: StoreUrl = url.parse().unwrap();
        writeln!(printed.clone(), "{url} {url:?}").unwrap();
        printed.tell(&url.invalid("for some reason"));
        if url.scheme() == "etcd" {
            let config = EtcdConfig::from_url(&url).unwrap().tls(tls.clone());
            printed.show(&config);
            printed.show(&EtcdBackend::new(config).unwrap());
        } else {
            let config = ZookeeperConfig::from_url(&url).unwrap().tls(tls.clone());
            printed.show(&config);
            printed.show(&ZookeeperBackend::new(config).unwrap());
        }
    }
    let (cert, key, broken) = (path("cert"), path("key"), path("broken"));
    for scheme in ["etcd", "zookeeper"] {
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
            printed.tell(&tenure::connect(&url).await.unwrap_err());
        }
        // Nobody is there, or somebody who speaks no TLS.
        let silent = format!("{scheme}://app:{PASSWORD}@127.0.0.1:1/x?ca={cert}&cert={cert}&key={key}");
        in_vain(&printed, &silent, "").await;
    }
    // A server that does not take the certificate, and whose own we do not trust.
    let files = TlsFiles { ca: authority.clone(), certificate: theirs, key: their_key };
    let strict = EtcdServer::start_tls(Version::Etcd35, &files).await.unwrap();
    let strict = strict.secure_endpoint().unwrap();
    fs::write(path("authority"), authority).unwrap();
    // It may break the connection off before its word on the certificate is heard.
    for (ca, words) in
        [("authority", "the member refused our certificate"), ("cert", "invalid peer certificate")]
    {
        let settings = format!("ca={}&cert={cert}&key={key}", path(ca));
        in_vain(&printed, &format!("etcd://app:{PASSWORD}@{strict}/acme?{settings}"), words).await;
    }
    writeln!(printed.clone(), "{}", metrics.render()).unwrap();

    let text = printed.text();
    // What was printed is not nothing.
    for expected in [
        "tenure",
        "Unauthorized",
        "invalid user ID or password",
        "etcd lease granted",
        "invalid peer certificate",
        "the member refused our certificate",
        "tenure_is_leader{",
        "tenure_store_failures_total",
    ] {
        assert!(text.contains(expected), "there is no {expected:?} in {} bytes", text.len());
    }
    let told = text.lines().find_map(|line| Some((token_in(line)?, line)));
    assert_eq!(told, None, "a login's token is printed");
    for secret in [PASSWORD, WRONG, "root-password"].into_iter().chain(in_key) {
        for form in [secret.to_owned(), bytes_of(secret), format!("{:?}", secret.as_bytes())] {
            if let Some(line) = text.lines().find(|line| line.contains(form.trim_matches(['[', ']']))) {
                panic!("{secret} is printed: {line}");
            }
        }
    }
}

/// An authority that is nobody's, a server's certificate by it, and its key.
fn others() -> (String, String, String) {
    let mut params = CertificateParams::new([]).unwrap();
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    let authority = CertifiedIssuer::self_signed(params, KeyPair::generate().unwrap()).unwrap();
    let key = KeyPair::generate().unwrap();
    let params = CertificateParams::new(["127.0.0.1".to_owned()]).unwrap();
    let certificate = params.signed_by(&key, &authority).unwrap();
    (authority.pem(), certificate.pem(), key.serialize_pem())
}

/// A text as hexadecimal digits.
fn bytes_of(text: &str) -> String {
    text.bytes().map(|byte| format!("{byte:02x}")).collect()
}
