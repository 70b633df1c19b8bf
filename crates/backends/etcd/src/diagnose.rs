//! Diagnoses each member and the cluster, for an operator.

use std::time::{Duration, Instant};

use etcd_client::StatusResponse;
use futures::future::{join, join_all, select_ok};
use tenure_core::{
    Diagnosis,
    spi::{BackendError, BackendErrorKind::Invalid},
};
use tokio::time::timeout;

use crate::{
    known_bugs::known_bugs,
    transport::{
        cluster::{MemberIdentity, conflict_among},
        error::Failure,
        members::{Member, Members},
        proxy::{IS_PROXY, refuse_proxy},
    },
};

/// How long a member's answer may take.
const MEMBER_TIMEOUT: Duration = Duration::from_secs(3);

/// Diagnoses all members, whether they belong to one cluster, and whether a quorum answers.
pub(crate) async fn diagnose(members: &Members) -> Vec<Diagnosis> {
    #[cfg(feature = "srv")]
    if let Err(error) = members.ensure_known().await {
        let advice = "check the domain in the URL, and its records with `dig SRV`";
        return vec![Diagnosis::problem("members", error.to_string(), advice)];
    }
    let uses_login = members.config.login.is_some();
    let configured = members.configured();
    let answers = join_all(configured.iter().map(|member| status(member))).await;
    let mut diagnoses = Vec::new();
    let (mut leaders, mut identities) = (Vec::new(), Vec::new());
    for (member, answer) in configured.iter().zip(answers) {
        let subject = format!("member {}", member.endpoint);
        match answer {
            Ok((status, is_proxy, time)) => {
                let header = status.header();
                let (cluster, id) = header.map_or((0, 0), |header| (header.cluster_id(), header.member_id()));
                leaders.push(status.leader());
                identities.push((member.endpoint.as_str(), MemberIdentity { cluster, member: id }));
                diagnoses.extend(diagnose_member(&subject, &status, id, is_proxy, time, uses_login));
            }
            Err(error) => diagnoses.push(Diagnosis::problem(
                subject,
                error,
                "start it, see that its port can be reached from here, or take it out of the URL",
            )),
        }
    }
    let advice =
        "see `etcdctl member list` at each of them, and name the members of one cluster only, each once";
    diagnoses.extend(conflict_among(&identities).map(|text| Diagnosis::problem("cluster", text, advice)));
    diagnoses.extend(diagnose_quorum(members, &leaders).await);
    diagnoses
}

/// The status of a member, whether it is a grpc-proxy and no member, and how long the answer took.
async fn status(member: &Member) -> Result<(StatusResponse, bool, Duration), String> {
    let begun = Instant::now();
    let answer = timeout(MEMBER_TIMEOUT, async {
        let client = member.connection.get().await.map_err(|failure| failure.error.to_string())?.client();
        let is_proxy = async { refuse_proxy(&client, Invalid).await.is_err() };
        match join(client.maintenance_client().status(), is_proxy).await {
            (Ok(status), is_proxy) => Ok((status, is_proxy, begun.elapsed())),
            (Err(error), _) => Err(match member.connection.explain().await {
                Some(reason) => reason.to_owned(),
                None => Failure::from(error).error.to_string(),
            }),
        }
    });
    answer.await.unwrap_or_else(|_| Err(format!("no answer within {MEMBER_TIMEOUT:?}")))
}

fn diagnose_member(
    subject: &str,
    status: &StatusResponse,
    id: u64,
    is_proxy: bool,
    time: Duration,
    uses_login: bool,
) -> Vec<Diagnosis> {
    if is_proxy {
        return vec![Diagnosis::problem(
            subject,
            IS_PROXY,
            "`etcdctl member list` shows the members' addresses",
        )];
    }
    let role = match (status.leader(), status.is_learner()) {
        (_, true) => "learner",
        (0, false) => "knows no leader",
        (leader, false) if leader == id => "leads its cluster",
        _ => "follows",
    };
    let summary = format!("etcd {}, {role}, answered in {time:.1?}", status.version());
    let mut diagnoses = Vec::new();
    if status.leader() == 0 {
        let advice = "check whether a majority of the members is running, and whether they reach each other";
        diagnoses.push(Diagnosis::problem(subject, format!("{summary}: it has no leader"), advice));
    }
    for error in status.errors() {
        let advice = "see `etcdctl alarm list`; after NOSPACE compact, defragment and disarm; after CORRUPT replace the \
                      member";
        diagnoses.push(Diagnosis::problem(subject, format!("{summary}: {}", error.trim()), advice));
    }
    if let Some((effects, advice)) = known_bugs(status.version(), uses_login) {
        diagnoses.push(Diagnosis::warning(subject, format!("{summary}: {effects}"), advice));
    }
    if diagnoses.is_empty() {
        diagnoses.push(Diagnosis::good(subject, summary));
    }
    diagnoses
}

/// Whether a linearizable read is answered, and whether the members agree on their leader.
async fn diagnose_quorum(members: &Members, leaders: &[u64]) -> Vec<Diagnosis> {
    let begun = Instant::now();
    let all = members.all();
    let probes = all.iter().map(|member| Box::pin(members.probe(member, MEMBER_TIMEOUT)));
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
    if members.configured().len() == 1 {
        diagnoses.push(Diagnosis::warning(
            "quorum",
            "the URL names one member: without it no candidate can be elected",
            "run three members, and name them all in the URL",
        ));
    }
    diagnoses
}
