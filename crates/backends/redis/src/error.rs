//! What a refused request means.

use redis::RedisError;
use tenure_core::spi::{
    BackendError,
    BackendErrorKind::{self, Forbidden, Invalid, Unauthorized, Unavailable},
};

use crate::config::RedisConfig;

/// The rights that a candidate's user needs, besides its key and its channel.
const RIGHTS: &str = "+evalsha +eval +hget +hset +hdel +hscan +info +time +publish +subscribe +select";

/// What an administrator runs, so that the user of `config` may be a candidate.
pub(crate) fn grant(config: &RedisConfig) -> String {
    format!("ACL SETUSER {} ~{2} &{2} {1}", config.user(), RIGHTS, config.prefix)
}

/// The text of an error, without what a server repeats of a command that it does not know: `HELLO` has the password.
fn without_arguments(mut text: String) -> String {
    if let Some(end) = text.find(", with args") {
        text.truncate(end);
    }
    text
}

/// The error of a request, by its kind, and what to do about it.
pub(crate) fn classify(config: &RedisConfig, what: &str, error: &RedisError) -> BackendError {
    let text = without_arguments(error.to_string());
    let code = match error.code().unwrap_or_default() {
        // Of a command in the script: first Redis's text, then Valkey's.
        "ERR"
            if text.contains("executing the script can't run") || text.contains("ACL failure in script") =>
        {
            "NOPERM"
        }
        code => code,
    };
    let (kind, advice): (BackendErrorKind, _) = match code {
        "NOAUTH" => {
            (Unauthorized, "give a user and a password: redis://user@host/0?password_file=/path".to_owned())
        }
        "WRONGPASS" => {
            (Unauthorized, "check the password, and that the user is on: ACL GETUSER shows it".to_owned())
        }
        "NOPERM" => (Forbidden, format!("an administrator has to run: {}", grant(config))),
        "READONLY" => (Unavailable, "it is a replica; name the primary".to_owned()),
        "MISCONF" | "OOM" => (Unavailable, "it accepts no writes: see to its disk and its memory".to_owned()),
        "MOVED" | "ASK" | "CROSSSLOT" | "CLUSTERDOWN" => (
            Unavailable,
            format!("it is a node of a cluster: name the one that has the slot of {}", config.prefix),
        ),
        "WRONGTYPE" => (Invalid, "another program uses that key; give another prefix=".to_owned()),
        _ if text.contains("DB index is out of range") => {
            (Invalid, "give a lower number of the database, as in redis://host/0".to_owned())
        }
        _ => return BackendError::new(Unavailable, format!("{what}: {text}")),
    };
    BackendError::new(kind, format!("{what}: {text}; {advice}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// As Redis and Valkey answer with `rename-command HELLO ""`.
    #[test]
    fn an_error_does_not_repeat_the_login() {
        let answer = b"-ERR unknown command 'HELLO', with args beginning with: '3' 'AUTH' 'app' 'correct-horse-7' \r\n";
        let redis::Value::ServerError(error) = redis::parse_redis_value(answer).unwrap() else { panic!() };
        let error = classify(&RedisConfig::new("h"), "connecting", &error.into()).to_string();
        assert!(error.ends_with("unknown command 'HELLO'"), "{error}");
    }
}
