//! Administers the keys and tokens of a Consul server, over its HTTP API.

use std::{fmt, time::Duration};

use reqwest::{Client, Method, StatusCode};
use serde_json::{Value, json};

use crate::{error::ContainerError, health::eventually};

/// Limits one request, so that a frozen server does not block the test.
const REQUEST_TIMEOUT: Duration = Duration::from_secs(2);

/// Administers one Consul server, as an operator would.
#[derive(Clone)]
pub struct ConsulAdmin {
    client: Client,
    endpoint: String,
    token: Option<String>,
}

/// An ACL token.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ConsulToken {
    /// Its public name.
    pub accessor: String,
    /// What clients send.
    pub secret: String,
}

impl ConsulAdmin {
    /// A client of the server at `endpoint`, `host:port`. Sends nothing.
    pub fn new(endpoint: impl Into<String>) -> Self {
        // No idle connections: one that a fault has broken would fail the next request.
        let client = Client::builder().timeout(REQUEST_TIMEOUT).pool_max_idle_per_host(0).no_proxy().build();
        let client = client.expect("an HTTP client without TLS can always be built");
        Self { client, endpoint: endpoint.into(), token: None }
    }

    /// The same client with an ACL token.
    pub fn with_token(&self, token: impl Into<String>) -> Self {
        Self { token: Some(token.into()), ..self.clone() }
    }

    /// The `host:port` of the server.
    pub fn endpoint(&self) -> &str {
        &self.endpoint
    }

    /// Succeeds when the server is ready: the cluster has a leader, and keys can be read. That a token is needed is an answer, too.
    ///
    /// # Errors
    /// When it is not.
    pub async fn health(&self) -> Result<(), ContainerError> {
        self.leader().await?;
        match self.call(Method::GET, "kv/health?consistent", Vec::new()).await {
            Ok((StatusCode::OK | StatusCode::NOT_FOUND | StatusCode::FORBIDDEN, _)) => Ok(()),
            Ok((_, text)) => Err(self.refused("kv", text)),
            Err(error) => Err(error),
        }
    }

    /// The address of the server that leads, as this one knows it: `ip:port` on the network of the servers.
    ///
    /// # Errors
    /// When it knows none, or does not answer.
    pub async fn leader(&self) -> Result<String, ContainerError> {
        let leader = self.json(Method::GET, "status/leader", Vec::new()).await?;
        match leader.as_str() {
            Some(leader) if !leader.is_empty() => Ok(leader.to_owned()),
            _ => Err(ContainerError::Unexpected(format!("no leader at {}", self.endpoint))),
        }
    }

    /// The value of a key, if it exists.
    ///
    /// # Errors
    /// When the server refuses or does not answer.
    pub async fn get(&self, key: &str) -> Result<Option<String>, ContainerError> {
        match self.call(Method::GET, &format!("kv/{key}?consistent&raw"), Vec::new()).await? {
            (StatusCode::OK, value) => Ok(Some(value)),
            (StatusCode::NOT_FOUND, _) => Ok(None),
            (_, text) => Err(self.refused(key, text)),
        }
    }

    /// Writes a key.
    ///
    /// # Errors
    /// When the server refuses or does not answer.
    pub async fn put(&self, key: &str, value: impl Into<String>) -> Result<(), ContainerError> {
        self.json(Method::PUT, &format!("kv/{key}"), value.into().into_bytes()).await.map(|_| ())
    }

    /// Deletes all keys with a prefix.
    ///
    /// # Errors
    /// When the server refuses or does not answer.
    pub async fn delete_prefix(&self, prefix: &str) -> Result<(), ContainerError> {
        self.json(Method::DELETE, &format!("kv/{prefix}?recurse"), Vec::new()).await.map(|_| ())
    }

