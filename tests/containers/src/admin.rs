//! A server's keys, leases and users, handled without tenure and without an etcd client.
//!
//! Speaks with the JSON gateway that every etcd has beside its gRPC service: numbers
//! of 64 bits travel as text, bytes as base64, and what is zero or empty is left out.

mod gateway;
mod users;

use std::{fmt, time::Duration};

use serde_json::{Value, json};

use super::ContainerError;
use gateway::{Gateway, bytes, decoded, encoded, number, range_end};
pub use users::Permission;

/// Administers one etcd server, as an operator would.
#[derive(Clone)]
pub struct EtcdAdmin {
    gateway: Gateway,
}

/// A key with its value.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct KeyValue {
    /// The key.
    pub key: String,
    /// Its value.
    pub value: Vec<u8>,
    /// The revision in which it was created.
    pub create_revision: u64,
    /// The lease it is bound to; zero when it is bound to none.
    pub lease: i64,
}

/// A lease, and what hangs on it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Lease {
    /// Its id.
    pub id: i64,
    /// How long it lives on without a keepalive, rounded down to seconds.
    pub remaining: Duration,
    /// The TTL with which it was granted.
    pub granted: Duration,
    /// The keys bound to it.
    pub keys: Vec<String>,
}

/// What a member says of leases that have run out.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Expiries {
    /// The member's id.
    pub member: u64,
    /// The id of the member that leads by its word; zero when it knows none.
    pub leader: u64,
    /// How many leases this member has revoked because they had run out, since it started. To do so is the
    /// leader's task.
    pub revoked: u64,
}

/// What a member says of itself.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Status {
    pub(super) member: u64,
    /// Zero when it knows none.
    pub(super) leader: u64,
}

impl EtcdAdmin {
    /// For the server at `endpoint` (`host:port`). Nothing is sent yet.
    pub fn new(endpoint: impl Into<String>) -> Self {
        Self { gateway: Gateway::new(endpoint.into()) }
    }

    /// The `host:port` of the server.
    pub fn endpoint(&self) -> &str {
        self.gateway.endpoint()
    }

    /// Succeeds when the server serves: it has a quorum, and can read.
    ///
    /// # Errors
    /// When it does not.
    pub async fn health(&self) -> Result<(), ContainerError> {
        self.gateway.health().await
    }

    pub(super) async fn status(&self) -> Result<Status, ContainerError> {
        let answer = self.gateway.call("maintenance/status", json!({})).await?;
        Ok(Status { member: number(&answer["header"]["member_id"]), leader: number(&answer["leader"]) })
    }

    /// Writes a key.
    ///
    /// # Errors
    /// When the server refuses or does not answer; so for every method below.
    pub async fn put(&self, key: &str, value: impl AsRef<[u8]>) -> Result<(), ContainerError> {
        self.put_with_lease(key, value, 0).await
    }

    /// Writes a key that is bound to a lease.
    ///
    /// # Errors
    /// Also when there is no such lease.
    pub async fn put_with_lease(
        &self,
        key: &str,
        value: impl AsRef<[u8]>,
        lease: i64,
    ) -> Result<(), ContainerError> {
        let request = json!({ "key": encoded(key), "value": encoded(value), "lease": lease.to_string() });
        self.gateway.call("kv/put", request).await.map(|_| ())
    }

    /// The key, when it exists.
    ///
    /// # Errors
    /// When the server refuses or does not answer.
    pub async fn get(&self, key: &str) -> Result<Option<KeyValue>, ContainerError> {
        Ok(self.range(json!({ "key": encoded(key) })).await?.pop())
    }

    /// All keys under a prefix, the oldest first.
    ///
    /// # Errors
    /// When the server refuses or does not answer.
    pub async fn list(&self, prefix: &str) -> Result<Vec<KeyValue>, ContainerError> {
        let (key, range_end) = prefix_range(prefix);
        let request =
            json!({ "key": key, "range_end": range_end, "sort_target": "CREATE", "sort_order": "ASCEND" });
        self.range(request).await
    }

    async fn range(&self, request: Value) -> Result<Vec<KeyValue>, ContainerError> {
        let answer = self.gateway.call("kv/range", request).await?;
        let found = answer["kvs"].as_array().map(Vec::as_slice).unwrap_or_default();
        found
            .iter()
            .map(|found| {
                Ok(KeyValue {
                    key: decoded(&found["key"])?,
                    value: bytes(&found["value"])?,
                    create_revision: number(&found["create_revision"]),
                    lease: number(&found["lease"]),
                })
            })
            .collect()
    }

    /// Deletes a key; returns whether it existed.
    ///
    /// # Errors
    /// When the server refuses or does not answer.
    pub async fn delete(&self, key: &str) -> Result<bool, ContainerError> {
        let answer = self.gateway.call("kv/deleterange", json!({ "key": encoded(key) })).await?;
        Ok(number::<u64>(&answer["deleted"]) > 0)
    }

    /// Deletes all keys under a prefix; returns how many.
    ///
    /// # Errors
    /// When the server refuses or does not answer.
    pub async fn delete_prefix(&self, prefix: &str) -> Result<u64, ContainerError> {
        let (key, range_end) = prefix_range(prefix);
        let request = json!({ "key": key, "range_end": range_end });
        Ok(number(&self.gateway.call("kv/deleterange", request).await?["deleted"]))
    }

