//! A warning is log for a connection to another machine without TLS.

use std::{
    fs,
    io::{self, Write},
    sync::{Arc, Mutex},
};

use rcgen::{CertificateParams, KeyPair};
use tracing_subscriber::filter::LevelFilter;

/// Captured log output.
#[derive(Clone, Default)]
struct Log(Arc<Mutex<Vec<u8>>>);

impl Write for Log {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.0.lock().unwrap().write(bytes)
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// The warnings that are logged when an elector is created from this URL. No request is sent to the store.
async fn warnings(url: &str) -> Vec<String> {
    let log = Log::default();
    let writer = log.clone();
    let subscriber = tracing_subscriber::fmt()
        .with_max_level(LevelFilter::WARN)
        .with_ansi(false)
        .with_writer(move || writer.clone())
        .finish();
    let _guard = tracing::subscriber::set_default(subscriber);
    let elector = tenure::connect(url).await.unwrap_or_else(|error| panic!("{url}: {error}"));
    elector.close().await;
    let text = String::from_utf8(log.0.lock().unwrap().clone()).unwrap();
    text.lines().map(str::to_owned).collect()
}

/// The schemes, the login without a password, the user, and the setting with the authorities.
const STORES: [(&str, &str, &str, &str); 6] = [
    ("etcd", "", "me", "ca"),
    ("zookeeper", "", "me", "ca"),
    ("postgres", "me@", "me", "sslrootcert"),
    ("consul", "", "token", "ca"),
    ("nats", "", "me", "ca"),
    ("mysql", "me@", "me", "ca"),
];

/// Each elector logs the warning once. It names the first address on another machine, and says whether the password is sent
/// unencrypted.
#[tokio::test]
async fn plain_text_to_another_machine_is_warned_of() {
    for (scheme, no_password, user, setting) in STORES {
        for (hosts, first) in [
            ("192.0.2.1", "192.0.2.1"),
            ("localhost,192.0.2.1:7,192.0.2.2", "192.0.2.1:7"),
            ("[2001:db8::1]:7", "[2001:db8::1]:7"),
            ("store.example", "store.example"),
        ] {
            for _ in 0..2 {
                let logged = warnings(&format!("{scheme}://{no_password}{hosts}/acme")).await;
                assert_eq!(logged.len(), 1, "{logged:?}");
                assert!(logged[0].contains("WARN") && logged[0].contains("no TLS"), "{logged:?}");
                assert!(logged[0].contains(&format!("host=\"{first}")), "{logged:?}");
                assert!(!logged[0].contains("password"), "{logged:?}");
                assert!(logged[0].contains(&format!("give {setting}=/path")), "{logged:?}");
            }
            let logged = warnings(&format!("{scheme}://{user}:hunter2@{hosts}/acme")).await;
            assert_eq!(logged.len(), 1, "{logged:?}");
            assert!(logged[0].contains("the password") && !logged[0].contains("hunter2"), "{logged:?}");
        }
    }
}

/// The secret of a key is not sent; what the store answers can be changed.
#[tokio::test]
async fn an_s3_endpoint_without_tls_on_another_machine_is_warned_of() {
    let logged = warnings("s3://key:hunter2@bucket/acme?endpoint=http://store.example:9000").await;
    assert_eq!(logged.len(), 1, "{logged:?}");
    assert!(logged[0].contains("no TLS") && logged[0].contains("host=\"store.example:9000"), "{logged:?}");
    assert!(!logged[0].contains("password") && !logged[0].contains("hunter2"), "{logged:?}");
    for endpoint in ["http://127.0.0.1:9000", "https://store.example"] {
        assert_eq!(
            warnings(&format!("s3://key:hunter2@bucket/acme?endpoint={endpoint}")).await,
            [] as [String; 0]
        );
    }
}

/// The same for a store that has one host.
#[tokio::test]
async fn plain_text_to_a_redis_server_on_another_machine_is_warned_of() {
    for (login, says) in [("", "the store's answers"), ("me:hunter2@", "the password")] {
        let logged = warnings(&format!("redis://{login}192.0.2.1/0")).await;
        assert_eq!(logged.len(), 1, "{logged:?}");
        assert!(logged[0].contains("no TLS") && logged[0].contains(says), "{logged:?}");
        assert!(logged[0].contains("give ca=/path") && !logged[0].contains("hunter2"), "{logged:?}");
    }
    assert!(warnings("redis://localhost/0").await.is_empty());
}

/// Loopback traffic does not leave the machine, and TLS is encrypted.
#[tokio::test]
async fn loopback_and_tls_cause_no_warning() {
    let key = KeyPair::generate().unwrap();
    let certificate = CertificateParams::new(["h".to_owned()]).unwrap().self_signed(&key).unwrap().pem();
    let folder = tempfile::tempdir().unwrap();
    let ca = folder.path().join("ca");
    fs::write(&ca, certificate).unwrap();
    for (scheme, _, user, setting) in STORES {
        for url in [
            format!("{scheme}://{user}:hunter2@localhost/acme"),
            format!("{scheme}://{user}:hunter2@127.0.0.1:7,[::1]:7/acme"),
            format!("{scheme}://{user}:hunter2@192.0.2.1,store.example/acme?{setting}={}", ca.display()),
        ] {
            assert_eq!(warnings(&url).await, [] as [String; 0], "{url}");
        }
    }
}
