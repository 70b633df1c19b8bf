//! Requests to etcd's JSON gateway, and the encoding of its numbers and bytes.

use std::{str::FromStr, time::Duration};

use base64::{Engine as _, engine::general_purpose::STANDARD};
use reqwest::{Client, header::AUTHORIZATION};
use serde_json::Value;

use crate::error::ContainerError;

/// Limits one request, so that a frozen server does not block the test.
const REQUEST_TIMEOUT: Duration = Duration::from_secs(2);

#[derive(Clone)]
pub(super) struct Gateway {
    client: Client,
    endpoint: String,
    token: Option<String>,
}

impl Gateway {
    pub(super) fn new(endpoint: String) -> Self {
        // No idle connections: one that a fault has broken would fail the next request.
        let client = Client::builder().timeout(REQUEST_TIMEOUT).pool_max_idle_per_host(0).no_proxy().build();
        let client = client.expect("an HTTP client without TLS can always be built");
        Self { client, endpoint, token: None }
    }

    pub(super) fn with_token(&self, token: &str) -> Self {
        Self { token: Some(token.to_owned()), ..self.clone() }
    }

    pub(super) fn endpoint(&self) -> &str {
        &self.endpoint
    }

    /// Calls a method of the gateway, for example `kv/put`.
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
            return Err(ContainerError::Refused { request: url, message });
        }
        Ok(answer)
    }

    /// The server's metrics in Prometheus' text format.
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
        Err(ContainerError::Refused { request: url, message: answer.to_string() })
    }
}

/// A 64-bit number; zero when the field is missing.
pub(super) fn number<N: FromStr + Default>(value: &Value) -> N {
    value.as_str().and_then(|text| text.parse().ok()).unwrap_or_default()
}

pub(super) fn encode(bytes: impl AsRef<[u8]>) -> String {
    STANDARD.encode(bytes)
}

pub(super) fn decode(value: &Value) -> Result<Vec<u8>, ContainerError> {
    let text = value.as_str().unwrap_or_default();
    STANDARD.decode(text).map_err(|error| ContainerError::Unexpected(format!("{text:?}: {error}")))
}

pub(super) fn decode_text(value: &Value) -> Result<String, ContainerError> {
    String::from_utf8(decode(value)?)
        .map_err(|error| ContainerError::Unexpected(format!("a key is not UTF-8: {error}")))
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
    // A zero byte means "no end" to etcd, which an empty prefix needs.
    vec![0]
}
