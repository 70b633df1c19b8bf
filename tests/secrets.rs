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
use rcgen::{CertificateParams, KeyPair};
use tenure::{
    Config, Elector, Error, Leadership, Secret, StoreUrl, Tls,
    etcd::{EtcdBackend, EtcdConfig},
    zookeeper::{ZookeeperBackend, ZookeeperConfig},
};
use tenure_testkit::{
    containers::{EtcdServer, Permission, Version, ZookeeperServer, ZookeeperSettings},
    suite::{until, within},
};
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

/// Design rule: passwords never appear in `Debug`, errors, logs or URLs printed; nor do keys.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn nothing_that_is_printed_holds_a_secret() {
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
    let urls = [
        format!("etcd://app:{PASSWORD}@{one}/acme"),
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
        format!("zookeeper://app:{WRONG}@{other}/digest"),
        format!("zookeeper://app:{WRONG}@{other}/sasl?auth=sasl"),
    ] {
        refused(&printed, &url).await;
    }
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
    let in_key: Vec<&str> = key.lines().filter(|line| !line.starts_with("-----")).collect();
    let folder = tempfile::tempdir().unwrap();
    let path = |name: &str| folder.path().join(name).display().to_string();
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
            format!("{scheme}://app:{PASSWORD}@h?password_file=/nowhere"),
            format!("{scheme}://app:{PASSWORD}@h?ca={cert}&cert={cert}&key={broken}"),
            format!("{scheme}://h?ca={cert}&cert={key}&key={cert}"),
            format!("{scheme}://h?ca={key}"),
        ] {
            printed.tell(&tenure::connect(&url).await.unwrap_err());
        }
        // Nobody is there, or somebody who speaks no TLS.
        let silent = format!("{scheme}://app:{PASSWORD}@127.0.0.1:1/x?ca={cert}&cert={cert}&key={key}");
        let elector = connect(&silent).await;
        let campaign = {
            let elector = Arc::clone(&elector);
            tokio::spawn(async move { elector.campaign("e").await })
        };
        until("it tries", async || elector.status().connection == tenure::Connection::Retrying).await;
        printed.show(&elector);
        campaign.abort();
        elector.close().await;
    }
    writeln!(printed.clone(), "{}", metrics.render()).unwrap();

    let text = printed.text();
    // What was printed is not nothing.
    for expected in ["tenure", "Unauthorized", "invalid user ID or password", "etcd lease granted", "tenure_"]
    {
        assert!(text.contains(expected), "there is no {expected:?} in {} bytes", text.len());
    }
    for secret in [PASSWORD, WRONG, "root-password"].into_iter().chain(in_key) {
        for form in [secret.to_owned(), bytes_of(secret), format!("{:?}", secret.as_bytes())] {
            if let Some(line) = text.lines().find(|line| line.contains(form.trim_matches(['[', ']']))) {
                panic!("{secret} is printed: {line}");
            }
        }
    }
}

/// A text as hexadecimal digits.
fn bytes_of(text: &str) -> String {
    text.bytes().map(|byte| format!("{byte:02x}")).collect()
}
