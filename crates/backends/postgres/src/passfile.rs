//! Passwords in a file of libpq's, `~/.pgpass` by default.

use std::{
    env, fs,
    path::{Path, PathBuf},
};

use tenure_core::{Password, Secret};

use crate::config::PostgresConfig;

/// The file of the environment: `PGPASSFILE`, or `~/.pgpass` if there is one.
pub(crate) fn default_file() -> Option<PathBuf> {
    let named = env::var_os("PGPASSFILE").filter(|file| !file.is_empty()).map(PathBuf::from);
    named.or_else(|| Some(Path::new(&env::var_os("HOME")?).join(".pgpass")).filter(|file| file.exists()))
}

/// The password of each host. `None` for a host of which the file has no line.
///
/// # Errors
/// When the file cannot be read, or others may read it. The text is the reason.
pub(crate) fn passwords(file: &Path, config: &PostgresConfig) -> Result<Vec<Option<Password>>, String> {
    let text = fs::read_to_string(file).map_err(|error| format!("cannot be read: {error}"))?;
    #[cfg(unix)]
    {
        use std::os::unix::fs::PermissionsExt as _;
        let mode =
            fs::metadata(file).map_err(|error| format!("cannot be read: {error}"))?.permissions().mode();
        if mode & 0o077 != 0 {
            return Err("can be read or changed by others: run `chmod 600` on it".to_owned());
        }
    }
    let passwords = config.endpoints().map(|(host, port)| {
        let wanted = [host.to_owned(), port.to_string(), config.database.clone(), config.user.clone()];
        if find(&text, &wanted).is_none() {
            return Ok(None);
        }
        let find = move |text: &str| {
            find(text, &wanted).ok_or_else(|| "has no line for this host and user".to_owned())
        };
        Password::from_file_with(file, "passfile", find).map(Some)
    });
    passwords.collect()
}

/// The password of the first line that matches: `host:port:database:user:password`, each of the first four may be `*`.
fn find(text: &str, wanted: &[String; 4]) -> Option<Secret> {
    text.lines().filter(|line| !line.starts_with('#')).find_map(|line| {
        let fields = fields(line);
        let (password, keys) = fields.split_last().filter(|(_, keys)| keys.len() == 4)?;
        let matches = keys.iter().zip(wanted).all(|(key, wanted)| key == "*" || key == wanted);
        matches.then(|| Secret::new(password))
    })
}

/// The fields of a line. A backslash precedes a colon or a backslash that is part of a field.
fn fields(line: &str) -> Vec<String> {
    let mut fields = vec![String::new()];
    let mut characters = line.chars();
    while let Some(character) = characters.next() {
        let next = match character {
            ':' if fields.len() < 5 => {
                fields.push(String::new());
                continue;
            }
            '\\' => characters.next(),
            other => Some(other),
        };
        if let (Some(field), Some(next)) = (fields.last_mut(), next) {
            field.push(next);
        }
    }
    fields
}

#[cfg(test)]
mod tests {
    use super::*;

    fn found(text: &str) -> Option<String> {
        let wanted = ["h", "5432", "d:b", "u"].map(str::to_owned);
        find(text, &wanted).map(|secret| secret.expose().to_owned())
    }

    /// As libpq documents it.
    #[test]
    fn the_first_line_that_matches_counts() {
        for (text, password) in [
            (r"h:5432:d\:b:u:secret", Some("secret")),
            ("h:5432:*:u:se:cr:et", Some("se:cr:et")),
            (r"*:*:*:*:se\\cr\:et", Some(r"se\cr:et")),
            ("other:*:*:*:1\n#*:*:*:*:2\n\n*:*:*:*:3\n*:*:*:*:4\n", Some("3")),
            ("*:*:*:*:", Some("")),
            ("*:5433:*:*:1", None),
            ("h:5432:d:b:u:secret", None),
            ("*:*:*:secret", None),
            ("", None),
        ] {
            assert_eq!(found(text).as_deref(), password, "{text}");
        }
    }

    #[cfg(unix)]
    #[test]
    fn a_file_that_others_may_read_is_refused() {
        use std::os::unix::fs::PermissionsExt as _;
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("pgpass");
        let config = PostgresConfig::new(["h", "[::1]:7"], "u", "db");
        assert!(passwords(&file, &config).unwrap_err().contains("cannot be read"));
        fs::write(&file, "h:5432:db:u:hunter2\n").unwrap();
        for (mode, is_allowed) in [(0o600, true), (0o400, true), (0o640, false), (0o602, false)] {
            fs::set_permissions(&file, fs::Permissions::from_mode(mode)).unwrap();
            let found = passwords(&file, &config);
            match found {
                Ok(found) => {
                    assert!(
                        is_allowed
                            && found[0].as_ref().unwrap().latest().expose() == "hunter2"
                            && found[1].is_none()
                    );
                }
                Err(error) => assert!(!is_allowed && error.contains("chmod 600"), "{error}"),
            }
        }
    }
}
