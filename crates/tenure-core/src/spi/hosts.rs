//! Checks of the hosts that a backend's configuration contains.

use super::{BackendError, BackendErrorKind};
use crate::url::check_host;

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
