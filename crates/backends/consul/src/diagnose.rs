//! Diagnoses the hosts and the cluster, for an operator.

use std::time::Instant;

use futures::future::join_all;
use reqwest::StatusCode;
use serde_json::{Value, json};
use tenure_core::{
    Diagnosis,
    spi::{BackendError, BackendErrorKind},
};

use crate::{
    client::{Agents, Request, text_of},
    store::path,
};

/// A key that no candidate uses.
const PROBE_KEY: &str = "doctor";
/// Of fewer servers the loss of one ends elections.
const ENOUGH_SERVERS: usize = 3;

/// Diagnoses each host, and the cluster through the first that answers.
pub(crate) async fn diagnose(agents: &Agents) -> Vec<Diagnosis> {
    let (mut diagnoses, mut answering) = (Vec::new(), None);
    let hosts = &agents.config.hosts;
    let descriptions = join_all((0..hosts.len()).map(|host| describe(agents, host))).await;
    for (number, description) in descriptions.into_iter().enumerate() {
        let subject = format!("host {}", hosts[number]);
        diagnoses.push(match description {
            Ok(text) => {
                answering = answering.or(Some(number));
                Diagnosis::good(subject, text)
            }
            Err(error) => {
                let advice =
                    "start it, see that its HTTP port can be reached from here, or take it out of the URL";
                Diagnosis::problem(subject, error.to_string(), advice)
            }
        });
    }
    let Some(host) = answering else { return diagnoses };
    diagnoses.push(diagnose_servers(agents, host).await);
    let begun = Instant::now();
    diagnoses.push(match probe(agents, host).await {
        Ok(()) => Diagnosis::good(
            "keys",
            format!("read and written below {:?} in {:.1?}", agents.config.prefix, begun.elapsed()),
        ),
        Err(error) if error.kind() == BackendErrorKind::Forbidden => {
            let text = format!("the token may not read and write below {:?}", agents.config.prefix);
            Diagnosis::problem("keys", text, agents.grant())
        }
        Err(error) => Diagnosis::problem(
            "keys",
            error.to_string(),
            "see the log of the agent, and that the cluster has a leader",
        ),
    });
    diagnoses
}

/// The version and the role of an agent, which a token may not be allowed to read.
async fn describe(agents: &Agents, host: usize) -> Result<String, BackendError> {
    match get(agents, host, "agent/self").await {
        Ok(found) => {
            let found = &found["Config"];
            let role = if found["Server"] == true { "a server" } else { "a client agent" };
            let text = |name: &str| found[name].as_str().unwrap_or("unknown").to_owned();
            Ok(format!("Consul {}, {role}, datacenter {}", text("Version"), text("Datacenter")))
        }
        Err(error) if error.kind() == BackendErrorKind::Forbidden => {
            get(agents, host, "status/leader").await?;
            Ok("Consul; the token may not read its version (agent_prefix \"\" { policy = \"read\" })"
                .to_owned())
        }
        Err(error) => Err(error),
    }
}

/// The servers of the cluster, and which of them leads.
async fn diagnose_servers(agents: &Agents, host: usize) -> Diagnosis {
    let answers = (get(agents, host, "status/leader").await, get(agents, host, "status/peers").await);
    let (leader, peers) = match answers {
        (Ok(leader), Ok(peers)) => (leader, peers),
        (Err(error), _) | (_, Err(error)) => {
            return Diagnosis::problem("servers", error.to_string(), "see the log of the agent");
        }
    };
    let count = peers.as_array().map_or(0, Vec::len);
    match leader.as_str().filter(|leader| !leader.is_empty()) {
        None => {
            Diagnosis::problem("servers", "none of them leads", "see that a majority of the servers runs")
        }
        Some(leader) if count < ENOUGH_SERVERS => Diagnosis::warning(
            "servers",
            format!("{count}, of which {leader} leads: the loss of one ends elections until it is back"),
            "use three or five servers",
        ),
        Some(leader) => Diagnosis::good("servers", format!("{count}, of which {leader} leads")),
    }
}

/// Writes, reads and deletes a key.
async fn probe(agents: &Agents, host: usize) -> Result<(), BackendError> {
    let what = "trying a key";
    let path = path(agents, PROBE_KEY);
    agents.send_to(host, &Request::put(what, path.clone(), b"doctor".to_vec())).await?;
    agents.send_to(host, &Request::get(what, format!("{path}?consistent"))).await?;
    let key = format!("{}/{PROBE_KEY}", agents.config.prefix);
    let operation = json!([{"KV": {"Verb": "delete", "Key": key}}]).to_string();
    let answer = agents.send_to(host, &Request::put(what, "txn".to_owned(), operation.into_bytes())).await?;
    if answer.status != StatusCode::OK {
        let text = format!("{what}: it cannot be deleted: {}", text_of(&answer.body));
        return Err(BackendError::new(BackendErrorKind::Unavailable, text));
    }
    Ok(())
}

async fn get(agents: &Agents, host: usize, path: &str) -> Result<Value, BackendError> {
    let answer = agents.send_to(host, &Request::get("diagnosing", path.to_owned())).await?;
    serde_json::from_slice(&answer.body).map_err(|_| {
        BackendError::new(BackendErrorKind::Unavailable, format!("{path}: this is no answer of Consul"))
    })
}
