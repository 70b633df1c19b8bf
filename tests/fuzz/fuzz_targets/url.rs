//! Store URLs, from the text to the settings of each backend. No password is printed, and accepted settings are valid.
//!
//! A single line is a URL. Several lines are the parts of one (user, password, path, the value of a setting), which must round-trip.

#![no_main]

use std::fmt::Debug;

use axum::http::Uri;
use libfuzzer_sys::fuzz_target;
use percent_encoding::{NON_ALPHANUMERIC, utf8_percent_encode};
use tenure::{Config, StoreUrl};
use tenure_etcd::EtcdConfig;
use tenure_local::LocalConfig;
use tenure_zookeeper::ZookeeperConfig;

/// What the password holds that must not be printed, and another of the same length.
const SECRET: &str = "hunter2";
const OTHER: &str = "swordfi";
/// The settings whose values are files that are read: those of a hostile URL are whatever this machine has.
const FILES: [&str; 4] = ["password_file", "ca", "cert", "key"];
/// Settings that nobody knows, and that are meant for a password.
const MISTYPED: [&str; 4] = ["passwd", "pass", "pasword", "password"];

fuzz_target!(|data: &[u8]| {
    let Ok(text) = str::from_utf8(data) else { return };
    if let Some((user, rest)) = text.split_once('\n') {
        let mut rest = rest.splitn(3, '\n');
        let mut part = || rest.next().unwrap_or_default();
        parts_come_back(user, part(), part(), part());
        return;
    }
    let printed = all_that_is_printed(text);
    if is_in_the_password(text) {
        assert_eq!(printed, all_that_is_printed(&text.replacen(SECRET, OTHER, 1)), "the password shows");
    }
    if is_a_mistyped_setting(text) && text.matches(SECRET).count() == 1 {
        assert!(!printed.contains(SECRET), "{printed}");
    }
    // Where the @ behind a password was encoded, too. What parses is a path by the letter.
    let before = text.rsplit_once("%40").map_or("", |(before, _)| before);
    let is_illegal = text.parse::<StoreUrl>().is_err();
    if is_illegal && before.contains(&format!(":{SECRET}")) && text.matches(SECRET).count() == 1 {
        assert!(!printed.contains(SECRET), "{printed}");
    }
    // Where a password was not encoded, and none of what stands before the last @ is one by the letter.
    let before = text.rsplit_once('@').map_or("", |(before, _)| before);
    if before.contains(&format!(":{SECRET}")) && text.matches(SECRET).count() == 1 {
        assert!(!printed.contains(SECRET), "{printed}");
    }
});

/// Whether the first secret in `text` is part of a password, by the letter.
fn is_in_the_password(text: &str) -> bool {
    let Some((scheme, rest)) = text.split_once("://") else { return false };
    let authority = &rest[..rest.find(['/', '?']).unwrap_or(rest.len())];
    let password = authority.rsplit_once('@').and_then(|(login, _)| login.split_once(':'));
    password.is_some_and(|(user, password)| {
        password.contains(SECRET) && !user.contains(SECRET) && !scheme.contains(SECRET)
    })
}

/// Whether the secret in `text` is the value of a setting whose name is not quite that of a password.
fn is_a_mistyped_setting(text: &str) -> bool {
    let settings = text.split_once('?').map_or("", |(_, settings)| settings);
    let mut pairs = settings.split('&').filter_map(|pair| pair.split_once('='));
    pairs.any(|(name, value)| MISTYPED.contains(&name) && value.contains(SECRET))
}

