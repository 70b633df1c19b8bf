//! Bugs of etcd versions that affect elections.

/// A bug, and the version that fixes it in each release line that has it. Other release lines do not have it.
struct Bug {
    fixed_in: &'static [Version],
    /// Whether it matters only where authentication restricts who may write.
    needs_login: bool,
    effect: &'static str,
    /// What to do besides updating.
    advice: Option<&'static str>,
}

/// By etcd's change logs and security advisories.
const BUGS: [Bug; 7] = [
    Bug {
        fixed_in: &[Version(3, 4, 31), Version(3, 5, 13)],
        needs_login: false,
        effect: "a member whose disk or processor stalls can revoke live leases, so that there are two leaders until the \
                 first one is notified; rarer in later versions, but still possible (etcd-io/etcd#15247)",
        advice: Some("give etcd a disk of its own, and send the fencing token with every write"),
    },
    Bug {
        fixed_in: &[Version(3, 5, 3)],
        needs_login: false,
        effect: "the data of members can become inconsistent after a crash (the data inconsistency of 3.5.0 to 3.5.2)",
        advice: None,
    },
    Bug {
        fixed_in: &[Version(3, 4, 36), Version(3, 5, 18)],
        needs_login: false,
        effect: "a watch that begins at an old revision can miss the deletion of an entry, so that a handover is late \
                 (etcd-io/etcd#19179)",
        advice: None,
    },
    Bug {
        fixed_in: &[Version(3, 4, 34), Version(3, 5, 16)],
        needs_login: false,
        effect: "a watch can miss the deletion of an entry whose revision is being compacted, so that a handover is late \
                 (etcd-io/etcd#18089)",
        advice: None,
    },
    Bug {
        fixed_in: &[Version(3, 4, 38), Version(3, 5, 22), Version(3, 6, 2)],
        needs_login: false,
        effect: "a member that catches up from a snapshot sets watches back, which then report old events; tenure \
                 discards them, other clients may not (etcd-io/etcd#20286)",
        advice: None,
    },
    Bug {
        fixed_in: &[Version(3, 4, 42), Version(3, 5, 28), Version(3, 6, 9)],
        needs_login: true,
        effect: "permissions are not checked for operations that are nested in a transaction, so that any user with a \
                 login can delete entries, and leases can be revoked without a login (CVE-2026-33343, CVE-2026-33413)",
        advice: None,
    },
    Bug {
        fixed_in: &[Version(3, 4, 44), Version(3, 5, 30), Version(3, 6, 11)],
        needs_login: true,
        effect: "in a transaction any user with a login can attach a key to a candidate's lease, which etcd then refuses \
                 to the candidate, and read values that it has no permission for (CVE-2026-44283)",
        advice: None,
    },
];

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
    let found = BUGS.iter().filter(|bug| uses_login || !bug.needs_login).filter_map(|bug| {
        let fixed = *bug.fixed_in.iter().find(|fixed| (fixed.0, fixed.1) == (version.0, version.1))?;
        (version < fixed).then_some((fixed, bug))
    });
    let (fixed_in, bugs): (Vec<_>, Vec<_>) = found.unzip();
    let Version(major, minor, patch) = fixed_in.into_iter().max()?;
    let update = format!("update it to {major}.{minor}.{patch} or later");
    let more = bugs.iter().filter_map(|bug| bug.advice.map(str::to_owned));
    let advice = [update].into_iter().chain(more).collect::<Vec<_>>().join("; ");
    let effects: Vec<_> = bugs.iter().map(|bug| bug.effect).collect();
    Some((effects.join("; "), advice))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn versions_with_known_bugs_are_named() {
        for (version, expected) in [
            ("3.3.27", Some("tested with 3.4 and 3.5")),
            ("3.4.23", Some("3.4.38")),
            ("3.4.37", Some("3.4.38")),
            ("3.4.38", None),
            ("3.5.1", Some("3.5.22")),
            ("3.5.16+dfsg", Some("3.5.22")),
            ("3.5.22", None),
            ("3.6.1", Some("3.6.2")),
            ("3.6.2", None),
            ("3.7.0", None),
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
    fn each_bug_is_named_until_its_fix() {
        for (effect, last, fixed) in [
            ("#15247", "3.4.30", "3.4.31"),
            ("#15247", "3.5.12", "3.5.13"),
            ("data inconsistency", "3.5.2", "3.5.3"),
            ("miss the deletion", "3.4.35", "3.4.36"),
            ("miss the deletion", "3.5.17", "3.5.18"),
            ("sets watches back", "3.4.37", "3.4.38"),
            ("sets watches back", "3.5.21", "3.5.22"),
            ("sets watches back", "3.6.1", "3.6.2"),
        ] {
            let names = |version: &str| {
                known_bugs(version, false).is_some_and(|(effects, _)| effects.contains(effect))
            };
            assert!(names(last) && !names(fixed), "{effect} {fixed}");
        }
        let (_, advice) = known_bugs("3.5.12", false).unwrap();
        assert!(
            advice.ends_with("give etcd a disk of its own, and send the fencing token with every write"),
            "{advice}"
        );
    }

    #[test]
    fn versions_that_skip_permission_checks_are_named_where_there_is_a_login() {
        for (effect, last, fixed) in [
            ("CVE-2026-33343, CVE-2026-33413", "3.4.41", "3.4.42"),
            ("CVE-2026-33343, CVE-2026-33413", "3.5.27", "3.5.28"),
            ("CVE-2026-33343, CVE-2026-33413", "3.6.8", "3.6.9"),
            ("CVE-2026-44283", "3.4.43", "3.4.44"),
            ("CVE-2026-44283", "3.5.29", "3.5.30"),
            ("CVE-2026-44283", "3.6.10", "3.6.11"),
        ] {
            let names = |version: &str, uses_login| {
                known_bugs(version, uses_login).is_some_and(|(effects, _)| effects.contains(effect))
            };
            assert!(names(last, true) && !names(fixed, true) && !names(last, false), "{effect} {fixed}");
        }
        let (effects, advice) = known_bugs("3.4.23", true).unwrap();
        assert!(effects.contains("#15247") && advice.contains("3.4.44"), "{effects} {advice}");
        assert_eq!(known_bugs("3.5.30", true), None);
    }
}
