//! The controller and its manifests on a real API server.

use std::{
    fs,
    io::{BufRead as _, BufReader},
    path::{Path, PathBuf},
    process::{Child, Command, ExitStatus, Stdio},
    time::Duration,
};

use http::Method;
use rustix::process::{Pid, Signal, kill_process};
use serde_json::{Value, json};
use tenure_containers::{ContainerError, KubernetesAdmin, SharedKubernetes, Version};
use tenure_testkit::suite::until;

const DIGEST: &str = "example.com/digest";
const TOKEN: &str = "tenure/token";

/// A namespace of its own on an API server that tests share.
struct Namespace {
    server: SharedKubernetes,
    name: String,
}

impl Namespace {
    async fn create() -> Self {
        let server = SharedKubernetes::get(Version::Kubernetes120).await.unwrap();
        let name = format!("controller-{:08x}", fastrand::u32(..));
        server.admin().create_namespace(&name).await.unwrap();
        Self { server, name }
    }

    fn admin(&self) -> &KubernetesAdmin {
        self.server.admin()
    }

    /// The path of a resource such as `/api/v1`, `configmaps`.
    fn path(&self, api: &str, resource: &str) -> String {
        format!("{api}/namespaces/{}/{resource}", self.name)
    }

    async fn create_object(&self, mut object: Value, dry_run: bool) -> Result<Value, ContainerError> {
        let api = match object["apiVersion"].as_str().unwrap() {
            // Which the server does not have yet.
            "policy/v1" => {
                object["apiVersion"] = json!("policy/v1beta1");
                "/apis/policy/v1beta1".to_owned()
            }
            "v1" => "/api/v1".to_owned(),
            group => format!("/apis/{group}"),
        };
        // As kustomize does.
        for subject in object["subjects"].as_array_mut().into_iter().flatten() {
            subject["namespace"] = json!(self.name);
        }
        let resource = object["kind"].as_str().unwrap().to_lowercase() + "s";
        let option = if dry_run { "?dryRun=All" } else { "" };
        let path = self.path(&api, &resource) + option;
        self.admin().request(Method::POST, &path, Some(&object)).await
    }

    async fn delete(self) {
        self.admin().delete_namespace(&self.name).await.unwrap();
    }

    async fn config_map(&self) -> Value {
        let path = self.path("/api/v1", "configmaps/prices");
        self.admin().request(Method::GET, &path, None).await.unwrap()
    }

    /// The token of the leader that has reconciled the ConfigMap in its present state, if one has.
    async fn reconciled_by(&self, digest_before: &str) -> Option<u64> {
        let annotations = &self.config_map().await["metadata"]["annotations"];
        let digest = annotations[DIGEST].as_str()?;
        (digest != digest_before).then(|| annotations[TOKEN].as_str().unwrap().parse().unwrap())
    }
}

fn deploy() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("deploy")
}

fn documents(file: &Path) -> Vec<Value> {
    let text = fs::read_to_string(file).unwrap();
    serde_saphyr::from_multiple(&text).unwrap_or_else(|error| panic!("{}: {error}", file.display()))
}

/// Each object of each folder, by a dry run. Rendering them is kustomize's part.
#[tokio::test]
async fn the_manifests_are_accepted() {
    let namespace = Namespace::create().await;
    for folder in ["base", "leader-service", "tenure-run"] {
        let folder = deploy().join(folder);
        let [kustomization] = &documents(&folder.join("kustomization.yaml"))[..] else {
            panic!("one document")
        };
        for file in kustomization["resources"].as_array().unwrap() {
            for object in documents(&folder.join(file.as_str().unwrap())) {
                let described = format!("{} in {file} of {}", object["kind"], folder.display());
                let accepted = namespace.create_object(object, true).await;
                accepted.unwrap_or_else(|error| panic!("{described}: {error}"));
            }
        }
    }
    namespace.delete().await;
}

struct Replica {
    process: Child,
    name: String,
    url: String,
}

impl Replica {
    fn start(namespace: &Namespace, kubeconfig: &Path, name: &str) -> Self {
        let mut command = Command::new(env!("CARGO_BIN_EXE_controller"));
        command.args(["--listen", "127.0.0.1:0", "--election", "digests"]);
        command.arg("--store").arg(format!("kubernetes:///{}?ttl=5s", namespace.name));
        command.env("KUBECONFIG", kubeconfig).env("POD_NAME", name).env("POD_UID", "1b0c");
        let mut process = command.stdin(Stdio::null()).stdout(Stdio::piped()).spawn().unwrap();
        let mut line = String::new();
        BufReader::new(process.stdout.take().unwrap()).read_line(&mut line).unwrap();
        let url = line.trim().strip_prefix("listening on ").expect("it says where it listens").to_owned();
        Self { process, name: name.to_owned(), url }
    }

