//! Checks that the configurations of backends share: hosts and TLS.

use crate::{
    spi::{BackendError, BackendErrorKind},
    tls::Tls,
    url::check_host,
};

/// Checks that `hosts` is not empty, and that each of them is a host or a host and a port. `store` is the name of the
/// store in error messages.
///
/// # Errors
/// Says what is wrong with a host, without repeating it: it may contain a password.
pub fn check_hosts(store: &str, hosts: &[String]) -> Result<(), BackendError> {
    let wrong = hosts.iter().find_map(|host| check_host(host).err());
    match wrong {
        None if hosts.is_empty() => Err(BackendError::new(
            BackendErrorKind::Invalid,
            format!("no host of {store} is given; give at least one host or host:port"),
        )),
        None => Ok(()),
        Some(reason) => Err(BackendError::new(
            BackendErrorKind::Invalid,
            format!(
                "a host of {store} is not allowed: {reason}; give a host or host:port, such as 10.0.0.1:2379"
            ),
        )),
    }
}

/// Splits a host that [`check_hosts`] has accepted into its name, without brackets, and its port.
pub fn name_and_port(host: &str, default_port: u16) -> (&str, u16) {
    let (name, port) = match host.rsplit_once(':') {
        Some((name, port)) if !port.ends_with(']') => (name, port.parse().unwrap_or(default_port)),
        _ => (host, default_port),
    };
    (name.trim_start_matches('[').trim_end_matches(']'), port)
}

/// Fails if TLS is configured and the backend was built without the feature `tls`.
///
/// # Errors
/// When TLS is configured and not supported.
pub fn check_tls(tls: Option<&Tls>, is_supported: bool) -> Result<(), BackendError> {
    if tls.is_none() || is_supported {
        return Ok(());
    }
    let text =
        "TLS is configured, but this program was built without the feature \"tls\"; add it in Cargo.toml";
    Err(BackendError::new(BackendErrorKind::Invalid, text))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_host_has_a_name_and_a_port() {
        for (host, expected) in
            [("h", ("h", 1)), ("h:7", ("h", 7)), ("[::1]", ("::1", 1)), ("[::1]:7", ("::1", 7))]
        {
            assert_eq!(name_and_port(host, 1), expected);
        }
    }
}
