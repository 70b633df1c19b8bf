//! Bugs of etcd versions that affect elections.

/// The bugs that affect every election: the version with the fix, for each release line, and the effect before it.
const FIXES: [(Version, &str); 3] = [
    (Version(3, 4, 31), REVOKES_LIVE_LEASES),
    (
        Version(3, 5, 3),
        "the data of members can become inconsistent after a crash (the data inconsistency of 3.5.0 to 3.5.2)",
    ),
    (Version(3, 5, 13), REVOKES_LIVE_LEASES),
];
/// The bugs that matter only where etcd authentication restricts who may write.
const AUTH_FIXES: [(Version, &str); 3] = [
    (Version(3, 4, 42), SKIPS_NESTED_PERMISSIONS),
    (Version(3, 5, 28), SKIPS_NESTED_PERMISSIONS),
    (Version(3, 6, 9), SKIPS_NESTED_PERMISSIONS),
];
const SKIPS_NESTED_PERMISSIONS: &str = "permissions are not checked for operations that are nested in a \
                                        transaction, so that any user with a login can delete entries";
const REVOKES_LIVE_LEASES: &str = "a member whose disk or processor stalls can revoke live leases, so that there are \
                                   two leaders until the first one is notified (etcd-io/etcd#15247)";

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
struct Version(u32, u32, u32);

impl Version {
    fn parse(text: &str) -> Option<Self> {
        let mut numbers = text.split(['.', '-', '+']).map(str::parse);
        let mut next = || numbers.next()?.ok();
        Some(Self(next()?, next()?, next()?))
    }
}

/// The known bugs of an etcd version, and what to do about them. `uses_login` adds the bugs of authentication.
pub(crate) fn known_bugs(version: &str, uses_login: bool) -> Option<(String, String)> {
    let version = Version::parse(version)?;
    if version < Version(3, 4, 0) {
        let advice = "update it: elections are tested with 3.4 and 3.5".to_owned();
        return Some(("it is older than 3.4, the oldest version that elections support".to_owned(), advice));
    }
    let auth_fixes = AUTH_FIXES.into_iter().filter(|_| uses_login);
    let missing = FIXES
        .into_iter()
        .chain(auth_fixes)
        .filter(|(fixed, _)| (fixed.0, fixed.1) == (version.0, version.1) && version < *fixed);
    let (fixed_in, effects): (Vec<_>, Vec<_>) = missing.unzip();
    let Version(major, minor, patch) = fixed_in.into_iter().max()?;
    let advice = format!(
        "update it to {major}.{minor}.{patch} or later; give etcd a disk of its own, and send the fencing token with \
         every write"
    );
    Some((effects.join("; "), advice))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn versions_with_known_bugs_are_named() {
        for (version, expected) in [
            ("3.3.27", Some("tested with 3.4 and 3.5")),
            ("3.4.23", Some("3.4.31")),
            ("3.4.31", None),
            ("3.5.1", Some("3.5.13")),
            ("3.5.12", Some("3.5.13")),
            ("3.5.13", None),
            ("3.5.16+dfsg", None),
            ("3.6.0", None),
            ("not a version", None),
        ] {
            let advice = known_bugs(version, false).map(|(_, advice)| advice);
            match expected {
                Some(part) => {
                    assert!(advice.as_ref().is_some_and(|advice| advice.contains(part)), "{version}")
                }
                None => assert_eq!(advice, None, "{version}"),
            }
        }
    }

    #[test]
    fn versions_that_skip_permission_checks_are_named_where_there_is_a_login() {
        for (version, fixed) in [("3.4.41", "3.4.42"), ("3.5.16", "3.5.28"), ("3.6.8", "3.6.9")] {
            let (effect, advice) = known_bugs(version, true).unwrap();
            assert!(
                effect.contains("nested in a transaction") && advice.contains(fixed),
                "{effect} {advice}"
            );
            assert_eq!(known_bugs(version, false), None);
            assert_eq!(known_bugs(fixed, true), None);
        }
        let (effects, advice) = known_bugs("3.4.23", true).unwrap();
        assert!(
            effects.contains("15247") && effects.contains("nested") && advice.contains("3.4.42"),
            "{effects} {advice}"
        );
    }
}