    /// Whether it answers that it leads.
    async fn leads(&self) -> bool {
        let request = reqwest::Client::new().get(format!("{}/leading", self.url));
        request.timeout(Duration::from_secs(2)).send().await.is_ok_and(|answer| answer.status().is_success())
    }

    fn signal(&self, signal: Signal) {
        kill_process(Pid::from_child(&self.process), signal).unwrap();
    }

    fn stop(&mut self) -> ExitStatus {
        self.signal(Signal::TERM);
        self.process.wait().unwrap()
    }
}

impl Drop for Replica {
    fn drop(&mut self) {
        // It may have ended.
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

/// Starts what the manifests deploy, with the service account and the rights of the base.
async fn deployed(namespace: &Namespace) -> (tempfile::NamedTempFile, [Replica; 2]) {
    for object in documents(&deploy().join("base/rbac.yaml")) {
        namespace.create_object(object, false).await.unwrap();
    }
    let admin = namespace.admin();
    let token = admin.request_token(&namespace.name, "controller", Duration::from_secs(3600)).await.unwrap();
    let account = admin.with_token(&token);
    let config_maps = namespace.path("/api/v1", "configmaps");
    until("the server knows the role", async || {
        account.request(Method::GET, &config_maps, None).await.is_ok()
    })
    .await;
    let kubeconfig = tempfile::NamedTempFile::new().unwrap();
    let text = admin.kubeconfig(admin.endpoint(), &token, &namespace.name).await.unwrap();
    fs::write(kubeconfig.path(), text).unwrap();
    let replicas =
        ["controller-0", "controller-1"].map(|name| Replica::start(namespace, kubeconfig.path(), name));
    (kubeconfig, replicas)
}

/// Hazards G1 and K3: a leader that is frozen and continues writes nothing, and does not lead.
#[tokio::test]
async fn a_frozen_leader_writes_nothing_after_its_successor_has() {
    let namespace = Namespace::create().await;
    namespace
        .create_object(
            json!({
                "apiVersion": "v1", "kind": "ConfigMap",
                "metadata": { "name": "prices", "labels": { DIGEST: "wanted" } },
                "data": { "bread": "3" },
            }),
            false,
        )
        .await
        .unwrap();
    let (_kubeconfig, [first, second]) = deployed(&namespace).await;
    until("one leads", async || first.leads().await != second.leads().await).await;
    let (mut leader, mut successor) = if first.leads().await { (first, second) } else { (second, first) };
    until("the ConfigMap has its digest", async || namespace.reconciled_by("").await.is_some()).await;
    let lease = namespace.admin().lease(&namespace.name, "digests").await.unwrap().unwrap();
    let holder = lease["spec"]["holderIdentity"].as_str().unwrap();
    assert!(holder.starts_with(&format!("{}_1b0c_", leader.name)), "{holder}");
    let before = namespace.config_map().await;
    let digest = before["metadata"]["annotations"][DIGEST].as_str().unwrap();
    let token = namespace.reconciled_by("").await.unwrap();

    leader.signal(Signal::STOP);
    let change = json!({ "data": { "bread": "4" } });
    let path = namespace.path("/api/v1", "configmaps/prices");
    namespace.admin().request(Method::PATCH, &path, Some(&change)).await.unwrap();
    until("the successor leads", async || successor.leads().await).await;
    until("it has reconciled", async || namespace.reconciled_by(digest).await > Some(token)).await;
    let after = namespace.config_map().await;
    leader.signal(Signal::CONT);
    until("the former leader answers", async || {
        reqwest::get(format!("{}/readyz", leader.url)).await.is_ok_and(|answer| answer.status().is_success())
    })
    .await;
    assert!(!leader.leads().await && successor.leads().await);
    assert_eq!(namespace.config_map().await, after);

    // A replica that is stopped hands over, and the next one marks the object.
    let token = namespace.reconciled_by(digest).await.unwrap();
    assert!(successor.stop().success());
    until("the other leads again", async || leader.leads().await).await;
    until("it has marked the object", async || namespace.reconciled_by(digest).await > Some(token)).await;
    assert!(leader.stop().success());
    namespace.delete().await;
}
