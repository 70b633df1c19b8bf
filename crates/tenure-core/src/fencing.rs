//! Fencing tokens, and the check by which a protected resource refuses a stale leader.

use std::{
    fmt,
    num::{NonZeroU64, ParseIntError},
    str::FromStr,
    sync::atomic::{AtomicU64, Ordering},
};

use serde::{Deserialize, Serialize};
use thiserror::Error;

/// A number that is strictly greater for every later term of the same election.
///
/// Send it with every write. A resource that refuses a token lower than the highest it has seen (see [`Fence`]) never accepts
/// a write of a stale leader, whatever happened to that leader's clock, network or process.
///
/// Tokens of different elections, or of different stores, are not comparable.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(transparent)]
pub struct FencingToken(NonZeroU64);

/// Text that is not a fencing token.
#[derive(Clone, Debug, Error, PartialEq, Eq)]
#[error("{given:?} is not a fencing token: it must be a decimal number from 1 to 18446744073709551615")]
pub struct ParseTokenError {
    given: String,
    #[source]
    source: Option<ParseIntError>,
}

impl FencingToken {
    /// The name of the HTTP header that contains a token.
    pub const HEADER: &'static str = "Fencing-Token";

    /// A token with the number that a store assigned; `None` for zero, which is never assigned.
    pub const fn new(number: u64) -> Option<Self> {
        match NonZeroU64::new(number) {
            Some(n) => Some(Self(n)),
            None => None,
        }
    }

    /// The number, for a database column or a message.
    pub const fn get(self) -> u64 {
        self.0.get()
    }
}

impl fmt::Display for FencingToken {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

impl FromStr for FencingToken {
    type Err = ParseTokenError;
    fn from_str(s: &str) -> Result<Self, Self::Err> {
        let fail = |source| ParseTokenError { given: s.chars().take(40).collect(), source };
        if !s.bytes().all(|b| b.is_ascii_digit()) {
            return Err(fail(None));
        }
        s.parse().map(Self).map_err(|e| fail(Some(e)))
    }
}

/// The highest fencing token seen so far. Admits a token unless a higher one was admitted before.
///
/// This is the in-memory form, for a resource that is one process. A resource that outlives its process stores the highest
/// token with its data, in the same transaction as the write that the token protects.
///
/// ```
/// use tenure_core::{Fence, FencingToken};
/// let fence = Fence::new();
/// let old = FencingToken::new(7).unwrap();
/// let new = FencingToken::new(9).unwrap();
/// assert!(fence.admit(old).is_ok());
/// assert!(fence.admit(new).is_ok());
/// assert_eq!(fence.admit(old).unwrap_err().highest, new);
/// ```
#[derive(Debug, Default)]
pub struct Fence(AtomicU64);

/// A [`Fence`] has admitted a higher token.
#[derive(Clone, Copy, Debug, Error, PartialEq, Eq)]
#[error("stale fencing token {given}: {highest} has been seen")]
pub struct StaleToken {
    /// The token that was refused.
    pub given: FencingToken,
    /// The highest token admitted so far.
    pub highest: FencingToken,
}

impl Fence {
    /// A fence that has admitted no token.
    pub const fn new() -> Self {
        Self(AtomicU64::new(0))
    }

    /// A fence that continues from the highest token seen by an earlier process.
    pub const fn starting_at(highest: FencingToken) -> Self {
        Self(AtomicU64::new(highest.get()))
    }

    /// Admits `token`, or refuses it.
    ///
    /// # Errors
    /// [`StaleToken`] when a higher token has been admitted.
    pub fn admit(&self, token: FencingToken) -> Result<(), StaleToken> {
        let highest = self.0.fetch_max(token.get(), Ordering::AcqRel);
        match FencingToken::new(highest) {
            Some(highest) if highest > token => Err(StaleToken { given: token, highest }),
            _ => Ok(()),
        }
    }

    /// The highest token admitted so far.
    pub fn highest(&self) -> Option<FencingToken> {
        FencingToken::new(self.0.load(Ordering::Acquire))
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn text_that_is_not_a_token_is_refused() {
        for bad in ["", "0", "-1", "+1", "1.0", " 1", "0x1", "18446744073709551616"] {
            let error = bad.parse::<FencingToken>().unwrap_err().to_string();
            assert!(error.contains("from 1 to 18446744073709551615"), "{error}");
        }
    }

    proptest! {
        #[test]
        fn display_and_parse_are_inverse(n in 1u64..) {
            let token = FencingToken::new(n).unwrap();
            prop_assert_eq!(token.to_string().parse::<FencingToken>().unwrap(), token);
            let json = serde_json::to_string(&token).unwrap();
            prop_assert_eq!(serde_json::from_str::<FencingToken>(&json).unwrap(), token);
        }

        /// Promise S2: in whatever order tokens arrive, the admitted ones never decrease.
        #[test]
        fn admitted_tokens_never_decrease(tokens in proptest::collection::vec(1u64..50, 1..100)) {
            let fence = Fence::new();
            let mut highest = 0;
            for n in tokens {
                let admitted = fence.admit(FencingToken::new(n).unwrap()).is_ok();
                prop_assert_eq!(admitted, n >= highest);
                highest = highest.max(n);
                prop_assert_eq!(fence.highest().unwrap().get(), highest);
            }
        }
    }
}
