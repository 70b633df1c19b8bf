//! `tenure run` in a pod: a container with what Kubernetes gives one.

mod common;

use std::{
    fs,
    process::{self, Command},
    time::Duration,
};

use common::{stdout, succeed};
use tempfile::TempDir;
use tenure_containers::{SharedKubernetes, Version};

/// Where a pod has the token of its service account.
const SERVICE_ACCOUNT: &str = "/var/run/secrets/kubernetes.io/serviceaccount";

/// The cluster, the namespace and the credentials are those of the service account, and the candidate has the pod's name and uid.
#[tokio::test(flavor = "multi_thread")]
async fn a_pod_leads_by_its_service_account() {
    let server = SharedKubernetes::get(Version::Kubernetes120).await.unwrap();
    let (admin, namespace) = (server.admin(), format!("pod-{:016x}", fastrand::u64(..)));
    admin.create_namespace(&namespace).await.unwrap();
    admin.create_service_account(&namespace, "billing").await.unwrap();
    let user = format!("system:serviceaccount:{namespace}:billing");
    admin.allow(&namespace, &user, &["get", "create", "update"]).await.unwrap();
    let token = admin.request_token(&namespace, "billing", Duration::from_secs(600)).await.unwrap();
    let account = TempDir::new().unwrap();
    for (name, text) in
        [("token", &token), ("ca.crt", &admin.authority().await.unwrap()), ("namespace", &namespace)]
    {
        fs::write(account.path().join(name), text).unwrap();
    }
    let endpoint = server.endpoint();
    let port = endpoint.rsplit(':').next().unwrap();
    // On the host's network, where the server's port is published.
    let mut pod = Command::new("docker");
    pod.args(["run", "--rm", "--pull=never", "--network=host", "--entrypoint=tenure"])
        .arg(format!("--label=tenure-test={}", process::id()))
        .arg(format!("--volume={}:/usr/bin/tenure:ro", env!("CARGO_BIN_EXE_tenure")))
        .arg(format!("--volume={}:{SERVICE_ACCOUNT}:ro", account.path().display()))
        .arg("--env=KUBERNETES_SERVICE_HOST=127.0.0.1")
        .arg(format!("--env=KUBERNETES_SERVICE_PORT={port}"))
        .args(["--env=POD_NAME=billing-0", "--env=POD_UID=0f4c"])
        .args(["--env=TENURE_STORE=kubernetes:///", "--env=TENURE_ELECTION=billing"])
        .arg(Version::Kubernetes120.image())
        .args([
            "run",
            "--quiet",
            "--",
            "sh",
            "-ec",
            "echo $TENURE_FENCING_TOKEN $TENURE_CANDIDATE; tenure leader",
        ]);
    let printed = stdout(&succeed(&mut pod));
    let [term, leader] = printed.lines().collect::<Vec<_>>()[..] else { panic!("{printed}") };
    let (fencing_token, candidate) = term.split_once(' ').unwrap();
    assert!(fencing_token.parse::<u64>().is_ok_and(|token| token > 0), "{printed}");
    assert_eq!(candidate, "billing-0_0f4c");
    assert!(leader.contains("billing-0_0f4c") && leader.contains(fencing_token), "{printed}");
    let lease = admin.lease(&namespace, "billing").await.unwrap().unwrap();
    assert_eq!(lease["spec"]["holderIdentity"], "", "it has resigned");
}