    /// The store's current revision.
    ///
    /// # Errors
    /// When the server refuses or does not answer.
    pub async fn revision(&self) -> Result<u64, ContainerError> {
        let answer = self.gateway.call("kv/range", json!({ "key": encoded("/") })).await?;
        Ok(number(&answer["header"]["revision"]))
    }

    /// Forgets all history up to the current revision; returns that revision.
    ///
    /// # Errors
    /// Also when that was done already.
    pub async fn compact(&self) -> Result<u64, ContainerError> {
        let revision = self.revision().await?;
        let request = json!({ "revision": revision.to_string(), "physical": true });
        self.gateway.call("kv/compaction", request).await?;
        Ok(revision)
    }

    /// Raises the NOSPACE alarm, as a full database does: puts are refused, and deletes are allowed.
    ///
    /// # Errors
    /// When the server refuses or does not answer.
    pub async fn raise_no_space(&self) -> Result<(), ContainerError> {
        self.alarm("ACTIVATE").await
    }

    /// Lifts the NOSPACE alarm, as `etcdctl alarm disarm` does.
    ///
    /// # Errors
    /// When the server refuses or does not answer.
    pub async fn lift_no_space(&self) -> Result<(), ContainerError> {
        self.alarm("DEACTIVATE").await
    }

    async fn alarm(&self, action: &str) -> Result<(), ContainerError> {
        let member = self.status().await?.member.to_string();
        let request = json!({ "action": action, "memberID": member, "alarm": "NOSPACE" });
        self.gateway.call("maintenance/alarm", request).await.map(|_| ())
    }

    /// Grants a lease; returns its id.
    ///
    /// # Errors
    /// When the server refuses or does not answer.
    pub async fn grant_lease(&self, ttl: Duration) -> Result<i64, ContainerError> {
        let request = json!({ "TTL": ttl.as_secs().to_string() });
        Ok(number(&self.gateway.call("lease/grant", request).await?["ID"]))
    }

    /// Renews a lease; returns whether it lives.
    ///
    /// # Errors
    /// When the server refuses or does not answer.
    pub async fn keep_alive(&self, id: i64) -> Result<bool, ContainerError> {
        let answer = self.gateway.call("lease/keepalive", json!({ "ID": id.to_string() })).await?;
        Ok(number::<i64>(&answer["result"]["TTL"]) > 0)
    }

    /// The ids of all living leases.
    ///
    /// # Errors
    /// When the server refuses or does not answer.
    pub async fn leases(&self) -> Result<Vec<i64>, ContainerError> {
        let answer = self.gateway.call("lease/leases", json!({})).await?;
        let leases = answer["leases"].as_array().map(Vec::as_slice).unwrap_or_default();
        Ok(leases.iter().map(|lease| number(&lease["ID"])).collect())
    }

    /// A lease, when it lives.
    ///
    /// # Errors
    /// When the server refuses or does not answer.
    pub async fn lease(&self, id: i64) -> Result<Option<Lease>, ContainerError> {
        let request = json!({ "ID": id.to_string(), "keys": true });
        let answer = self.gateway.call("lease/timetolive", request).await?;
        let granted = number::<u64>(&answer["grantedTTL"]);
        if granted == 0 {
            return Ok(None);
        }
        // Negative when it has expired and its revocation is under way.
        let remaining = Duration::from_secs(number::<i64>(&answer["TTL"]).try_into().unwrap_or(0));
        let keys = answer["keys"].as_array().map(Vec::as_slice).unwrap_or_default();
        let keys = keys.iter().map(decoded).collect::<Result<_, _>>()?;
        Ok(Some(Lease { id, remaining, granted: Duration::from_secs(granted), keys }))
    }

    /// How many leases that had run out this member has revoked, and who leads by its word.
    ///
    /// # Errors
    /// When the server does not answer.
    pub async fn expiries(&self) -> Result<Expiries, ContainerError> {
        let Status { member, leader } = self.status().await?;
        let metrics = self.gateway.metrics().await?;
        let revoked = metrics
            .lines()
            .find_map(|line| line.strip_prefix("etcd_debugging_server_lease_expired_total ")?.parse().ok());
        let revoked =
            revoked.ok_or_else(|| ContainerError::Malformed("no count of expired leases".to_owned()))?;
        Ok(Expiries { member, leader, revoked })
    }

    /// Ends a lease, and deletes the keys bound to it.
    ///
    /// # Errors
    /// Also when there is no such lease.
    pub async fn revoke_lease(&self, id: i64) -> Result<(), ContainerError> {
        self.gateway.call("lease/revoke", json!({ "ID": id.to_string() })).await.map(|_| ())
    }
}

impl fmt::Debug for EtcdAdmin {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("EtcdAdmin").field("endpoint", &self.endpoint()).finish_non_exhaustive()
    }
}

/// The range of all keys with a prefix; etcd knows no empty key, and begins with this one.
fn prefix_range(prefix: &str) -> (String, String) {
    let first = if prefix.is_empty() { "\0" } else { prefix };
    (encoded(first), encoded(range_end(prefix)))
}
