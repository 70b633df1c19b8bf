//! `Settings` in JSON, and durations. Accepted settings are valid, and every parser reads the same duration.
//!
//! An input that begins with a brace is a settings file; any other is a duration.

#![no_main]

use std::time::Duration;

use libfuzzer_sys::fuzz_target;
use percent_encoding::{NON_ALPHANUMERIC, utf8_percent_encode};
use tenure::{Config, Settings, StoreUrl};

const SECRET: &str = "hunter2";

fuzz_target!(|data: &[u8]| {
    let Ok(text) = str::from_utf8(data) else { return };
    match text.starts_with('{') {
        true => settings(text),
        false => time(text),
    }
});

fn settings(json: &str) {
    let Ok(settings) = serde_json::from_str::<Settings>(json) else { return };
    let shown = format!("{settings:?}");
    let url = settings.store.parse::<StoreUrl>();
    if let Some(password) = url.as_ref().ok().and_then(|url| url.password()).map(|password| password.expose())
        && password.contains(SECRET)
        && json.matches(SECRET).count() == 1
    {
        assert!(!shown.contains(SECRET), "{shown}");
    }
    let Ok(config) = settings.config() else { return };
    if config.validate().is_ok() {
        assert!((Config::MIN_TTL..=Config::MAX_TTL).contains(&config.ttl()));
        assert!(!config.grace_period().is_zero() && config.grace_period() <= config.ttl() / 3);
    }
    assert!(settings.ttl.is_none_or(|ttl| ttl == config.ttl()));
    assert!(settings.candidate.is_none_or(|id| id == config.id().as_str()));
}

fn time(text: &str) {
    let url: Result<StoreUrl, _> =
        format!("etcd://h?time={}", utf8_percent_encode(text, NON_ALPHANUMERIC)).parse();
    let in_url = url.ok().map(|url| url.duration("time"));
    let read = StoreUrl::parse_duration(text).ok();
    // In a URL and on the command line, plain numbers are seconds; a settings file needs a unit.
    let with_unit = humantime::parse_duration(text).ok();
    assert!(with_unit.is_none() || with_unit == read, "{with_unit:?} {read:?}");
    if let Some(in_url) = in_url {
        assert_eq!(in_url.as_ref().ok().copied().flatten(), read, "{in_url:?}");
    }
    let file = serde_json::json!({ "store": "memory:", "election": "e", "ttl": text }).to_string();
    let in_file = serde_json::from_str::<Settings>(&file).ok().and_then(|settings| settings.ttl);
    assert_eq!(in_file, with_unit);
    let Some(time) = read else { return };
    let printed = humantime::format_duration(time).to_string();
    assert_eq!(humantime::parse_duration(&printed), Ok(time), "{printed}");
    limits(time);
}

/// Every time that can be written can be asked for, and is refused in words where it cannot work.
fn limits(time: Duration) {
    let allowed = (Config::MIN_TTL..=Config::MAX_TTL).contains(&time);
    assert_eq!(Config::new().with_ttl(time).validate().is_ok(), allowed, "{time:?}");
    let budget = Config::new().with_grace_period(time).validate();
    assert_eq!(budget.is_ok(), !time.is_zero() && time <= Duration::from_secs(10) / 3, "{budget:?}");
    for refused in [budget, Config::new().with_ttl(time).validate()] {
        assert!(refused.is_ok() || refused.is_err_and(|error| error.to_string().contains("must be")));
    }
}
