//! The bucket: opened, created, and checked for what would remove records.

use std::time::{SystemTime, UNIX_EPOCH};

use async_nats::HeaderMap;
use serde_json::{Value, json};
use tenure_core::spi::{
    BackendError,
    BackendErrorKind::{Forbidden, Invalid, Unavailable},
};

use crate::{
    config::NatsConfig,
    connection::{Connection, NOT_FOUND, error_code, refused, unexpected},
};

/// Replicas need a cluster.
const NOT_CLUSTERED: u64 = 10_074;
/// Too few servers for the replicas.
const NO_PEERS: u64 = 10_005;
/// It has been created with other settings meanwhile.
const EXISTS: u64 = 10_058;

/// Opens the bucket, and creates it if it does not exist and may be created. Returns when it was created, which identifies it.
pub(crate) async fn open(
    connection: &Connection,
    config: &NatsConfig,
    may_create: bool,
) -> Result<Option<String>, BackendError> {
    let info = match info(connection, config).await? {
        Some(info) => info,
        None if may_create => create(connection, config).await?,
        None => return Ok(None),
    };
    check(config, &info)?;
    let created = info["created"].as_str().ok_or_else(|| unexpected("opening the bucket"))?;
    Ok(Some(created.to_owned()))
}

/// The state of the bucket's stream; `None` if there is none.
pub(crate) async fn info(
    connection: &Connection,
    config: &NatsConfig,
) -> Result<Option<Value>, BackendError> {
    let (what, subject) =
        ("reading the bucket's settings", format!("$JS.API.STREAM.INFO.{}", config.stream()));
    let answer = connection.json(what, &subject, HeaderMap::new(), Vec::new()).await?;
    match answer.get("error") {
        None => Ok(Some(answer)),
        Some(error) if error_code(error) == NOT_FOUND => Ok(None),
        Some(error) => Err(refused(what, error)),
    }
}

async fn create(connection: &Connection, config: &NatsConfig) -> Result<Value, BackendError> {
    let what = format!("creating the bucket {}", config.bucket);
    let subject = format!("$JS.API.STREAM.CREATE.{}", config.stream());
    // Without a number of one's own, a server that is not in a cluster has one replica.
    let wanted = config.replicas.map_or(vec![3, 1], |replicas| vec![replicas]);
    for replicas in &wanted {
        let answer = connection.json(&what, &subject, HeaderMap::new(), settings(config, *replicas)).await;
        let answer = answer.map_err(|error| match error.kind() {
            Forbidden => {
                let command = command(config, wanted[0]);
                BackendError::new(
                    Forbidden,
                    format!("{error}; or have an administrator create the bucket: {command}"),
                )
            }
            _ => error,
        })?;
        match answer.get("error") {
            None => return Ok(answer),
            Some(error) if error_code(error) == NOT_CLUSTERED && wanted.len() > 1 => {}
            Some(error) if error_code(error) == EXISTS => break,
            // The cluster may be starting.
            Some(error) if error_code(error) == NO_PEERS => {
                let error = refused(&what, error);
                let text = format!(
                    "{error}; start {replicas} servers with JetStream, or give replicas=1, which survives the loss of no server"
                );
                return Err(BackendError::new(Unavailable, text));
            }
            Some(error) => return Err(refused(&what, error)),
        }
    }
    // Somebody else has created it.
    info(connection, config).await?.ok_or_else(|| unexpected(&what))
}

/// The stream of a key-value bucket, as NATS's clients make it.
fn settings(config: &NatsConfig, replicas: u8) -> Vec<u8> {
    // Higher than the numbers of an earlier bucket of that name, as long as it had fewer than a thousand writes per second: a swap that was meant
    // for that one fails.
    let first = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_millis();
    let settings = json!({
        "name": config.stream(),
        "description": "Leader election by tenure",
        "subjects": [format!("$KV.{}.>", config.bucket)],
        "retention": "limits",
        "max_msgs_per_subject": 1,
        "max_msgs": -1,
        "max_bytes": -1,
        "max_age": 0,
        "max_msg_size": -1,
        "max_consumers": -1,
        "discard": "new",
        "storage": "file",
        "first_seq": u64::try_from(first).unwrap_or(1),
        "num_replicas": replicas,
        "duplicate_window": 120_000_000_000_u64,
        "allow_rollup_hdrs": true,
        "deny_delete": true,
        "allow_direct": true,
    });
    settings.to_string().into_bytes()
}

/// How an administrator creates the bucket.
pub(crate) fn command(config: &NatsConfig, replicas: u8) -> String {
    format!("nats kv add {} --history=1 --storage=file --replicas={replicas}", config.bucket)
}

/// Refuses settings by which records would be removed (hazard C9), or lost.
fn check(config: &NatsConfig, info: &Value) -> Result<(), BackendError> {
    let settings = &info["config"];
    let number = |name: &str| settings[name].as_i64().unwrap_or_default();
    let removes = settings["discard"] != "new" && (number("max_bytes") > 0 || number("max_msgs") > 0);
    let problem = if number("max_age") > 0 {
        "has a TTL (max_age): NATS would remove the records of leaders"
    } else if removes {
        "has a limit of its size, and discards old records beyond it: NATS would remove the records of leaders"
    } else if settings["storage"] == "memory" {
        "is kept in memory: a restart of the servers loses it, and two candidates could lead with the same fencing token"
    } else if !settings["mirror"].is_null() || settings["retention"] != "limits" {
        "is a mirror or a queue, which keeps no records"
    } else if settings["sources"].as_array().is_some_and(|sources| !sources.is_empty()) {
        "has sources: records of other streams would replace its own"
    } else if settings["persist_mode"] == "async" {
        "acknowledges writes before they are on a disk (persist_mode: async)"
    } else {
        return Ok(());
    };
    let command = command(config, 3);
    let text =
        format!("the bucket {} {problem}; use a bucket of its own for elections: {command}", config.bucket);
    Err(BackendError::new(Invalid, text))
}
