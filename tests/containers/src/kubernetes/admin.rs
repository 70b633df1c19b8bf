//! A client that administers a Kubernetes API server, with one connection per request.

use std::{io, time::Duration};

use base64::{Engine as _, prelude::BASE64_STANDARD};
use http::{Method, Request, header::CONTENT_TYPE};
use kube::{Client, Config};
use serde_json::{Value, json};
use tokio::time::timeout;

use crate::{error::ContainerError, health::eventually};

/// How long a request may take, with its connection.
const REQUEST_TIMEOUT: Duration = Duration::from_secs(5);

const ADMIN_TOKEN: &str = "admin-token";

/// The resources of a namespace that tests create, by the path of their API.
const NAMESPACED: [(&str, &str); 4] = [
    ("/apis/coordination.k8s.io/v1", "leases"),
    ("/apis/rbac.authorization.k8s.io/v1", "rolebindings"),
    ("/apis/rbac.authorization.k8s.io/v1", "roles"),
    ("/api/v1", "serviceaccounts"),
];

/// A client that administers a Kubernetes API server. It does not verify the server's certificate.
#[derive(Clone, Debug)]
pub struct KubernetesAdmin {
    endpoint: String,
    token: String,
}

impl KubernetesAdmin {
    /// A client of the server at `endpoint`, `host:port`, as the user `admin`. Sends nothing.
    pub fn new(endpoint: impl Into<String>) -> Self {
        Self { endpoint: endpoint.into(), token: ADMIN_TOKEN.to_owned() }
    }

    /// The same client with another user's token.
    pub fn with_token(&self, token: impl Into<String>) -> Self {
        Self { endpoint: self.endpoint.clone(), token: token.into() }
    }

    /// The `host:port` of the server.
    pub fn endpoint(&self) -> &str {
        &self.endpoint
    }

    /// Succeeds when the server is ready, its etcd and its default roles too.
    ///
    /// # Errors
    /// When it is not.
    pub async fn health(&self) -> Result<(), ContainerError> {
        self.text(Method::GET, "/readyz", None).await.map(drop)
    }

    /// Sends a request, and returns the answer. The body of a `PATCH` is a merge patch.
    ///
    /// # Errors
    /// When the server refuses the request, or does not answer within 5 s.
    pub async fn request(
        &self,
        method: Method,
        path: &str,
        body: Option<&Value>,
    ) -> Result<Value, ContainerError> {
        let text = self.text(method, path, body).await?;
        serde_json::from_str(&text).map_err(|error| ContainerError::Unexpected(format!("{path}: {error}")))
    }

    async fn text(&self, method: Method, path: &str, body: Option<&Value>) -> Result<String, ContainerError> {
        let name = format!("{method} {path} at {}", self.endpoint);
        let content =
            if method == Method::PATCH { "application/merge-patch+json" } else { "application/json" };
        let body = body.map(|body| body.to_string().into_bytes()).unwrap_or_default();
        let request = Request::builder().method(method).uri(path).header(CONTENT_TYPE, content).body(body);
        let request = request.map_err(|error| ContainerError::Unexpected(format!("{name}: {error}")))?;
        let client = self.client()?;
        match timeout(REQUEST_TIMEOUT, client.request_text(request)).await {
            Ok(Ok(text)) => Ok(text),
            Ok(Err(kube::Error::Api(status))) => {
                let message = format!("{} ({} {})", status.message, status.code, status.reason);
                Err(ContainerError::Refused { request: name, message })
            }
            Ok(Err(error)) => {
                Err(ContainerError::NoAnswer { request: name, source: io::Error::other(error) })
            }
            Err(_) => Err(ContainerError::NoAnswer { request: name, source: io::ErrorKind::TimedOut.into() }),
        }
    }

    fn client(&self) -> Result<Client, ContainerError> {
        let unusable = |reason: String| ContainerError::Unexpected(format!("{}: {reason}", self.endpoint));
        let url = format!("https://{}", self.endpoint).parse();
        let mut config =
            Config::new(url.map_err(|error: http::uri::InvalidUri| unusable(error.to_string()))?);
        config.accept_invalid_certs = true;
        config.default_retry = false;
        config.auth_info.token = Some(self.token.clone().into());
        Client::try_from(config).map_err(|error| unusable(error.to_string()))
    }

    /// Creates a namespace.
    ///
    /// # Errors
    /// When it exists, or the server does not answer.
    pub async fn create_namespace(&self, name: &str) -> Result<(), ContainerError> {
        let namespace = json!({ "metadata": { "name": name } });
        self.request(Method::POST, "/api/v1/namespaces", Some(&namespace)).await.map(drop)
    }

