//! Administers the keys and leases of an etcd server, without tenure and without an etcd client.
//!
//! Uses the JSON gateway that every etcd server has beside its gRPC service. The gateway writes 64-bit numbers as text and
//! bytes as base64, and omits fields that are zero or empty.

use std::{fmt, time::Duration};

use serde_json::{Value, json};

use crate::{
    error::ContainerError,
    etcd::gateway::{Gateway, decode, decode_text, encode, number, range_end},
};

/// Administers one etcd server, as an operator would.
#[derive(Clone)]
pub struct EtcdAdmin {
    pub(super) gateway: Gateway,
}

/// A key with its value.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct KeyValue {
    /// The key.
    pub key: String,
    /// The value.
    pub value: Vec<u8>,
    /// The revision in which the key was created.
    pub create_revision: u64,
    /// The lease that the key is attached to; zero without one.
    pub lease: i64,
}

/// A lease and the keys that are attached to it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Lease {
    /// The lease's id.
    pub id: i64,
    /// The remaining time to live, rounded down to seconds.
    pub remaining: Duration,
    /// The time to live with which the lease was granted.
    pub granted: Duration,
    /// The keys that are attached to the lease.
    pub keys: Vec<String>,
}

/// How many expired leases a member has revoked.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LeaseExpiryStats {
    /// The member's id.
    pub member: u64,
    /// The id of the member that this member takes for the leader; zero when it knows none.
    pub leader: u64,
    /// How many expired leases this member has revoked since it started. Only the leader should revoke leases.
    pub revoked: u64,
}

/// A member's id and the leader it knows.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Status {
    pub(super) member: u64,
    /// Zero when it knows none.
    pub(super) leader: u64,
}

impl EtcdAdmin {
    /// A client of the server at `endpoint`, `host:port`. Sends nothing.
    pub fn new(endpoint: impl Into<String>) -> Self {
        Self { gateway: Gateway::new(endpoint.into()) }
    }

    /// The `host:port` of the server.
    pub fn endpoint(&self) -> &str {
        self.gateway.endpoint()
    }

    /// Succeeds when the server is ready: it has a quorum and can read.
    ///
    /// # Errors
    /// When it is not.
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
    /// When the server refuses or does not answer.
    pub async fn put(&self, key: &str, value: impl AsRef<[u8]>) -> Result<(), ContainerError> {
        self.put_with_lease(key, value, 0).await
    }

    /// Writes a key and attaches it to a lease.
    ///
    /// # Errors
    /// When the lease does not exist, or the server does not answer.
    pub async fn put_with_lease(
        &self,
        key: &str,
        value: impl AsRef<[u8]>,
        lease: i64,
    ) -> Result<(), ContainerError> {
        let request = json!({ "key": encode(key), "value": encode(value), "lease": lease.to_string() });
        self.gateway.call("kv/put", request).await.map(|_| ())
    }

    /// The key with its value, if it exists.
    ///
    /// # Errors
    /// When the server refuses or does not answer.
    pub async fn get(&self, key: &str) -> Result<Option<KeyValue>, ContainerError> {
        Ok(self.range(json!({ "key": encode(key) })).await?.pop())
    }

    /// All keys under a prefix, ordered by creation.
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
                    key: decode_text(&found["key"])?,
                    value: decode(&found["value"])?,
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
        let answer = self.gateway.call("kv/deleterange", json!({ "key": encode(key) })).await?;
        Ok(number::<u64>(&answer["deleted"]) > 0)
    }

    /// Deletes all keys under a prefix; returns their number.
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
        let answer = self.gateway.call("kv/range", json!({ "key": encode("/") })).await?;
        Ok(number(&answer["header"]["revision"]))
    }

    /// Compacts the history up to the current revision; returns that revision.
    ///
    /// # Errors
    /// When that revision is compacted already, or the server does not answer.
    pub async fn compact(&self) -> Result<u64, ContainerError> {
        let revision = self.revision().await?;
        let request = json!({ "revision": revision.to_string(), "physical": true });
        self.gateway.call("kv/compaction", request).await?;
        Ok(revision)
    }

    /// Activates the NOSPACE alarm, as a full database does: puts are refused, and deletes are allowed.
    ///
    /// # Errors
    /// When the server refuses or does not answer.
    pub async fn activate_no_space_alarm(&self) -> Result<(), ContainerError> {
        self.alarm("ACTIVATE").await
    }

    /// Deactivates the NOSPACE alarm, as `etcdctl alarm disarm` does.
    ///
    /// # Errors
    /// When the server refuses or does not answer.
    pub async fn disarm_no_space_alarm(&self) -> Result<(), ContainerError> {
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

    /// Renews a lease; returns whether it exists.
    ///
    /// # Errors
    /// When the server refuses or does not answer.
    pub async fn keep_alive(&self, id: i64) -> Result<bool, ContainerError> {
        let answer = self.gateway.call("lease/keepalive", json!({ "ID": id.to_string() })).await?;
        Ok(number::<i64>(&answer["result"]["TTL"]) > 0)
    }

    /// The ids of all leases.
    ///
    /// # Errors
    /// When the server refuses or does not answer.
    pub async fn leases(&self) -> Result<Vec<i64>, ContainerError> {
        let answer = self.gateway.call("lease/leases", json!({})).await?;
        let leases = answer["leases"].as_array().map(Vec::as_slice).unwrap_or_default();
        Ok(leases.iter().map(|lease| number(&lease["ID"])).collect())
    }

    /// A lease, if it exists.
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
        // Negative while an expired lease is being revoked.
        let remaining = Duration::from_secs(number::<i64>(&answer["TTL"]).try_into().unwrap_or(0));
        let keys = answer["keys"].as_array().map(Vec::as_slice).unwrap_or_default();
        let keys = keys.iter().map(decode_text).collect::<Result<_, _>>()?;
        Ok(Some(Lease { id, remaining, granted: Duration::from_secs(granted), keys }))
    }

    /// How many expired leases this member has revoked, and which member it takes for the leader.
    ///
    /// # Errors
    /// When the server does not answer.
    pub async fn lease_expiry_stats(&self) -> Result<LeaseExpiryStats, ContainerError> {
        let Status { member, leader } = self.status().await?;
        let metrics = self.gateway.metrics().await?;
        let revoked = metrics
            .lines()
            .find_map(|line| line.strip_prefix("etcd_debugging_server_lease_expired_total ")?.parse().ok());
        let revoked = revoked.ok_or_else(|| {
            ContainerError::Unexpected("the metrics have no count of expired leases".to_owned())
        })?;
        Ok(LeaseExpiryStats { member, leader, revoked })
    }

    /// Revokes a lease and deletes the keys that are attached to it.
    ///
    /// # Errors
    /// When the lease does not exist, or the server does not answer.
    pub async fn revoke_lease(&self, id: i64) -> Result<(), ContainerError> {
        self.gateway.call("lease/revoke", json!({ "ID": id.to_string() })).await.map(|_| ())
    }
}

impl fmt::Debug for EtcdAdmin {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("EtcdAdmin").field("endpoint", &self.endpoint()).finish_non_exhaustive()
    }
}

/// The range of all keys with a prefix. etcd allows no empty key; a zero byte is the first key.
pub(super) fn prefix_range(prefix: &str) -> (String, String) {
    let first = if prefix.is_empty() { "\0" } else { prefix };
    (encode(first), encode(range_end(prefix)))
}
