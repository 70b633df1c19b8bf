//! The syntax of hosts.

use std::net::Ipv6Addr;

/// Checks a host, or a host and a port. The error does not repeat it: it may contain a password that was not percent-encoded.
pub(crate) fn check_host(host: &str) -> Result<(), String> {
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
