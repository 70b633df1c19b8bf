//! Redacts an illegal store URL for its error message, so that no part of a password is shown.
//!
//! A password that was not percent-encoded, or is in the wrong place, can appear anywhere: as a port, a host, a path or a
//! setting. If any part of the URL is malformed, only the scheme is shown.

use super::host::check_host;

/// `text` without the parts that may be a password.
pub(super) fn redacted(text: &str) -> String {
    let (url, settings) = text.split_once('?').map_or((text, None), |(url, settings)| (url, Some(settings)));
    let (start, shown) = match url.split_once(':').map(|(scheme, rest)| (scheme, rest.strip_prefix("//"))) {
        Some((scheme, Some(rest))) if is_scheme(scheme) => (format!("{scheme}://"), with_hidden_login(rest)),
        Some((scheme, None)) if is_scheme(scheme) => (String::new(), directory(url).map(str::to_owned)),
        None => (String::new(), is_plain(url).then(|| url.to_owned())),
        Some(_) => (String::new(), None),
    };
    match (shown, settings) {
        (Some(shown), None) => format!("{start}{shown}"),
        // If there is an @, the `?` may be part of a password, or the value of a setting may be a password.
        (Some(shown), Some(settings)) if !has_at(settings) => format!("{start}{shown}?***"),
        _ => format!("{start}***"),
    }
}

/// Whether the text before an `@` may be a login: one without the two slashes before it, or one with a password.
pub(super) fn may_be_login(before: &str) -> bool {
    before.contains(':') || !before.starts_with('/')
}

fn is_scheme(text: &str) -> bool {
    !text.is_empty() && text.bytes().all(|b| b.is_ascii_alphabetic() || b == b'+')
}

fn has_at(text: &str) -> bool {
    text.contains('@') || text.contains("%40")
}

/// Whether `text` contains neither a login nor a setting whose `?` is missing.
fn is_plain(text: &str) -> bool {
    !has_at(text) && !text.contains(SETTING_DELIMITERS)
}

const SETTING_DELIMITERS: [char; 3] = ['=', '&', ';'];

/// The hosts and the path, with the login replaced by `***`. `None` if any part is malformed.
fn with_hidden_login(rest: &str) -> Option<String> {
    let (login, rest) = rest.split_once('@').map_or((None, rest), |(login, rest)| (Some(login), rest));
    let hosts = rest.split('/').next().unwrap_or_default();
    // `local:///directory` has no hosts.
    let are_hosts =
        hosts.split(',').all(|host| check_host(host).is_ok()) || (hosts.is_empty() && login.is_none());
    let is_login = login.is_none_or(|login| !login.contains('/') && !login.contains(SETTING_DELIMITERS));
    let login = if login.is_some() { "***@" } else { "" };
    (are_hosts && is_login && is_plain(rest)).then(|| format!("{login}{rest}"))
}

/// The URL, if it has the form `local:/directory`.
fn directory(url: &str) -> Option<&str> {
    let (_, path) = url.split_once(':')?;
    (path.starts_with('/') && !path.contains(':') && is_plain(path)).then_some(url)
}

#[cfg(test)]
mod tests {
    use crate::StoreUrl;

    /// Checks what the error of each illegal URL shows, besides the reason.
    fn assert_redacted(texts: &[(&str, &str)]) {
        for (text, shown) in texts {
            let error = text.parse::<StoreUrl>().unwrap_err().to_string();
            assert!(error.contains(&format!("{shown:?}")), "{error}");
            assert!(!error.contains("hunter2"), "{error}");
        }
    }

    /// Well-formed parts are shown, so that the reader of the error recognizes the URL.
    #[test]
    fn well_formed_parts_are_shown() {
        assert_redacted(&[
            ("etcd://me:hunter2@a:1,[::1]:2/acme?ttl", "etcd://***@a:1,[::1]:2/acme?***"),
            ("local:/var/lib/x?ttl", "local:/var/lib/x?***"),
            ("local:///var/lib/x?ttl", "local:///var/lib/x?***"),
            ("ETCD://h/x", "ETCD://h/x"),
            ("etcd", "etcd"),
        ]);
    }

    /// The `@` was percent-encoded or is missing, so that the password is in the place of a port.
    #[test]
    fn a_password_in_the_place_of_a_port_is_not_shown() {
        assert_redacted(&[
            ("etcd://app:hunter2%40h:2379/x", "etcd://***"),
            ("etcd://app:hunter2", "etcd://***"),
            ("etcd://a:1,app:hunter2,b/x?y=hunter2", "etcd://***"),
            ("etcd://app:x,hunter2", "etcd://***"),
            ("etcd://app:hun/hunter2", "etcd://***"),
            ("etcd://app%3Ahun/hunter2%40h:2379/x", "etcd://***"),
            ("etcd://u:p@/hunter2", "etcd://***"),
            ("etcd://u:2024/hunter2%40h/p?ttl", "etcd://***"),
            ("etcd//app:hunter2%40h:2379", "***"),
            ("etcd:/app:hunter2%40h:2379/x?ttl", "***"),
            ("app:hunter2%40h?ttl", "***"),
        ]);
    }

    /// The last `@` belongs to the value of a setting: the text after it is no host and no path.
    #[test]
    fn a_value_in_the_place_of_a_host_is_not_shown() {
        assert_redacted(&[
            ("etcd:h/x?pasword=@h/hunter2", "***"),
            ("etcd://h:1?pasword=a@hunter2", "etcd://***"),
            ("local:/x?pasword=@h/hunter2&ttl", "***"),
            ("etcd://u:hunter2?x@h/p", "etcd://***"),
            ("etcd:h/x;pasword=@h/hunter2", "***"),
            ("etcd://h:1&pasword=a@hunter2:x", "etcd://***"),
            ("etcd://h:1/x&pasword=a@hunter2", "etcd://***"),
            ("local:/x:1&pasword=@h/hunter2", "***"),
            ("x:y@/z@h?pasword=a://hunter2?b", "***"),
            ("etcd?pasword=a://hunter2", "etcd?***"),
            ("etcd://h:99999/x&pasword=hunter2", "etcd://***"),
        ]);
    }

    /// The URL is legal, but its path may be a login.
    #[test]
    fn a_password_in_the_place_of_a_path_is_not_shown() {
        for (url, shown) in [
            ("app:hunter2%40h:2379/acme", "app:***"),
            ("etcd:app:hunter2%40h", "etcd:***"),
            ("etcd:/app:hunter2%40h", "etcd:***"),
            ("local:/home/me%40work", "local:/home/me@work"),
            ("local:/home/me@work", "local:/home/me@work"),
            ("memory:name", "memory:name"),
        ] {
            assert_eq!(url.parse::<StoreUrl>().unwrap().to_string(), shown);
        }
    }
}
