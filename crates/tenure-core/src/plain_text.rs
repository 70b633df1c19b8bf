//! Whether others can listen to what is said to a store.

use std::net::IpAddr;

use tracing::warn;

/// Logs, as a warning, that a store is spoken to in plain text where others can listen: when one of `hosts` is not this
/// machine.
///
/// For backends whose configuration asks for no TLS: each says it when it is made.
pub fn warn_of_plain_text(store: &str, hosts: &[String], with_password: bool) {
    let Some(host) = hosts.iter().find(|host| !is_loopback(host)) else { return };
    let what = match with_password {
        true => "the password, and whatever the store says of who leads, can be read and changed on the way",
        false => "whatever the store says of who leads can be read and changed on the way",
    };
    warn!(store, host, "no TLS to a store on another machine: {what}; give ca=/path/to/authorities.pem");
}

/// Whether `host`, with a port or without, names this machine whatever a resolver says.
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
    fn this_machine_has_several_names() {
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
