//! What is shown of a text that was meant for a store URL and is none: nothing that may be part of a password.
//!
//! A password that was not percent-encoded, or was where no login is read, lies anywhere: in the place of a port, a host,
//! a path or a setting. So of a text in which anything is not in its place only the scheme is shown.

use super::check_host;

/// The text without what may be a password, for an error about it.
pub(super) fn redacted(text: &str) -> String {
    let (url, settings) = text.split_once('?').map_or((text, None), |(url, settings)| (url, Some(settings)));
    let (start, shown) = match url.split_once(':').map(|(scheme, rest)| (scheme, rest.strip_prefix("//"))) {
        Some((scheme, Some(rest))) if is_scheme(scheme) => (format!("{scheme}://"), without_login(rest)),
        Some((scheme, None)) if is_scheme(scheme) => (String::new(), directory(url).map(str::to_owned)),
        None => (String::new(), is_plain(url).then(|| url.to_owned())),
        Some(_) => (String::new(), None),
    };
    match (shown, settings) {
        (Some(shown), None) => format!("{start}{shown}"),
        // Where there is an @, the `?` is of a password, or that of a setting's value, which may be one.
        (Some(shown), Some(settings)) if !has_at(settings) => format!("{start}{shown}?***"),
        _ => format!("{start}***"),
    }
}

/// Whether what stands before an `@` may be a login: without the slashes before it, or with a password.
pub(super) fn is_like_a_login(before: &str) -> bool {
    before.contains(':') || !before.starts_with('/')
}

fn is_scheme(text: &str) -> bool {
    !text.is_empty() && text.bytes().all(|b| b.is_ascii_alphabetic())
}

fn has_at(text: &str) -> bool {
    text.contains('@') || text.contains("%40")
}

/// Whether nothing of it may be a login, or a setting whose `?` is missing.
fn is_plain(text: &str) -> bool {
    !has_at(text) && !text.contains(SETTING)
}

const SETTING: [char; 3] = ['=', '&', ';'];

/// Hosts and path behind a login that is not shown; `None` when anything is not in its place.
fn without_login(rest: &str) -> Option<String> {
    let (login, rest) = rest.split_once('@').map_or((None, rest), |(login, rest)| (Some(login), rest));
    let hosts = rest.split('/').next().unwrap_or_default();
    // `local:///directory` has none.
    let are_hosts =
        hosts.split(',').all(|host| check_host(host).is_ok()) || (hosts.is_empty() && login.is_none());
    let is_login = login.is_none_or(|login| !login.contains('/') && !login.contains(SETTING));
    let login = if login.is_some() { "***@" } else { "" };
    (are_hosts && is_login && is_plain(rest)).then(|| format!("{login}{rest}"))
}

/// What is of the form `local:/directory`.
fn directory(url: &str) -> Option<&str> {
    let (_, path) = url.split_once(':')?;
    (path.starts_with('/') && !path.contains(':') && is_plain(path)).then_some(url)
}

#[cfg(test)]
mod tests {
    use crate::StoreUrl;

    /// None of these is a store URL; what the error shows of each, besides the reason.
    fn are_shown(texts: &[(&str, &str)]) {
        for (text, shown) in texts {
            let error = text.parse::<StoreUrl>().unwrap_err().to_string();
            assert!(error.contains(&format!("{shown:?}")), "{error}");
            assert!(!error.contains("hunter2"), "{error}");
        }
    }

    /// What is in its place is shown, so that whoever reads the error knows which URL it is about.
    #[test]
    fn what_holds_no_password_is_shown() {
        are_shown(&[
            ("etcd://me:hunter2@a:1,[::1]:2/acme?ttl", "etcd://***@a:1,[::1]:2/acme?***"),
            ("local:/var/lib/x?ttl", "local:/var/lib/x?***"),
            ("local:///var/lib/x?ttl", "local:///var/lib/x?***"),
            ("ETCD://h/x", "ETCD://h/x"),
            ("etcd", "etcd"),
        ]);
    }

    /// Also where the `@` was percent-encoded, or is missing, so that the password stands where a port should.
    #[test]
    fn no_password_is_taken_for_a_port() {
        are_shown(&[
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

    /// Where the last `@` is of a setting's value: nothing behind it is a host or a path.
    #[test]
    fn no_value_is_taken_for_a_host() {
        are_shown(&[
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

    /// What is legal, but was meant for a login.
    #[test]
    fn no_password_is_taken_for_a_path() {
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
