//! A client that administers a Redis or Valkey server, as the default user and with one connection per request.

use std::{io, time::Duration};

use redis::{AsyncConnectionConfig, Client, RedisError, Value, cmd};

use crate::error::ContainerError;

/// How long connecting, and a request, may take.
const REQUEST_TIMEOUT: Duration = Duration::from_secs(5);

/// A client that administers a Redis or Valkey server.
#[derive(Clone, Debug)]
pub struct RedisAdmin {
    endpoint: String,
}

impl RedisAdmin {
    /// A client of the server at `endpoint`, `host:port`. Sends nothing.
    pub fn new(endpoint: impl Into<String>) -> Self {
        Self { endpoint: endpoint.into() }
    }

    /// The `host:port` of the server.
    pub fn endpoint(&self) -> &str {
        &self.endpoint
    }

    /// Succeeds when the server answers, and has loaded its data.
    ///
    /// # Errors
    /// When it does not.
    pub async fn health(&self) -> Result<(), ContainerError> {
        self.run(&["PING"]).await.map(drop)
    }

    /// Runs a command in database 0, and returns the texts of the answer, without its structure; nothing for a null.
    ///
    /// # Errors
    /// When the server refuses it, or does not answer within 5 s.
    pub async fn run(&self, command: &[&str]) -> Result<Vec<String>, ContainerError> {
        let failed = |error: RedisError| {
            let request = format!("{command:?} at {}", self.endpoint);
            match error.code() {
                Some(_) => ContainerError::Refused { request, message: error.to_string() },
                None => ContainerError::NoAnswer { request, source: io::Error::other(error) },
            }
        };
        let client = Client::open(format!("redis://{}/", self.endpoint)).map_err(failed)?;
        let limits = AsyncConnectionConfig::new()
            .set_connection_timeout(Some(REQUEST_TIMEOUT))
            .set_response_timeout(Some(REQUEST_TIMEOUT));
        let mut connection =
            client.get_multiplexed_async_connection_with_config(&limits).await.map_err(failed)?;
        let [name, arguments @ ..] = command else { return Ok(Vec::new()) };
        let answer = cmd(name).arg(arguments).query_async(&mut connection).await.map_err(failed)?;
        let mut texts = Vec::new();
        flatten(answer, &mut texts);
        Ok(texts)
    }

    /// A field of the answer to `INFO`, such as `run_id`; empty if there is none.
    ///
    /// # Errors
    /// When the server does not answer.
    pub async fn info(&self, field: &str) -> Result<String, ContainerError> {
        let text = self.run(&["INFO"]).await?.concat();
        let found = text.lines().find_map(|line| line.strip_prefix(field)?.strip_prefix(':'));
        Ok(found.unwrap_or_default().trim().to_owned())
    }

    /// Creates a user who logs in with this password, or changes the one that there is. The rules are those of `ACL SETUSER`.
    ///
    /// # Errors
    /// When a rule is wrong, or the server does not answer.
    pub async fn set_user(&self, user: &str, password: &str, rules: &[&str]) -> Result<(), ContainerError> {
        let password = format!(">{password}");
        let command =
            ["ACL", "SETUSER", user, "reset", "on", &password].into_iter().chain(rules.iter().copied());
        self.run(&command.collect::<Vec<_>>()).await.map(drop)
    }

    /// Ends the connections of a user.
    ///
    /// # Errors
    /// When the server does not answer.
    pub async fn disconnect_user(&self, user: &str) -> Result<(), ContainerError> {
        self.run(&["CLIENT", "KILL", "USER", user]).await.map(drop)
    }
}

fn flatten(value: Value, texts: &mut Vec<String>) {
    match value {
        Value::Nil => {}
        Value::Array(values) => values.into_iter().for_each(|value| flatten(value, texts)),
        other => texts.push(redis::from_redis_value(other).unwrap_or_default()),
    }
}