    /// Deletes a namespace, and what tests create in one, as a cluster's controllers would.
    ///
    /// # Errors
    /// When there is none, or the server does not answer.
    pub async fn delete_namespace(&self, name: &str) -> Result<(), ContainerError> {
        let path = format!("/api/v1/namespaces/{name}");
        let mut namespace = self.request(Method::DELETE, &path, None).await?;
        for (api, resource) in NAMESPACED {
            let all = format!("{api}/namespaces/{name}/{resource}");
            self.request(Method::DELETE, &all, None).await?;
        }
        namespace["spec"]["finalizers"] = json!([]);
        self.request(Method::PUT, &format!("{path}/finalize"), Some(&namespace)).await.map(drop)
    }

    /// A Lease, if it exists.
    ///
    /// # Errors
    /// When the server does not answer.
    pub async fn lease(&self, namespace: &str, name: &str) -> Result<Option<Value>, ContainerError> {
        let leases = self.leases(namespace).await?;
        Ok(leases.into_iter().find(|lease| lease["metadata"]["name"] == name))
    }

    /// All Leases of a namespace.
    ///
    /// # Errors
    /// When the server does not answer.
    pub async fn leases(&self, namespace: &str) -> Result<Vec<Value>, ContainerError> {
        let mut list = self.request(Method::GET, &leases_path(namespace), None).await?;
        match list["items"].take() {
            Value::Array(leases) => Ok(leases),
            other => Err(ContainerError::Unexpected(format!("{other} is no list of Leases"))),
        }
    }

    /// Creates a Lease with this spec.
    ///
    /// # Errors
    /// When it exists, or the server does not answer.
    pub async fn create_lease(
        &self,
        namespace: &str,
        name: &str,
        spec: &Value,
    ) -> Result<(), ContainerError> {
        let lease = json!({ "metadata": { "name": name }, "spec": spec });
        self.request(Method::POST, &leases_path(namespace), Some(&lease)).await.map(drop)
    }

    /// Changes a Lease by a merge patch.
    ///
    /// # Errors
    /// When there is none, or the server does not answer.
    pub async fn patch_lease(
        &self,
        namespace: &str,
        name: &str,
        patch: &Value,
    ) -> Result<(), ContainerError> {
        let path = format!("{}/{name}", leases_path(namespace));
        self.request(Method::PATCH, &path, Some(patch)).await.map(drop)
    }

    /// Deletes a Lease.
    ///
    /// # Errors
    /// When there is none, or the server does not answer.
    pub async fn delete_lease(&self, namespace: &str, name: &str) -> Result<(), ContainerError> {
        let path = format!("{}/{name}", leases_path(namespace));
        self.request(Method::DELETE, &path, None).await.map(drop)
    }

    /// Creates a service account.
    ///
    /// # Errors
    /// When it exists, or the server does not answer.
    pub async fn create_service_account(&self, namespace: &str, name: &str) -> Result<(), ContainerError> {
        let path = format!("/api/v1/namespaces/{namespace}/serviceaccounts");
        let account = json!({ "metadata": { "name": name } });
        self.request(Method::POST, &path, Some(&account)).await.map(drop)
    }

    /// A new token of a service account. The server accepts no validity below ten minutes.
    ///
    /// # Errors
    /// When there is no such account, or the server does not answer.
    pub async fn request_token(
        &self,
        namespace: &str,
        account: &str,
        validity: Duration,
    ) -> Result<String, ContainerError> {
        let path = format!("/api/v1/namespaces/{namespace}/serviceaccounts/{account}/token");
        let request = json!({ "spec": { "audiences": [], "expirationSeconds": validity.as_secs() } });
        let answer = self.request(Method::POST, &path, Some(&request)).await?;
        let token = answer["status"]["token"].as_str().map(str::to_owned);
        token.ok_or_else(|| ContainerError::Unexpected(format!("no token in {answer}")))
    }

