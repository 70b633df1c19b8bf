//! The parser of store URLs. A store URL is not always a URL in the sense of RFC 3986: it may contain several hosts with
//! ports.

use std::{collections::BTreeMap, str::FromStr, sync::Arc};

use percent_encoding::percent_decode_str;

use super::{
    InvalidUrl, Secret, StoreUrl,
    host::check_host,
    redacted::{may_be_login, redacted},
};

const EXAMPLE: &str = "a store URL looks like etcd://host:2379/prefix";

fn decoded(text: &str) -> Result<String, String> {
    let text =
        percent_decode_str(text).decode_utf8().map_err(|_| "it is not UTF-8 once decoded".to_owned())?;
    if text.chars().any(char::is_control) {
        return Err("it has a control character".to_owned());
    }
    Ok(text.into_owned())
}

/// Whether a scheme may contain `byte`.
pub(crate) fn is_scheme_byte(byte: u8) -> bool {
    byte.is_ascii_lowercase() || byte.is_ascii_digit() || matches!(byte, b'+' | b'-')
}

impl FromStr for StoreUrl {
    type Err = InvalidUrl;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let fail = |reason: String| InvalidUrl { url: redacted(text), reason };
        let (scheme, rest) =
            text.split_once(':').ok_or_else(|| fail(format!("it has no scheme; {EXAMPLE}")))?;
        if scheme.contains('.') && !rest.starts_with("//") || scheme.starts_with('[') {
            return Err(fail(format!("it begins with a host and has no scheme; {EXAMPLE}")));
        }
        if scheme.is_empty() || !scheme.bytes().all(is_scheme_byte) {
            return Err(fail("its scheme has a character that is not in [a-z0-9+-]".to_owned()));
        }
        let hosts_end =
            rest.strip_prefix("//").map_or(0, |rest| 2 + rest.find(['/', '?']).unwrap_or(rest.len()));
        if rest.rfind('@').is_some_and(|at| at > hosts_end && may_be_login(&rest[..at])) {
            return Err(fail(
                "it has an @ after its hosts; write %40 (the characters @ / ? of a password are written %40 %2F %3F)"
                    .to_owned(),
            ));
        }
        let (rest, query) = match rest.split_once('?') {
            Some((rest, query)) => (rest, Some(query)),
            None => (rest, None),
        };
        let (authority, path) = match rest.strip_prefix("//") {
            Some(rest) => match rest.find('/') {
                Some(at) => (Some(&rest[..at]), &rest[at..]),
                None => (Some(rest), ""),
            },
            None => (None, rest),
        };
        let mut url = Self {
            scheme: scheme.to_owned(),
            user: None,
            password: None,
            hosts: Vec::new(),
            path: decoded(path).map_err(|e| fail(format!("its path is not allowed: {e}")))?,
            settings: BTreeMap::new(),
            known: Arc::default(),
        };
        if let Some(authority) = authority {
            let hosts = match authority.rsplit_once('@') {
                Some((login, hosts)) => {
                    let (user, password) = match login.split_once(':') {
                        Some((user, password)) => (user, Some(password)),
                        None => (login, None),
                    };
                    if user.is_empty() {
                        return Err(fail("it has a password but no user".to_owned()));
                    }
                    url.user =
                        Some(decoded(user).map_err(|e| fail(format!("its user is not allowed: {e}")))?);
                    url.password = password
                        .map(decoded)
                        .transpose()
                        .map_err(|e| fail(format!("its password is not allowed: {e}")))?
                        .map(Secret::new);
                    hosts
                }
                None => authority,
            };
            // As in `etcd://http://host`.
            let has_scheme = |host| host == "http:" || host == "https:";
            if hosts.split(',').any(has_scheme) && path.starts_with("//") {
                return Err(fail(format!(
                    "its hosts have a scheme of their own; write them alone: {scheme}://host1,host2/prefix"
                )));
            }
            if !hosts.is_empty() {
                for host in hosts.split(',') {
                    check_host(host).map_err(fail)?;
                    url.hosts.push(host.to_owned());
                }
            } else if url.user.is_some() {
                return Err(fail("it has a user but no host".to_owned()));
            }
        }
        for pair in query.into_iter().flat_map(|q| q.split('&')).filter(|p| !p.is_empty()) {
            let (name, value) = pair
                .split_once('=')
                .ok_or_else(|| fail("a setting does not have the form name=value".to_owned()))?;
            if !name.bytes().all(|b| b.is_ascii_lowercase() || b == b'_') {
                return Err(fail("the name of a setting has a character that is not in [a-z_]".to_owned()));
            }
            let value = decoded(value).map_err(|e| fail(format!("setting {name} is not allowed: {e}")))?;
            if url.settings.insert(name.to_owned(), value).is_some() {
                return Err(fail(format!("setting {name} is given twice")));
            }
        }
        Ok(url)
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use proptest::prelude::*;

