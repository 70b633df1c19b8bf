//! The names of elections and the ids of candidates, checked when they are constructed.

use std::{fmt, str::FromStr, sync::Arc};

use thiserror::Error;

use crate::random;

/// The name of an election: 1 to 255 bytes of `[A-Za-z0-9._-]`, not `.` or `..`.
///
/// The alphabet contains no separator of any store, so that no name can leave its prefix or collide with another one.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct ElectionName(Arc<str>);

/// The id of a candidate: 1 to 255 visible ASCII characters.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct CandidateId(Arc<str>);

/// The name of an election is illegal.
#[derive(Clone, Debug, Error, PartialEq, Eq)]
#[error(
    "illegal election name {given:?}: {reason}; allowed are 1 to 255 bytes of [A-Za-z0-9._-], except \".\" and \"..\""
)]
pub struct InvalidElection {
    given: String,
    reason: &'static str,
}

/// The id of a candidate is illegal.
#[derive(Clone, Debug, Error, PartialEq, Eq)]
#[error("illegal candidate id {given:?}: {reason}; allowed are 1 to 255 visible ASCII characters")]
pub struct InvalidCandidate {
    given: String,
    reason: &'static str,
}

/// The largest size of an election's name and of a candidate's id, in bytes.
pub(crate) const MAX_NAME_BYTES: usize = 255;

/// The part of an illegal name that its error message repeats.
fn excerpt(name: &str) -> String {
    if name.len() <= 64 {
        return name.to_owned();
    }
    let mut head: String = name.chars().take(64).collect();
    head.push('…');
    head
}

impl ElectionName {
    /// An election name, if `name` is legal.
    ///
    /// # Errors
    /// [`InvalidElection`], which says what is wrong and what is allowed.
    pub fn new(name: &str) -> Result<Self, InvalidElection> {
        let reason = if name.is_empty() {
            "it is empty"
        } else if name.len() > MAX_NAME_BYTES {
            "it is too long"
        } else if name == "." || name == ".." {
            "it is a relative path"
        } else if !name.bytes().all(|b| b.is_ascii_alphanumeric() || matches!(b, b'.' | b'_' | b'-')) {
            "it has a character that is not allowed"
        } else {
            return Ok(Self(name.into()));
        };
        Err(InvalidElection { given: excerpt(name), reason })
    }

    /// The name as text.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl CandidateId {
    /// A candidate id, if `id` is legal.
    ///
    /// # Errors
    /// [`InvalidCandidate`], which says what is wrong and what is allowed.
    pub fn new(id: &str) -> Result<Self, InvalidCandidate> {
        let reason = if id.is_empty() {
            "it is empty"
        } else if id.len() > MAX_NAME_BYTES {
            "it is too long"
        } else if !id.bytes().all(|b| b.is_ascii_graphic()) {
            "it has a character that is not allowed"
        } else {
            return Ok(Self(id.into()));
        };
        Err(InvalidCandidate { given: excerpt(id), reason })
    }

    /// An id that no other candidate has: host name, process id and 64 random bits.
    ///
    /// A host name alone is shared by all processes of the host, and by all containers whose host name was not set.
    pub fn unique() -> Self {
        let host: String = gethostname::gethostname()
            .to_string_lossy()
            .chars()
            .filter(char::is_ascii_graphic)
            .take(200)
            .collect();
        let number = random::number() >> 64;
        Self(format!("{host}-{}-{number:016x}", std::process::id()).into())
    }

    /// The id as text.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for ElectionName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl fmt::Display for CandidateId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl FromStr for ElectionName {
    type Err = InvalidElection;
    fn from_str(s: &str) -> Result<Self, Self::Err> {
        Self::new(s)
    }
}

impl FromStr for CandidateId {
    type Err = InvalidCandidate;
    fn from_str(s: &str) -> Result<Self, Self::Err> {
        Self::new(s)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Hazard G18: an election's name can neither contain a separator nor be empty.
    #[test]
    fn a_name_cannot_leave_its_prefix() {
        for bad in ["", ".", "..", "a/b", "a b", "ä", "a\0", "a\n", "../x"] {
            let error = ElectionName::new(bad).unwrap_err().to_string();
            assert!(error.contains("[A-Za-z0-9._-]"), "{error}");
        }
        assert!(ElectionName::new(&"x".repeat(256)).is_err());
        for good in ["a", "billing", "a.b", "..a", "A_-9", &"x".repeat(255)] {
            assert_eq!(ElectionName::new(good).unwrap().as_str(), good);
        }
    }

    /// Hazard G17: two candidates of one process differ, as do two processes of one host.
    #[test]
    fn default_ids_are_unique() {
        let (a, b) = (CandidateId::unique(), CandidateId::unique());
        assert_ne!(a, b);
        assert!(a.as_str().contains(&format!("-{}-", std::process::id())));
        CandidateId::new(a.as_str()).unwrap();
    }
}
