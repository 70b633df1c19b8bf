//! Nothing that is printed while an API server fails or refuses contains a token: log lines of all libraries at all levels, errors
//! with their sources, `Debug` output and status.

use std::{
    error::Error as _,
    io::{self, Write},
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use tenure::{Config, Elector as _, StoreElector, spi::Backend as _};
use tenure_containers::Version;
use tenure_kubernetes::KubernetesConfig;
use tenure_testkit::{proxy::Proxy, suite::within};
use tenure_tests::{Kubeconfig, Kubernetes};
use tracing_subscriber::filter::LevelFilter;

/// A token that no server knows.
const WRONG: &str = "Quagmire0815";

#[derive(Clone, Default)]
struct Printed(Arc<Mutex<Vec<u8>>>);

impl Write for Printed {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).write(bytes)
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn nothing_that_is_printed_holds_a_token() {
    // Before anything is printed: the answer with the token is.
    let kubernetes = Kubernetes::new(Version::Kubernetes120).await;
    let (admin, namespace) = (kubernetes.admin(), kubernetes.namespace());
    let user = format!("system:serviceaccount:{namespace}:billing");
    admin.create_service_account(namespace, "billing").await.unwrap();
    admin.allow(namespace, &user, &["get", "create", "update", "watch"]).await.unwrap();
    let token = admin.request_token(namespace, "billing", Duration::from_secs(600)).await.unwrap();
    assert!(token.starts_with("eyJ"));
    let proxy = Proxy::start(admin.endpoint()).await.unwrap();
    let kubeconfig = Kubeconfig::new(admin, &proxy.endpoint(), &token, namespace).await;
    let wrong = Kubeconfig::new(admin, &proxy.endpoint(), WRONG, namespace).await;

    let mut printed = Printed::default();
    let writer = printed.clone();
    tracing_subscriber::fmt()
        .with_max_level(LevelFilter::TRACE)
        .with_ansi(false)
        .with_writer(move || writer.clone())
        .init();
    let elector = |kubeconfig: &Kubeconfig| {
        let config = Config::new().with_ttl(Duration::from_secs(4));
        StoreElector::new(Arc::new(kubeconfig.backend()), config).unwrap()
    };
    let leader = elector(&kubeconfig);
    let leadership = within("leading", leader.campaign("e")).await.unwrap();
    let refused = elector(&wrong);
    let errors = [
        within("a refusal", refused.try_campaign("f")).await.map(drop),
        within("a refusal", refused.leader("e")).await.map(drop),
    ];
    for error in errors.into_iter().map(Result::unwrap_err) {
        writeln!(printed, "{error} {error:?} {:?}", error.source()).unwrap();
    }
    proxy.cut();
    within("the loss", leadership.lost()).await;
    for (name, kubeconfig, elector) in [("right", &kubeconfig, &leader), ("wrong", &wrong, &refused)] {
        let config = KubernetesConfig::new().kubeconfig(kubeconfig.path());
        let backend = kubeconfig.backend();
        let found = within("the diagnosis", backend.diagnose()).await;
        writeln!(printed, "{name} {config:?} {backend:?} {found:?} {elector:?} {:?}", elector.status())
            .unwrap();
    }
    writeln!(printed, "{leadership:?} {:?}", leadership.loss()).unwrap();

    let text =
        String::from_utf8_lossy(&printed.0.lock().unwrap_or_else(PoisonError::into_inner)).into_owned();
    for expected in ["kubernetesbackend", "hyper", "rustls", "401"] {
        assert!(text.to_lowercase().contains(expected), "nothing was printed of {expected}");
    }
    let found = text.lines().find(|line| line.contains(WRONG) || line.contains("eyJ"));
    assert_eq!(found, None);
}
