//! Requests to etcd's JSON gateway, and the forms of its numbers and bytes.

use std::{str::FromStr, time::Duration};

use base64::{Engine as _, engine::general_purpose::STANDARD};
use reqwest::{Client, header::AUTHORIZATION};
use serde_json::Value;

use super::ContainerError;

/// Bounds one request: a frozen server must not freeze the test.
const TIMEOUT: Duration = Duration::from_secs(2);

#[derive(Clone)]
pub(super) struct Gateway {
    client: Client,
    endpoint: String,
    token: Option<String>,
}

impl Gateway {
    pub(super) fn new(endpoint: String) -> Self {
        // No connection is kept: one that a fault has broken would fail the next request.
        let client = Client::builder().timeout(TIMEOUT).pool_max_idle_per_host(0).no_proxy().build();
        let client = client.expect("an HTTP client without TLS needs nothing that could be missing");
        Self { client, endpoint, token: None }
    }

    pub(super) fn with_token(&self, token: &str) -> Self {
        Self { token: Some(token.to_owned()), ..self.clone() }
    }

    pub(super) fn endpoint(&self) -> &str {
        &self.endpoint
    }

    /// Calls a method of the gateway: `kv/put`, say.
    pub(super) async fn call(&self, method: &str, request: Value) -> Result<Value, ContainerError> {
        let url = format!("http://{}/v3/{method}", self.endpoint);
        let mut http = self.client.post(&url).json(&request);
        if let Some(token) = &self.token {
            http = http.header(AUTHORIZATION, token);
        }
        let unreachable = |source| ContainerError::Unreachable { url: url.clone(), source };
        let answer = http.send().await.map_err(unreachable)?;
        let refused = !answer.status().is_success();
        let answer: Value = answer.json().await.map_err(unreachable)?;
        if refused {
            let message = answer["error"].as_str().map_or_else(|| answer.to_string(), str::to_owned);
            return Err(ContainerError::Refused { url, message });
        }
        Ok(answer)
    }

    /// What the server counts, as text.
    pub(super) async fn metrics(&self) -> Result<String, ContainerError> {
        let url = format!("http://{}/metrics", self.endpoint);
        let unreachable = |source| ContainerError::Unreachable { url: url.clone(), source };
        let answer = self.client.get(&url).send().await.map_err(unreachable)?;
        answer.text().await.map_err(unreachable)
    }

    pub(super) async fn health(&self) -> Result<(), ContainerError> {
        let url = format!("http://{}/health", self.endpoint);
        let unreachable = |source| ContainerError::Unreachable { url: url.clone(), source };
        let answer = self.client.get(&url).send().await.map_err(unreachable)?;
        let answer: Value = answer.json().await.map_err(unreachable)?;
        if answer["health"] == "true" {
            return Ok(());
        }
        Err(ContainerError::Refused { url, message: answer.to_string() })
    }
}

/// A number of 64 bits; zero where it was left out.
pub(super) fn number<N: FromStr + Default>(value: &Value) -> N {
    value.as_str().and_then(|text| text.parse().ok()).unwrap_or_default()
}

pub(super) fn encoded(bytes: impl AsRef<[u8]>) -> String {
    STANDARD.encode(bytes)
}

pub(super) fn bytes(value: &Value) -> Result<Vec<u8>, ContainerError> {
    let text = value.as_str().unwrap_or_default();
    STANDARD.decode(text).map_err(|error| ContainerError::Malformed(format!("{text:?}: {error}")))
}

pub(super) fn decoded(value: &Value) -> Result<String, ContainerError> {
    String::from_utf8(bytes(value)?)
        .map_err(|error| ContainerError::Malformed(format!("a key that is not text: {error}")))
}

/// The end of the range of all keys with a prefix: the first key after them.
pub(super) fn range_end(prefix: &str) -> Vec<u8> {
    let mut end = prefix.as_bytes().to_vec();
    while let Some(last) = end.pop() {
        if last < u8::MAX {
            end.push(last + 1);
            return end;
        }
    }
    // etcd's name for "no end", which an empty prefix needs.
    vec![0]
}
