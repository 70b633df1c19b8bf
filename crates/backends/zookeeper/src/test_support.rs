//! Internal functions for the fuzz targets. Not part of any other build.

use std::time::Duration;

use tenure_core::Diagnosis;

use crate::{Layout, ZookeeperConfig, diagnose::servers};

/// The number in the name of an entry.
pub fn number(layout: Layout, name: &str) -> Option<u64> {
    layout.number(name)
}

/// The prefix of the name of `nonce`'s entry.
pub fn prefix(layout: Layout, nonce: u128) -> String {
    layout.prefix(nonce)
}

/// The version and the mode in an answer to `srvr`, and the diagnoses of that server.
pub fn diagnose_srvr(answer: &str) -> Option<(String, String, Vec<Diagnosis>)> {
    let srvr = servers::parse_srvr(answer)?;
    let (version, mode) = (srvr.version.clone(), srvr.mode.clone());
    Some((version, mode, servers::diagnose_server("server", None, Ok(srvr), Duration::ZERO)))
}

/// The servers and the root of a configuration.
pub fn servers_and_root(config: &ZookeeperConfig) -> (&[String], &str) {
    (&config.servers, &config.root)
}
