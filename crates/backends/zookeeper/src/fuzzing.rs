//! What the fuzz targets call: parsers that no user can call. In no other build.

use std::time::Duration;

use tenure_core::Diagnosis;

use crate::{ZookeeperConfig, diagnose, layout::Layout};

/// The number of a candidate's entry with this name.
pub fn number(layout: Layout, name: &str) -> Option<u64> {
    layout.number(name)
}

/// What the name of `nonce`'s entry begins with.
pub fn prefix(layout: Layout, nonce: u128) -> String {
    layout.prefix(nonce)
}

/// What an operator is told of a server that answers so to `srvr`, and the version and the part that were read of it.
pub fn answered(answer: &str) -> Option<(String, String, Vec<Diagnosis>)> {
    let said = diagnose::parse(answer)?;
    let (version, mode) = (said.version.clone(), said.mode.clone());
    Some((version, mode, diagnose::judge("server", None, Ok(said), Duration::ZERO)))
}

/// The servers and the root that a URL has come to.
pub fn reach(config: &ZookeeperConfig) -> (&[String], &str) {
    (&config.servers, &config.root)
}
