//! A client that administers a NATS server, with one connection per request.

use std::time::Duration;

use async_nats::ConnectOptions;
use serde_json::{Value, json};
use tokio::time::timeout;

use crate::error::ContainerError;

/// How long a request may take, with its connection.
const REQUEST_TIMEOUT: Duration = Duration::from_secs(2);

/// A client that administers a NATS server: as the user `admin`, if the server has users.
#[derive(Clone, Debug)]
pub struct NatsAdmin {
    endpoint: String,
}

impl NatsAdmin {
    /// A client of the server at `endpoint`, `host:port`. Sends nothing.
    pub fn new(endpoint: impl Into<String>) -> Self {
        Self { endpoint: endpoint.into() }
    }

    /// The `host:port` of the server.
    pub fn endpoint(&self) -> &str {
        &self.endpoint
    }

    /// Succeeds when JetStream is ready; in a cluster, when it has a leader.
    ///
    /// # Errors
    /// When it is not.
    pub async fn health(&self) -> Result<(), ContainerError> {
        self.request("$JS.API.INFO", Value::Null).await.map(drop)
    }

    /// Sends a request, and returns the answer: `null` for one that is not JSON.
    ///
    /// # Errors
    /// When the server refuses it, or does not answer within 2 s.
    pub async fn request(&self, subject: &str, body: Value) -> Result<Value, ContainerError> {
        let failed =
            |error: String| ContainerError::Unexpected(format!("{subject} at {}: {error}", self.endpoint));
        let body = if body.is_null() { Vec::new() } else { body.to_string().into_bytes() };
        let request = async {
            let options = ConnectOptions::new().user_and_password("admin".to_owned(), "admin".to_owned());
            let client = options
                .max_reconnects(1)
                .connection_timeout(REQUEST_TIMEOUT)
                .connect(format!("nats://{}", self.endpoint))
                .await
                .map_err(|error| failed(error.to_string()))?;
            client.request(subject.to_owned(), body.into()).await.map_err(|error| failed(error.to_string()))
        };
        let answer =
            timeout(REQUEST_TIMEOUT, request).await.map_err(|_| failed("no answer".to_owned()))??;
        let answer: Value = serde_json::from_slice(&answer.payload).unwrap_or_default();
        match answer.get("error") {
            None => Ok(answer),
            Some(error) => Err(failed(error.to_string())),
        }
    }

    /// Creates a bucket for keys and values. `settings` of its stream replace or complete the usual ones.
    ///
    /// # Errors
    /// As for [`request`](Self::request).
    pub async fn create_bucket(&self, bucket: &str, settings: &Value) -> Result<(), ContainerError> {
        let mut all = json!({
            "name": format!("KV_{bucket}"),
            "subjects": [format!("$KV.{bucket}.>")],
            "max_msgs_per_subject": 1,
            "discard": "new",
            "storage": "file",
            "num_replicas": 1,
            "allow_rollup_hdrs": true,
            "deny_delete": true,
            "allow_direct": true,
        });
        for (name, value) in settings.as_object().into_iter().flatten() {
            all[name] = value.clone();
        }
        self.request(&format!("$JS.API.STREAM.CREATE.KV_{bucket}"), all).await.map(drop)
    }

    /// Deletes a bucket.
    ///
    /// # Errors
    /// As for [`request`](Self::request).
    pub async fn delete_bucket(&self, bucket: &str) -> Result<(), ContainerError> {
        self.request(&format!("$JS.API.STREAM.DELETE.KV_{bucket}"), Value::Null).await.map(drop)
    }

    /// The settings and the state of a bucket's stream.
    ///
    /// # Errors
    /// As for [`request`](Self::request), and when there is none.
    pub async fn bucket(&self, bucket: &str) -> Result<Value, ContainerError> {
        self.request(&format!("$JS.API.STREAM.INFO.KV_{bucket}"), Value::Null).await
    }
}