    use super::*;

    #[test]
    fn a_url_is_parsed() {
        let url: StoreUrl =
            "etcd://me:p%40ss@10.0.0.1:2379,[::1]:2379,h/acme?ttl=10s&drift=0.2".parse().unwrap();
        assert_eq!((url.scheme(), url.user(), url.path()), ("etcd", Some("me"), "/acme"));
        assert_eq!(url.password().unwrap().expose(), "p@ss");
        assert_eq!(url.hosts(), ["10.0.0.1:2379", "[::1]:2379", "h"]);
        assert_eq!(url.duration("ttl").unwrap(), Some(Duration::from_secs(10)));
        assert_eq!(url.parsed::<f64>("drift", "a fraction").unwrap(), Some(0.2));
        url.deny_unknown().unwrap();
        let local: StoreUrl = "local:/var/lib/x?ttl=1s".parse().unwrap();
        assert_eq!((local.path(), local.hosts().len()), ("/var/lib/x", 0));
        let local: StoreUrl = "local:///var/lib/x".parse().unwrap();
        assert_eq!(local.path(), "/var/lib/x");
        let local: StoreUrl = "local:/home/me@work".parse().unwrap();
        assert_eq!(local.path(), "/home/me@work");
        let memory: StoreUrl = "memory:".parse().unwrap();
        assert_eq!((memory.scheme(), memory.path()), ("memory", ""));
    }

    #[test]
    fn an_illegal_url_is_reported_with_the_reason() {
        for (text, reason) in [
            ("etcd", "no scheme"),
            (
                "127.0.0.1:2379",
                "begins with a host and has no scheme; a store URL looks like etcd://host:2379",
            ),
            ("etcd-1.acme.example:2379,etcd-2.acme.example:2379/acme", "begins with a host"),
            ("[::1]:2379", "begins with a host"),
            ("etcd://::1:2379", "written in brackets, such as [::1]:2379"),
            ("etcd://a:1,::1", "written in brackets"),
            ("etcd://http://h:2379", "write them alone: etcd://host1,host2/prefix"),
            ("zookeeper://u:secret@https://h:2379,https://i:2379/x", "write them alone: zookeeper://host1"),
            ("ETCD://h", "[a-z0-9+-]"),
            ("etcd://h:99999", "from 1 to 65535"),
            ("etcd://h:0", "from 1 to 65535"),
            ("etcd://h,,i", "a host is empty"),
            ("etcd://h o", "not allowed"),
            ("etcd://[fe80]", "not an IPv6 address"),
            ("etcd://u:2024/secret@h", "an @ after its hosts"),
            ("etcd://h?secret0=1", "[a-z_]"),
            ("etcd://[::1", "closing bracket"),
            ("etcd://:secret@h", "no user"),
            ("etcd://u:secret@", "no host"),
            ("etcd://h?ttl", "name=value"),
            ("etcd://h?password=secret&ttl", "name=value"),
            ("etcd://u:secret?x@h", "an @ after its hosts"),
            ("etcd://u:secret/x@h", "an @ after its hosts"),
            ("etcd://u:p@ss/secret@h", "an @ after its hosts"),
            ("etcd://u:1?value=secret@h", "an @ after its hosts"),
            ("etcd:/u:secret@h", "an @ after its hosts"),
            ("u:secret@h", "an @ after its hosts"),
            ("etcd:2379://u:secret@h", "an @ after its hosts"),
            ("etcd://h?ttl=1s&ttl=2s", "given twice"),
            ("etcd://h/%00", "control character"),
            ("etcd://h/%ff", "UTF-8"),
        ] {
            let error = text.parse::<StoreUrl>().unwrap_err().to_string();
            assert!(error.contains(reason), "{text}: {error}");
            assert!(!error.contains("secret"), "{error}");
        }
        let url: StoreUrl = "etcd://h?tll=10s&ttl=soon".parse().unwrap();
        assert!(url.duration("ttl").unwrap_err().to_string().contains("ttl=soon is not a time such as 10s"));
        assert!(url.deny_unknown().unwrap_err().to_string().contains("unknown setting tll; allowed are ttl"));
    }

    proptest! {
        #[test]
        fn no_text_panics(text in ".{0,200}") {
            let _ = text.parse::<StoreUrl>();
        }
    }
}
