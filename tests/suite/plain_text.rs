//! Whoever speaks to a store on another machine without TLS is warned.

use std::{
    fs,
    io::{self, Write},
    sync::{Arc, Mutex},
};

use rcgen::{CertificateParams, KeyPair};
use tracing_subscriber::filter::LevelFilter;

/// What was logged.
#[derive(Clone, Default)]
struct Logged(Arc<Mutex<Vec<u8>>>);

impl Write for Logged {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.0.lock().unwrap().write(bytes)
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// The warnings of whoever is given an elector by that URL; nothing is asked of the store.
async fn warnings(url: &str) -> Vec<String> {
    let logged = Logged::default();
    let writer = logged.clone();
    let subscriber = tracing_subscriber::fmt()
        .with_max_level(LevelFilter::WARN)
        .with_ansi(false)
        .with_writer(move || writer.clone())
        .finish();
    let _here = tracing::subscriber::set_default(subscriber);
    let elector = tenure::connect(url).await.unwrap_or_else(|error| panic!("{url}: {error}"));
    elector.close().await;
    let text = String::from_utf8(logged.0.lock().unwrap().clone()).unwrap();
    text.lines().map(str::to_owned).collect()
}

/// Once for every elector, naming the first address on another machine; and that a password is among what can be read.
#[tokio::test]
async fn plain_text_to_another_machine_is_warned_of() {
    for scheme in ["etcd", "zookeeper"] {
        for (hosts, first) in [
            ("192.0.2.1", "192.0.2.1"),
            ("localhost,192.0.2.1:7,192.0.2.2", "192.0.2.1:7"),
            ("[2001:db8::1]:7", "[2001:db8::1]:7"),
            ("store.example", "store.example"),
        ] {
            for _ in 0..2 {
                let said = warnings(&format!("{scheme}://{hosts}/acme")).await;
                assert_eq!(said.len(), 1, "{said:?}");
                assert!(said[0].contains("WARN") && said[0].contains("no TLS"), "{said:?}");
                assert!(said[0].contains(&format!("host=\"{first}")), "{said:?}");
                assert!(!said[0].contains("password"), "{said:?}");
            }
            let said = warnings(&format!("{scheme}://me:hunter2@{hosts}/acme")).await;
            assert_eq!(said.len(), 1, "{said:?}");
            assert!(said[0].contains("the password") && !said[0].contains("hunter2"), "{said:?}");
        }
    }
}

/// Nobody listens on this machine's loopback, and over TLS nobody hears anything.
#[tokio::test]
async fn loopback_and_tls_are_not_warned_of() {
    let key = KeyPair::generate().unwrap();
    let certificate = CertificateParams::new(["h".to_owned()]).unwrap().self_signed(&key).unwrap().pem();
    let folder = tempfile::tempdir().unwrap();
    let ca = folder.path().join("ca");
    fs::write(&ca, certificate).unwrap();
    for scheme in ["etcd", "zookeeper"] {
        for url in [
            format!("{scheme}://me:hunter2@localhost/acme"),
            format!("{scheme}://me:hunter2@127.0.0.1:7,[::1]:7/acme"),
            format!("{scheme}://me:hunter2@192.0.2.1,store.example/acme?ca={}", ca.display()),
        ] {
            assert_eq!(warnings(&url).await, [] as [String; 0], "{url}");
        }
    }
}
