//! Diagnoses the API server for an operator: its version, and the verbs that the user may not use.

use tenure_core::{Diagnosis, spi::BackendError};

use crate::transport::{Client, Resource};

/// The verbs of a candidate, and what they are for.
const VERBS: [(&str, &str); 5] = [
    ("get", "candidates read the lease before they write it"),
    ("create", "the first candidate of an election creates its lease"),
    ("update", "the leader renews its lease"),
    ("watch", "without it leases are polled, and a handover takes longer"),
    ("list", "without it elections cannot be listed"),
];

pub(crate) async fn diagnose(client: &Client) -> Vec<Diagnosis> {
    let mut found = vec![match client.version().await {
        Ok(version) => Diagnosis::good("API server", version),
        // The other requests would fail in the same way, each after its timeout.
        Err(error) => return vec![unreachable_server(&error)],
    }];
    for (verb, purpose) in VERBS {
        let is_needed = !matches!(verb, "watch" | "list");
        found.push(check(client, verb, Resource::Leases, purpose, is_needed).await);
    }
    if client.config().labeled_pod.is_some() {
        for verb in ["get", "list", "patch"] {
            let purpose = "the label of the leader's pod needs it";
            found.push(check(client, verb, Resource::Pods, purpose, false).await);
        }
    }
    found
}

async fn check(client: &Client, verb: &str, resource: Resource, purpose: &str, is_needed: bool) -> Diagnosis {
    let name = resource.name();
    let subject = match resource {
        Resource::Leases => format!("verb {verb}"),
        Resource::Pods => format!("verb {verb} on {name}"),
    };
    match client.may(verb, resource).await {
        Ok(true) => Diagnosis::good(subject, "allowed"),
        Ok(false) => {
            let text = format!("not allowed for {name}: {purpose}");
            let dot = if resource.group().is_empty() { "" } else { "." };
            let advice =
                format!("grant {verb} on {name}{dot}{} by a Role and a RoleBinding", resource.group());
            match is_needed {
                true => Diagnosis::problem(subject, text, advice),
                false => Diagnosis::warning(subject, text, advice),
            }
        }
        Err(error) => Diagnosis::warning(
            subject,
            error.to_string(),
            "check that the API server answers, then run doctor again",
        ),
    }
}

fn unreachable_server(error: &BackendError) -> Diagnosis {
    Diagnosis::problem("API server", error.to_string(), "check the address, the network and the credentials")
}
