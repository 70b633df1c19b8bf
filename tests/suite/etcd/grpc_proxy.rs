//! etcd behind its own grpc-proxy.

use tenure::{Connection, Error, Level};
use tenure_containers::{EtcdServer, SharedEtcd, Version};
use tenure_testkit::suite::within;

/// Hazard E20: the error of a campaign, the check at connecting and the doctor say that the URL names a grpc-proxy, also beside a
/// member.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_grpc_proxy_is_refused() {
    for version in Version::ETCD {
        let proxy = EtcdServer::start_behind_grpc_proxy(version).await.unwrap();
        let url = format!("etcd://{}/acme?ttl=5s", proxy.endpoint());
        let elector = tenure::connect(&url).await.unwrap();
        let error = within("the refusal", elector.campaign("e")).await.unwrap_err();
        assert!(matches!(error, Error::Refused(_)) && !error.is_retryable(), "{error:?}");
        let text = error.to_string();
        assert!(text.contains("grpc-proxy") && text.contains("name the members"), "{text}");
        assert!(text.contains(&proxy.endpoint()), "{text}");
        assert_eq!(elector.status().connection, Connection::Refused);
        let diagnoses = within("the diagnosis", elector.diagnose()).await;
        let problem = diagnoses.iter().find(|one| one.level == Level::Problem).unwrap();
        assert!(problem.text.contains("grpc-proxy"), "{diagnoses:?}");
        elector.close().await;
        let error = within("connecting", tenure::connect_checked(&url)).await.err().unwrap();
        assert!(error.to_string().contains("grpc-proxy"), "{error}");

        let server = SharedEtcd::get(version).await.unwrap();
        let beside = format!("etcd://{},{}/acme?ttl=5s", server.endpoint(), proxy.endpoint());
        let error = within("connecting", tenure::connect_checked(&beside)).await.err().unwrap();
        assert!(
            error.to_string().contains(&format!("{}: this is an etcd grpc-proxy", proxy.endpoint())),
            "{error}"
        );
    }
}
