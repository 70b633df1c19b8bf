//! Finds the members by DNS SRV records, as etcd's own tools do (`--discovery-srv`).

use std::{net::SocketAddr, time::Duration};

use hickory_resolver::{
    ResolverBuilder, TokioResolver,
    config::{ConnectionConfig, NameServerConfig, ResolverConfig},
    net::runtime::TokioRuntimeProvider,
    proto::rr::RData,
};
use tenure_core::spi::{BackendError, BackendErrorKind};

use crate::config::EtcdConfig;

/// How long a name server has to answer.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(1);

/// The `host:port` of every member, as the records of `domain` name them; the preferred ones first.
pub(crate) async fn lookup(config: &EtcdConfig, domain: &str) -> Result<Vec<String>, BackendError> {
    let service = if config.tls.is_some() { "_etcd-client-ssl" } else { "_etcd-client" };
    // The dot at the end keeps the search domains of the machine out.
    let name = format!("{service}._tcp.{}.", domain.trim_end_matches('.'));
    let failed = |reason: String| {
        let text = format!("looking up the members of etcd by the SRV records of {name} failed: {reason}");
        BackendError::new(BackendErrorKind::Unavailable, text)
    };
    let resolver = resolver(config.name_server).map_err(|error| failed(error.to_string()))?;
    let found = resolver.srv_lookup(name.as_str()).await.map_err(|error| failed(error.to_string()))?;
    let mut records: Vec<_> = found
        .answers()
        .iter()
        .filter_map(|record| match &record.data {
            RData::SRV(srv) => Some((srv.priority, srv.target.to_utf8(), srv.port)),
            _ => None,
        })
        // A target of "." says that there is no such service (RFC 2782).
        .filter(|(_, target, _)| target != ".")
        .collect();
    records.sort();
    records.dedup();
    if records.is_empty() {
        return Err(failed("it names no member".to_owned()));
    }
    let endpoint = |(_, target, port): (u16, String, u16)| format!("{}:{port}", target.trim_end_matches('.'));
    Ok(records.into_iter().map(endpoint).collect())
}

/// A resolver that asks `name_server`, or those of `/etc/resolv.conf`, which is read again each time.
fn resolver(name_server: Option<SocketAddr>) -> Result<TokioResolver, hickory_resolver::net::NetError> {
    let mut builder: ResolverBuilder<_> = match name_server {
        None => TokioResolver::builder_tokio()?,
        Some(address) => {
            let (mut udp, mut tcp) = (ConnectionConfig::udp(), ConnectionConfig::tcp());
            (udp.port, tcp.port) = (address.port(), address.port());
            let server = NameServerConfig::new(address.ip(), true, vec![udp, tcp]);
            let config = ResolverConfig::from_parts(None, Vec::new(), vec![server]);
            TokioResolver::builder_with_config(config, TokioRuntimeProvider::default())
        }
    };
    let options = builder.options_mut();
    options.timeout = ANSWER_TIMEOUT;
    options.attempts = 2;
    builder.build()
}
