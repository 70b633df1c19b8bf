//! Follows the cluster's member list, so that members can be replaced one after another while clients run.
//!
//! The configured endpoints stay. Calls go also to the members of the list that none of them reaches. The list is only a
//! hint, because members can advertise addresses that are valid elsewhere:
//!
//! - A listed address is used once its server has answered as this very member, of the pinned cluster.
//! - An address of another security is ignored: with TLS no password is sent in plain text. So is a name or an address of
//!   this machine's loopback interface, where a copy of the cluster may run, with the same ids.
//! - A member that is cut off from the others has an older list, which nothing in its answer shows. So the members of all
//!   lists are tried, and a member is dropped when no list names it.
//! - The member that is reached through a load balancer changes with each connection, so a listed member that answers is
//!   kept also if a configured endpoint reaches the same one now.
//! - Without a list everything stays as it is. etcd shows it to every user that is authenticated.

use std::{collections::BTreeMap, net::IpAddr, slice, sync::Arc, time::Duration};

use etcd_client::MemberListResponse;
use futures::future::join_all;
use tenure_core::internal::check_hosts;
use tokio::{net::lookup_host, time::timeout};
use tracing::{debug, info};

use super::{
    Members,
    slots::{Member, Origin},
};
use crate::{
    config::with_port,
    transport::{
        cluster::MemberIdentity,
        connection::Connection,
        error::{Failure, malformed},
    },
};

/// The time limit for a member's answer, including connecting.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(2);
/// How many listed members one lookup adds at most. etcd recommends clusters of at most seven.
const MAX_LISTED: usize = 16;
/// How many addresses of one member, from all lists together, are tried.
const MAX_ADDRESSES: usize = 8;

/// Reads the member list, and updates the members.
pub(super) async fn refresh(members: &Members) {
    let Some(cluster) = members.cluster.pinned() else { return };
    let known = members.all();
    let answers = join_all(known.iter().map(|member| ask(&member.connection))).await;
    let answers = known.iter().zip(answers).filter_map(|(member, answer)| Some((member, answer?)));
    let answers: Vec<_> = answers
        .filter(|(member, (identity, _))| members.check_cluster(member, identity.cluster).is_ok())
        .collect();
    let mut reached: Vec<u64> = answers.iter().map(|(_, (identity, _))| identity.member).collect();
    let mut listed: BTreeMap<u64, Vec<&str>> = BTreeMap::new();
    // A learner refuses most requests.
    let all = answers.iter().flat_map(|(_, (_, list))| list.members());
    for one in all.filter(|one| !one.is_learner()) {
        listed.entry(one.id()).or_default().extend(one.client_urls().iter().map(String::as_str));
    }
    let missing = listed.iter().filter(|(id, _)| !reached.contains(id)).take(MAX_LISTED);
    let found = join_all(missing.map(|(id, urls)| connect(members, &known, cluster, *id, urls))).await;
    let found: Vec<Member> = found.into_iter().flatten().collect();
    for member in &found {
        info!(member = member.endpoint, "etcd member found by the member list");
        reached.extend(member.origin.listed_id());
    }
    members.update(found, |member| {
        let Some(id) = member.origin.listed_id() else { return false };
        let answers_as_this = |(one, (identity, _)): &(&Arc<Member>, (MemberIdentity, _))| {
            std::ptr::eq(Arc::as_ptr(one), member) && identity.member == id
        };
        !answers.is_empty()
            && (!listed.contains_key(&id) || (reached.contains(&id) && !answers.iter().any(answers_as_this)))
    });
}

/// A connection to a listed member, if one of its addresses can be used.
async fn connect(
    members: &Members,
    known: &[Arc<Member>],
    cluster: u64,
    id: u64,
    urls: &[&str],
) -> Option<Member> {
    let uses_tls = members.config.tls.is_some();
    let mut endpoints: Vec<_> = urls.iter().filter_map(|url| endpoint_of(url, uses_tls)).collect();
    endpoints.sort();
    endpoints.dedup();
    for endpoint in endpoints.into_iter().take(MAX_ADDRESSES) {
        if known.iter().any(|member| member.endpoint == endpoint) || !is_elsewhere(&endpoint).await {
            continue;
        }
        let member = members.member(&endpoint, Origin::Listed(id));
        let expected = MemberIdentity { cluster, member: id };
        match ask(&member.connection).await {
            Some((identity, _)) if identity == expected => return Some(member),
            Some(_) => debug!(endpoint, "this address of the etcd member list belongs to another server"),
            None => debug!(endpoint, "this address of the etcd member list does not answer"),
        }
    }
    None
}

/// The `host:port` of a URL with the security that is configured.
fn endpoint_of(url: &str, uses_tls: bool) -> Option<String> {
    let host = url.strip_prefix(if uses_tls { "https://" } else { "http://" })?.trim_end_matches('/');
    let endpoint = with_port(host.to_owned());
    check_hosts("etcd", slice::from_ref(&endpoint)).ok()?;
    Some(endpoint)
}

/// Whether the endpoint has an address, and none on the loopback interface.
async fn is_elsewhere(endpoint: &str) -> bool {
    let is_elsewhere = |ip: IpAddr| !ip.is_loopback() && !ip.is_unspecified();
    match timeout(ANSWER_TIMEOUT, lookup_host(endpoint)).await {
        Ok(Ok(mut addresses)) => addresses.all(|address| is_elsewhere(address.ip().to_canonical())),
        Ok(Err(_)) | Err(_) => false,
    }
}

/// The member at the other end, and the list that it shows.
async fn ask(connection: &Arc<Connection>) -> Option<(MemberIdentity, MemberListResponse)> {
    let asking = async {
        let client = connection.get().await?.client();
        let response = client.cluster_client().member_list().await?;
        let identity = MemberIdentity::of(response.header().ok_or_else(|| malformed("header"))?);
        Ok::<_, Failure>((identity, response))
    };
    let answer = timeout(ANSWER_TIMEOUT, asking).await.ok()?;
    answer
        .inspect_err(|failure| debug!(error = %failure.error, "reading the member list of etcd failed"))
        .ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_addresses_of_the_configured_security_are_used() {
        for (url, uses_tls, endpoint) in [
            ("http://10.0.0.1:2379", false, Some("10.0.0.1:2379")),
            ("http://etcd-1.acme.example", false, Some("etcd-1.acme.example:2379")),
            ("https://[fd00::1]:2379/", true, Some("[fd00::1]:2379")),
            ("http://10.0.0.1:2379", true, None),
            ("https://10.0.0.1:2379", false, None),
            ("http://u:p@h:2379", false, None),
            ("unix://etcd", false, None),
            ("", false, None),
        ] {
            assert_eq!(endpoint_of(url, uses_tls).as_deref(), endpoint, "{url}");
        }
    }

    /// Hazard G34: this machine may have a copy of the cluster.
    #[tokio::test]
    async fn loopback_addresses_are_not_used() {
        for (endpoint, expected) in [
            ("10.0.0.1:2379", true),
            ("[fd00::1]:2379", true),
            ("127.0.0.1:2379", false),
            ("[::1]:2379", false),
            ("[::ffff:127.0.0.1]:2379", false),
            ("0.0.0.0:2379", false),
            ("localhost:2379", false),
        ] {
            assert_eq!(is_elsewhere(endpoint).await, expected, "{endpoint}");
        }
    }
}
