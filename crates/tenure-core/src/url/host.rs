//! The syntax of hosts.

use std::net::Ipv6Addr;

/// Checks a host, or a host and a port. The error does not repeat it: it may contain a password that was not percent-encoded.
pub(crate) fn check_host(host: &str) -> Result<(), String> {
    if is_bare_ipv6(host) {
        return Err("an IPv6 address is written in brackets, such as [::1]:2379".to_owned());
    }
    let (name, port) = match host.strip_prefix('[').map(|rest| rest.split_once(']')) {
        Some(None) => return Err("a host has no closing bracket".to_owned()),
        Some(Some((name, ""))) => (name, None),
        Some(Some((name, rest))) => match rest.strip_prefix(':') {
            Some(port) => (name, Some(port)),
            None => return Err("a host has text after its bracket".to_owned()),
        },
        None => match host.split_once(':') {
            Some((name, port)) => (name, Some(port)),
            None => (host, None),
        },
    };
    if host.starts_with('[') && name.parse::<Ipv6Addr>().is_err() {
        return Err("a host in brackets is not an IPv6 address".to_owned());
    }
    if name.is_empty() {
        return Err("a host is empty".to_owned());
    }
    if !name.bytes().all(|b| b.is_ascii_alphanumeric() || matches!(b, b'.' | b'-' | b'_' | b':')) {
        return Err("a host has a character that is not allowed".to_owned());
    }
    match port.map(str::parse::<u16>) {
        None => Ok(()),
        Some(Ok(port)) if port > 0 => Ok(()),
        Some(_) => Err("a host's port is not a number from 1 to 65535 (the characters @ / ? of a \
                        password are written %40 %2F %3F)"
            .to_owned()),
    }
}

/// Whether `host` is an IPv6 address without brackets, with or without a port.
fn is_bare_ipv6(host: &str) -> bool {
    let without_port = host.rsplit_once(':').map_or(host, |(address, _)| address);
    [host, without_port].iter().any(|address| address.parse::<Ipv6Addr>().is_ok())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_ipv6_address_needs_brackets() {
        for host in ["::1:2379", "::1", "fe80::a:2379", "1:2:3:4:5:6:7:8", "1:2:3:4:5:6:7:8:2379"] {
            let reason = check_host(host).unwrap_err();
            assert!(reason.ends_with("written in brackets, such as [::1]:2379"), "{host}: {reason}");
        }
        for host in ["h:2379", "[::1]:2379", "[::1]", "10.0.0.1:2379", "h"] {
            assert_eq!(check_host(host), Ok(()));
        }
    }
}