    /// The keys with a prefix.
    ///
    /// # Errors
    /// When the server refuses or does not answer.
    pub async fn keys(&self, prefix: &str) -> Result<Vec<String>, ContainerError> {
        match self.call(Method::GET, &format!("kv/{prefix}?keys&consistent"), Vec::new()).await? {
            (StatusCode::NOT_FOUND, _) => Ok(Vec::new()),
            (StatusCode::OK, keys) => serde_json::from_str(&keys)
                .map_err(|error| ContainerError::Unexpected(format!("{keys}: {error}"))),
            (_, text) => Err(self.refused(prefix, text)),
        }
    }

    /// Creates a token with a policy of these rules. Waits until the server has initialized its ACLs.
    ///
    /// # Errors
    /// When this client's token may not do that, or the server does not answer.
    pub async fn create_token(&self, rules: &str) -> Result<ConsulToken, ContainerError> {
        let name = format!("policy-{:016x}", fastrand::u64(..));
        let policy = json!({ "Name": name, "Rules": rules }).to_string().into_bytes();
        eventually("ACLs to be initialized", || self.json(Method::PUT, "acl/policy", policy.clone())).await?;
        let token = json!({ "Policies": [{ "Name": name }] }).to_string().into_bytes();
        let token = self.json(Method::PUT, "acl/token", token).await?;
        let text = |name: &str| token[name].as_str().unwrap_or_default().to_owned();
        Ok(ConsulToken { accessor: text("AccessorID"), secret: text("SecretID") })
    }

    /// Deletes a token.
    ///
    /// # Errors
    /// When the server refuses or does not answer.
    pub async fn delete_token(&self, token: &ConsulToken) -> Result<(), ContainerError> {
        self.json(Method::DELETE, &format!("acl/token/{}", token.accessor), Vec::new()).await.map(|_| ())
    }

    /// A snapshot of everything that the cluster stores.
    ///
    /// # Errors
    /// When the server refuses or does not answer.
    pub async fn save_snapshot(&self) -> Result<Vec<u8>, ContainerError> {
        let url = format!("http://{}/v1/snapshot", self.endpoint);
        let unreachable = |source| ContainerError::Unreachable { url: url.clone(), source };
        let answer = self.client.get(&url).send().await.map_err(unreachable)?;
        Ok(answer.bytes().await.map_err(unreachable)?.to_vec())
    }

    /// Restores a snapshot.
    ///
    /// # Errors
    /// When the server refuses or does not answer.
    pub async fn restore_snapshot(&self, snapshot: Vec<u8>) -> Result<(), ContainerError> {
        match self.call(Method::PUT, "snapshot", snapshot).await? {
            (StatusCode::OK, _) => Ok(()),
            (_, text) => Err(self.refused("snapshot", text)),
        }
    }

    async fn json(&self, method: Method, path: &str, body: Vec<u8>) -> Result<Value, ContainerError> {
        let (status, text) = self.call(method, path, body).await?;
        if status != StatusCode::OK {
            return Err(self.refused(path, text));
        }
        serde_json::from_str(&text)
            .map_err(|error| ContainerError::Unexpected(format!("{path}: {text}: {error}")))
    }

    async fn call(
        &self,
        method: Method,
        path: &str,
        body: Vec<u8>,
    ) -> Result<(StatusCode, String), ContainerError> {
        let url = format!("http://{}/v1/{path}", self.endpoint);
        let unreachable = |source| ContainerError::Unreachable { url: url.clone(), source };
        let mut request = self.client.request(method, &url).body(body);
        if let Some(token) = &self.token {
            request = request.header("X-Consul-Token", token);
        }
        let answer = request.send().await.map_err(unreachable)?;
        Ok((answer.status(), answer.text().await.map_err(unreachable)?))
    }

    fn refused(&self, path: &str, message: String) -> ContainerError {
        ContainerError::Refused { request: format!("{}/{path}", self.endpoint), message }
    }
}

impl fmt::Debug for ConsulAdmin {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ConsulAdmin").field("endpoint", &self.endpoint).finish_non_exhaustive()
    }
}