/// Everything that is printed of a URL by any of its parsers, and what must hold when it is accepted.
fn all_that_is_printed(text: &str) -> String {
    let mut all = String::new();
    let url = match text.parse::<StoreUrl>() {
        Ok(url) => url,
        Err(error) => return format!("{error} {error:?}"),
    };
    all += &format!("{url} {url:?} {} {:?}", url.invalid("reason"), url.password());
    holds(&url);
    let asked: StoreUrl = text.parse().expect("it did just now");
    let reads_files =
        FILES.iter().any(|name| asked.text(name).is_some_and(|path| !path.starts_with("/nowhere/")));
    let config = tenure::test_support::config(&url);
    if let Ok(config) = &config {
        config.validate().expect("what is accepted is valid");
        assert!((Config::MIN_TTL..=Config::MAX_TTL).contains(&config.ttl()));
        assert!(!config.grace_period().is_zero() && config.grace_period() <= config.ttl() / 3);
    }
    // A candidate's id is a random one, where none is given.
    all += &config.map_or_else(|error| error.to_string(), |config| format!("{:?}", config.ttl()));
    if !reads_files {
        let etcd = EtcdConfig::from_url(&url);
        if let Ok(config) = &etcd {
            let (endpoints, prefix) = config.endpoints_and_prefix();
            have_ports(endpoints, &url);
            assert!(!prefix.is_empty() && !prefix.ends_with('/'), "{prefix}");
        }
        let zookeeper = ZookeeperConfig::from_url(&url);
        if let Ok(config) = &zookeeper {
            let (servers, root) = tenure_zookeeper::test_support::servers_and_root(config);
            have_ports(servers, &url);
            assert!(!url.user().unwrap_or_default().contains(':'), "the servers would take another user");
            assert!(
                root.starts_with('/') && root[1..].split('/').all(|part| !["", ".", ".."].contains(&part)),
                "{root}"
            );
        }
        all += &format!("{} {}", shown(&etcd), shown(&zookeeper));
        all +=
            &shown(&url.login().map(|login| login.map(|(user, password)| (user, format!("{password:?}")))));
    }
    let local = LocalConfig::from_url(&url);
    assert!(local.as_ref().is_err() || local.as_ref().is_ok_and(|local| local.dir().is_absolute()));
    all += &shown(&local);
    all + &shown(&url.deny_unknown())
}

fn shown<T: Debug, E: std::error::Error>(outcome: &Result<T, E>) -> String {
    match outcome {
        Ok(value) => format!("{value:?}"),
        Err(error) => format!("{error} {error:?} {:?}", error.source().map(ToString::to_string)),
    }
}

/// What every URL that is accepted has.
fn holds(url: &StoreUrl) {
    let alphabet = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || matches!(c, '+' | '-');
    assert!(!url.scheme().is_empty() && url.scheme().chars().all(alphabet));
    for part in
        [url.path(), url.user().unwrap_or_default(), url.password().map_or("", |secret| secret.expose())]
    {
        assert!(!part.chars().any(char::is_control), "{part:?}");
    }
    assert!(
        url.user().is_none_or(|user| !user.is_empty()) && (url.password().is_none() || url.user().is_some())
    );
    assert!(!url.to_string().chars().any(char::is_control), "{url}");
    for host in url.hosts() {
        // As the clients read it.
        let uri: Uri = format!("http://{host}").parse().unwrap_or_else(|error| panic!("{host}: {error}"));
        assert_eq!(uri.authority().map(|authority| authority.as_str()), Some(host.as_str()));
    }
}

/// Every host of the URL, in its order, with its own port or the default.
fn have_ports(servers: &[String], url: &StoreUrl) {
    assert_eq!(servers.len(), url.hosts().len());
    for (server, host) in servers.iter().zip(url.hosts()) {
        assert!(server.starts_with(host.as_str()), "{server} {host}");
        let port = server.rsplit_once(':').and_then(|(_, port)| port.parse::<u16>().ok());
        assert!(port.is_some_and(|port| port > 0), "{server}");
    }
}

/// A URL of percent-encoded parts gives them back, or says which has a character that is not allowed.
fn parts_come_back(user: &str, password: &str, path: &str, value: &str) {
    let encoded = |text| utf8_percent_encode(text, NON_ALPHANUMERIC);
    let (name, secret) = (encoded(user), encoded(password));
    let text = format!("etcd://{name}:{secret}@h:1,[::1]:2/{}?value={}", encoded(path), encoded(value));
    let legal = [user, password, path, value].iter().all(|part| !part.chars().any(char::is_control));
    match text.parse::<StoreUrl>() {
        Ok(url) => {
            assert!(legal && !user.is_empty());
            assert_eq!((url.user(), url.path()), (Some(user), format!("/{path}").as_str()));
            assert_eq!(url.password().expect("it has one").expose(), password);
            assert_eq!(url.hosts(), ["h:1", "[::1]:2"]);
            assert_eq!(url.text("value"), Some(value));
            let login = url.login().expect("both are given").expect("both are given");
            assert_eq!((login.0.as_str(), login.1.latest().expose()), (user, password));
        }
        Err(error) => assert!(!legal || user.is_empty(), "{error}"),
    }
}
