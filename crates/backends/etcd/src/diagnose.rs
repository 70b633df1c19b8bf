//! Diagnoses each member and the cluster, for an operator.

use std::time::{Duration, Instant};

use etcd_client::ResponseHeader;
use futures::future::{join_all, select_ok};
use tenure_core::{Diagnosis, spi::BackendError};
use tokio::time::timeout;

use crate::{
    known_bugs::known_bugs,
    transport::{
        cluster::{IdentityConflict, MemberIdentity},
        error::Failure,
        members::Members,
    },
};

/// How long a member's answer may take.
const MEMBER_TIMEOUT: Duration = Duration::from_secs(3);

/// The status of one member.
struct MemberStatus {
    version: String,
    /// The member id of its leader; zero without one.
    leader: u64,
    identity: MemberIdentity,
    summary: String,
    /// The errors that it reports, such as alarms.
    errors: Vec<String>,
}

/// Diagnoses all members, whether they belong to one cluster, and whether a quorum answers.
pub(crate) async fn diagnose(members: &Members) -> Vec<Diagnosis> {
    let uses_login = members.uses_login();
    let answers = join_all((0..members.count()).map(|member| member_status(members, member))).await;
    let mut diagnoses = Vec::new();
    let (mut leaders, mut identities) = (Vec::new(), Vec::new());
    for (member, answer) in answers.into_iter().enumerate() {
        let subject = format!("member {}", members.endpoint(member));
        match answer {
            Ok(status) => {
                leaders.push(status.leader);
                identities.push((members.endpoint(member), status.identity));
                diagnoses.extend(diagnose_member(&subject, &status, uses_login));
            }
            Err(error) => diagnoses.push(Diagnosis::problem(
                subject,
                error,
                "start it, see that its port can be reached from here, or take it out of the URL",
            )),
        }
    }
    diagnoses.extend(diagnose_identities(&identities));
    diagnoses.extend(diagnose_quorum(members, &leaders).await);
    diagnoses
}

async fn member_status(members: &Members, member: usize) -> Result<MemberStatus, String> {
    let begun = Instant::now();
    let answer = timeout(MEMBER_TIMEOUT, async {
        let client = members.client(member).await.map_err(|failure| failure.error.to_string())?;
        let status = client.maintenance_client().status().await;
        status.map_err(|error| Failure::from(error).error.to_string())
    });
    let status = answer.await.unwrap_or_else(|_| Err(format!("no answer within {MEMBER_TIMEOUT:?}")))?;
    let own_id = status.header().map_or(0, ResponseHeader::member_id);
    let role = match (status.leader(), status.is_learner()) {
        (_, true) => "learner",
        (0, false) => "knows no leader",
        (leader, false) if leader == own_id => "leads its cluster",
        _ => "follows",
    };
    Ok(MemberStatus {
        version: status.version().to_owned(),
        leader: status.leader(),
        identity: MemberIdentity {
            cluster: status.header().map_or(0, ResponseHeader::cluster_id),
            member: own_id,
        },
        summary: format!("etcd {}, {role}, answered in {:.1?}", status.version(), begun.elapsed()),
        errors: status.errors().to_vec(),
    })
}

fn diagnose_member(subject: &str, status: &MemberStatus, uses_login: bool) -> Vec<Diagnosis> {
    let MemberStatus { version, leader, summary, errors, .. } = status;
    let mut diagnoses = Vec::new();
    if *leader == 0 {
        let advice = "check whether a majority of the members is running, and whether they reach each other";
        diagnoses.push(Diagnosis::problem(subject, format!("{summary}: it has no leader"), advice));
    }
    for error in errors {
        let advice = "see `etcdctl alarm list`; after NOSPACE compact, defragment and disarm; after CORRUPT replace the \
                      member";
        diagnoses.push(Diagnosis::problem(subject, format!("{summary}: {error}"), advice));
    }
    if let Some((effects, advice)) = known_bugs(version, uses_login) {
        diagnoses.push(Diagnosis::warning(subject, format!("{summary}: {effects}"), advice));
    }
    if diagnoses.is_empty() {
        diagnoses.push(Diagnosis::good(subject, summary));
    }
    diagnoses
}

/// Whether the members belong to one cluster, and are different from each other.
fn diagnose_identities(reported: &[(&str, MemberIdentity)]) -> Option<Diagnosis> {
    let conflict = IdentityConflict::among(reported)?;
    let advice =
        "see `etcdctl member list` at each of them, and name the members of one cluster only, each once";
    Some(Diagnosis::problem("cluster", conflict.to_string(), advice))
}

/// Whether a linearizable read is answered, and whether the members agree on their leader.
async fn diagnose_quorum(members: &Members, leaders: &[u64]) -> Vec<Diagnosis> {
    let begun = Instant::now();
    let probes = (0..members.count()).map(|member| Box::pin(members.probe(member, MEMBER_TIMEOUT)));
    let outcome: Result<(), BackendError> = select_ok(probes).await.map(|(answer, _)| answer);
    let mut diagnoses = vec![match outcome {
        Ok(()) => {
            Diagnosis::good("quorum", format!("a linearizable read was answered in {:.1?}", begun.elapsed()))
        }
        Err(error) => Diagnosis::problem(
            "quorum",
            error.to_string(),
            "check whether a majority of the members is running, and whether the user may read below the prefix",
        ),
    }];
    let is_known = |leader: &&u64| **leader != 0;
    let first = leaders.iter().find(is_known);
    if leaders.iter().filter(is_known).any(|leader| Some(leader) != first) {
        diagnoses.push(Diagnosis::problem(
            "quorum",
            "the members report different leaders",
            "run this again: it is normal for a moment during an election; if it stays, the URL names members of two \
             clusters",
        ));
    }
    if members.count() == 1 {
        diagnoses.push(Diagnosis::warning(
            "quorum",
            "the URL names one member: without it no candidate can be elected",
            "run three members, and name them all in the URL",
        ));
    }
    diagnoses
}
