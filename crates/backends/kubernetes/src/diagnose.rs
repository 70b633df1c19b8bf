//! Diagnoses the API server for an operator: its version, and the verbs that the user may not use.

use tenure_core::{Diagnosis, spi::BackendError};

use crate::transport::Client;

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
        Err(error) => unreachable_server(&error),
    }];
    for (verb, purpose) in VERBS {
        let subject = format!("verb {verb}");
        found.push(match client.may(verb).await {
            Ok(true) => Diagnosis::good(subject, "allowed"),
            Ok(false) => {
                let text = format!("not allowed for leases: {purpose}");
                let advice =
                    format!("grant {verb} on leases.coordination.k8s.io by a Role and a RoleBinding");
                match verb {
                    "watch" | "list" => Diagnosis::warning(subject, text, advice),
                    _ => Diagnosis::problem(subject, text, advice),
                }
            }
            Err(error) => Diagnosis::warning(subject, error.to_string(), "it could not be checked"),
        });
    }
    found
}

fn unreachable_server(error: &BackendError) -> Diagnosis {
    Diagnosis::problem("API server", error.to_string(), "check the address, the network and the credentials")
}