    /// Allows a user these verbs on the Leases of a namespace, and no others. Waits until this server knows that.
    ///
    /// `user` is a user's name, or `system:serviceaccount:NAMESPACE:NAME`.
    ///
    /// # Errors
    /// When the server does not answer, or does not know it within a minute.
    pub async fn allow(&self, namespace: &str, user: &str, verbs: &[&str]) -> Result<(), ContainerError> {
        let name = user.replace(':', ".");
        let rbac = format!("/apis/rbac.authorization.k8s.io/v1/namespaces/{namespace}");
        let rules =
            json!([{ "apiGroups": ["coordination.k8s.io"], "resources": ["leases"], "verbs": verbs }]);
        let role = json!({ "metadata": { "name": name }, "rules": rules });
        let patched = self.request(Method::PATCH, &format!("{rbac}/roles/{name}"), Some(&role)).await;
        if patched.is_err() {
            self.request(Method::POST, &format!("{rbac}/roles"), Some(&role)).await?;
            let binding = json!({
                "metadata": { "name": name },
                "roleRef": { "apiGroup": "rbac.authorization.k8s.io", "kind": "Role", "name": name },
                "subjects": [{ "apiGroup": "rbac.authorization.k8s.io", "kind": "User", "name": user }],
            });
            self.request(Method::POST, &format!("{rbac}/rolebindings"), Some(&binding)).await?;
        }
        for verb in ["get", "create", "update", "watch", "list"] {
            let expected = verbs.contains(&verb);
            eventually("the server to know the role", || async {
                match self.is_allowed(namespace, user, verb).await? {
                    allowed if allowed == expected => Ok(()),
                    _ => Err(ContainerError::Unexpected(format!("{verb} is not {expected} for {user}"))),
                }
            })
            .await?;
        }
        Ok(())
    }

    async fn is_allowed(&self, namespace: &str, user: &str, verb: &str) -> Result<bool, ContainerError> {
        let attributes = json!({ "namespace": namespace, "verb": verb, "group": "coordination.k8s.io", "resource": "leases" });
        let review = json!({
            "apiVersion": "authorization.k8s.io/v1", "kind": "SubjectAccessReview",
            "spec": { "user": user, "resourceAttributes": attributes },
        });
        let path = "/apis/authorization.k8s.io/v1/subjectaccessreviews";
        let answer = self.request(Method::POST, path, Some(&review)).await?;
        Ok(answer["status"]["allowed"] == true)
    }

    /// Gives a user a share of the server's capacity that holds one request at a time: the others are refused with 429.
    ///
    /// # Errors
    /// When there is such a share already, or the server does not answer.
    pub async fn throttle(&self, user: &str) -> Result<(), ContainerError> {
        const API: &str = "/apis/flowcontrol.apiserver.k8s.io/v1beta1";
        let name = format!("throttle-{user}");
        let limited = json!({ "assuredConcurrencyShares": 1, "limitResponse": { "type": "Reject" } });
        let level =
            json!({ "metadata": { "name": name }, "spec": { "type": "Limited", "limited": limited } });
        self.request(Method::POST, &format!("{API}/prioritylevelconfigurations"), Some(&level)).await?;
        let rules = json!([{
            "subjects": [{ "kind": "User", "user": { "name": user } }],
            "resourceRules": [{ "verbs": ["*"], "apiGroups": ["*"], "resources": ["*"], "namespaces": ["*"], "clusterScope": true }],
        }]);
        let schema = json!({
            "metadata": { "name": name },
            "spec": { "matchingPrecedence": 2, "priorityLevelConfiguration": { "name": name }, "rules": rules },
        });
        self.request(Method::POST, &format!("{API}/flowschemas"), Some(&schema)).await.map(drop)
    }

    /// The certificate of the authority that signed the server's, in PEM.
    ///
    /// # Errors
    /// When the server does not publish it within a minute of its start.
    pub async fn authority(&self) -> Result<String, ContainerError> {
        const PATH: &str = "/api/v1/namespaces/kube-system/configmaps/extension-apiserver-authentication";
        eventually("the server to publish its authority", || async {
            let published = self.request(Method::GET, PATH, None).await?;
            let authority = published["data"]["client-ca-file"].as_str().map(str::to_owned);
            authority.ok_or_else(|| ContainerError::Unexpected(format!("no client-ca-file in {published}")))
        })
        .await
    }

    /// A kubeconfig for a user with this token and a namespace. `endpoint` is the `host:port` at which that user reaches this
    /// server.
    ///
    /// # Errors
    /// As for [`authority`](Self::authority).
    pub async fn kubeconfig(
        &self,
        endpoint: &str,
        token: &str,
        namespace: &str,
    ) -> Result<String, ContainerError> {
        let authority = BASE64_STANDARD.encode(self.authority().await?);
        let server = format!("https://{endpoint}");
        let kubeconfig = json!({
            "apiVersion": "v1", "kind": "Config", "current-context": "test",
            "clusters": [{ "name": "test", "cluster": { "server": server, "certificate-authority-data": authority } }],
            "users": [{ "name": "test", "user": { "token": token } }],
            "contexts": [{ "name": "test", "context": { "cluster": "test", "user": "test", "namespace": namespace } }],
        });
        Ok(kubeconfig.to_string())
    }
}

fn leases_path(namespace: &str) -> String {
    format!("/apis/coordination.k8s.io/v1/namespaces/{namespace}/leases")
}
