//! A warning about connections to a store without TLS.

use std::net::IpAddr;

use tracing::warn;

/// Logs a warning that the connection to a store has no TLS, if one of `hosts` is not this machine.
///
/// A backend whose configuration has no TLS calls this when it is made. `setting` is the name of the one with the authorities.
pub fn warn_of_plain_text(store: &str, hosts: &[String], with_password: bool, setting: &str) {
    let Some(host) = hosts.iter().find(|host| !is_loopback(host)) else { return };
    let what = match with_password {
        true => {
            "the password, and the store's answers about who leads, can be read and changed on the network"
        }
        false => "the store's answers about who leads can be read and changed on the network",
    };
    warn!(
        store,
        host, "no TLS to a store on another machine: {what}; give {setting}=/path/to/authorities.pem"
    );
}

/// Whether `host`, with or without a port, is this machine regardless of name resolution.
pub fn is_loopback(host: &str) -> bool {
    let name = match host.strip_prefix('[').and_then(|rest| rest.split_once(']')) {
        Some((name, _)) => name,
        None => host.split_once(':').map_or(host, |(name, _)| name),
    };
    match name.parse::<IpAddr>() {
        Ok(address) => address.to_canonical().is_loopback(),
        Err(_) => name.eq_ignore_ascii_case("localhost"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn loopback_hosts_are_recognized() {
        for host in
            ["127.0.0.1:2379", "127.8.8.8", "[::1]:2181", "[::ffff:127.0.0.1]:1", "localhost", "LocalHost:1"]
        {
            assert!(is_loopback(host), "{host}");
        }
        for host in [
            "10.0.0.1:2379",
            "128.0.0.1",
            "[::2]:1",
            "[fe80::1%eth0]:1",
            "localhost.example",
            "a.localhost:7",
            "etcd-0:2379",
            "127.0.0.1.example",
            "",
        ] {
            assert!(!is_loopback(host), "{host}");
        }
    }
}
