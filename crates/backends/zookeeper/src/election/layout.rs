//! The names of entries, and their order.

use std::{fmt, str::FromStr};

/// The names of an election's entries: tenure's own, or those of another library, to take part in one election with its
/// candidates.
///
/// The candidate with the lowest number leads, whichever library created its entry. Another library reads our payload
/// (see [`EntryRequest::payload`](tenure_core::spi::EntryRequest::payload)) as the candidate's id.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub enum Layout {
    /// `c-GUID-NUMBER`. Only ephemeral znodes count as candidates.
    #[default]
    Tenure,
    /// `_c_GUID-latch-NUMBER`, as Curator's `LeaderLatch` names them.
    Curator,
    /// `GUID__lock__NUMBER`, as kazoo's `Election` and `Lock` name them.
    Kazoo,
}

/// ZooKeeper's numbers have ten digits, and may one day have nineteen (ZOOKEEPER-4706).
const MAX_NUMBER_DIGITS: usize = 19;
const MIN_NUMBER_DIGITS: usize = 10;

impl Layout {
    /// The prefix of the name of `nonce`'s entry. ZooKeeper appends the number.
    pub(crate) fn prefix(self, nonce: u128) -> String {
        let hex = format!("{nonce:032x}");
        match self {
            Self::Tenure => format!("c-{hex}-"),
            Self::Curator => {
                let (a, b, c, d, e) = (&hex[..8], &hex[8..12], &hex[12..16], &hex[16..20], &hex[20..]);
                format!("_c_{a}-{b}-{c}-{d}-{e}-latch-")
            }
            Self::Kazoo => format!("{hex}__lock__"),
        }
    }

    /// The nonce in the name of an entry that this library created.
    pub(crate) fn nonce(self, name: &str) -> Option<u128> {
        let guid = match self {
            Self::Tenure => name.strip_prefix("c-")?.get(..32)?.to_owned(),
            Self::Curator => name.strip_prefix("_c_")?.get(..36)?.replace('-', ""),
            Self::Kazoo => name.get(..32)?.to_owned(),
        };
        let nonce = u128::from_str_radix(&guid, 16).ok()?;
        name.starts_with(&self.prefix(nonce)).then_some(nonce)
    }

    /// The number of a candidate's entry; `None` if no candidate's entry can have this name.
    ///
    /// The other libraries check only the text just before the number: Curator's
    /// `LockInternals.standardFixForSorting`, kazoo's `Lock._contenders_re`.
    pub(crate) fn number(self, name: &str) -> Option<u64> {
        match self {
            Self::Tenure => {
                let (guid, number) = name.strip_prefix("c-")?.split_at_checked(32)?;
                let is_hex = guid.bytes().all(|b| matches!(b, b'0'..=b'9' | b'a'..=b'f'));
                number.strip_prefix('-').filter(|_| is_hex).and_then(parse_number)
            }
            Self::Curator => text_after(name, "latch-").and_then(parse_number),
            Self::Kazoo => text_after(name, "__lock__").and_then(parse_number),
        }
    }

    /// Whether only an ephemeral znode can be a candidate's entry. A kazoo lock can be created so that it outlives its
    /// session.
    pub(crate) fn requires_ephemeral(self) -> bool {
        self == Self::Tenure
    }
}

fn text_after<'a>(name: &'a str, mark: &str) -> Option<&'a str> {
    name.rfind(mark).map(|at| &name[at + mark.len()..])
}

/// Parses a number as ZooKeeper formats it, `%010d` of an `int`. The result rises also after the `int` has overflowed,
/// when ZooKeeper's number is negative.
fn parse_number(text: &str) -> Option<u64> {
    let (sign, digits) = match text.strip_prefix('-') {
        Some(digits) => (-1, digits),
        None => (1, text),
    };
    let min_digits = if sign < 0 { MIN_NUMBER_DIGITS - 1 } else { MIN_NUMBER_DIGITS };
    if !(min_digits..=MAX_NUMBER_DIGITS).contains(&digits.len())
        || !digits.bytes().all(|b| b.is_ascii_digit())
    {
        return None;
    }
    let number = sign * digits.parse::<i64>().ok()?;
    match number {
        0.. => u64::try_from(number).ok(),
        _ => i32::try_from(number).ok().map(|number| u64::from(number.cast_unsigned())),
    }
}

impl fmt::Display for Layout {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Tenure => "tenure",
            Self::Curator => "curator",
            Self::Kazoo => "kazoo",
        })
    }
}

impl FromStr for Layout {
    type Err = &'static str;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        match text {
            "tenure" => Ok(Self::Tenure),
            "curator" => Ok(Self::Curator),
            "kazoo" => Ok(Self::Kazoo),
            _ => Err("is not one of tenure, curator, kazoo"),
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const ALL: [Layout; 3] = [Layout::Tenure, Layout::Curator, Layout::Kazoo];

    #[test]
    fn names_are_those_of_the_other_libraries() {
        let nonce = 0x1234_5678_9abc_def0_1122_3344_5566_7788;
        assert_eq!(Layout::Tenure.prefix(nonce), "c-123456789abcdef01122334455667788-");
        assert_eq!(Layout::Curator.prefix(nonce), "_c_12345678-9abc-def0-1122-334455667788-latch-");
        assert_eq!(Layout::Kazoo.prefix(nonce), "123456789abcdef01122334455667788__lock__");
    }

    #[test]
    fn foreign_names_are_no_candidates() {
        for (layout, name) in [
            (Layout::Tenure, "notes"),
            (Layout::Tenure, "c-123456789abcdef01122334455667788-"),
            (Layout::Tenure, "c-123456789abcdef01122334455667788-1"),
            (Layout::Tenure, "c-123456789ABCDEF01122334455667788-0000000001"),
            (Layout::Tenure, "c-123456789abcdef0112233445566778-0000000001"),
            (Layout::Tenure, "c-é23456789abcdef0112233445566778-0000000001"),
            (Layout::Tenure, "c-123456789abcdef01122334455667788-000000000x"),
            (Layout::Tenure, "c-123456789abcdef01122334455667788-00000000000000000001"),
            (Layout::Tenure, "c-123456789abcdef01122334455667788-9999999999999999999"),
            (Layout::Curator, "_c_12345678-9abc-def0-1122-334455667788-lock-0000000001"),
            (Layout::Curator, "latch-"),
            (Layout::Kazoo, "123456789abcdef01122334455667788__rlock__0000000001"),
            (Layout::Kazoo, "__lock__+000000001"),
        ] {
            assert_eq!(layout.number(name), None, "{layout} {name}");
        }
        assert_eq!(Layout::Curator.number("latch-0000000007"), Some(7));
        assert_eq!(Layout::Kazoo.number("x__lock__0000000007"), Some(7));
    }

    /// Hazard Z8: numbers are compared as numbers, also after an overflow.
    #[test]
    fn later_numbers_are_larger() {
        let name = |number: &str| format!("{}{number}", Layout::Tenure.prefix(1));
        let in_order = ["0000000009", "0000000010", "2147483647", "-2147483648", "-000000001"];
        let numbers: Vec<_> =
            in_order.iter().map(|number| Layout::Tenure.number(&name(number)).unwrap()).collect();
        assert!(numbers.is_sorted_by(|a, b| a < b), "{numbers:?}");
    }

    /// Hazard G39: the nonce of an entry can be read from its name, and from no other name.
    #[test]
    fn a_name_has_the_nonce_of_its_request() {
        let nonce = 0x1234_5678_9abc_def0_1122_3344_5566_7788;
        for layout in ALL {
            let name = format!("{}0000000001", layout.prefix(nonce));
            assert_eq!(layout.nonce(&name), Some(nonce));
            for other in [
                "",
                "notes",
                &name.to_uppercase(),
                &name[1..],
                "c-+23456789abcdef01122334455667788-0000000001",
            ] {
                assert_eq!(layout.nonce(other), None, "{other}");
            }
        }
    }

    proptest! {
        #[test]
        fn a_name_gives_back_its_number(nonce: u128, number in 0..i32::MAX) {
            for layout in ALL {
                let name = format!("{}{number:010}", layout.prefix(nonce));
                prop_assert_eq!(layout.number(&name), Some(u64::from(number.unsigned_abs())));
                prop_assert_eq!(layout.to_string().parse(), Ok(layout));
            }
        }

        #[test]
        fn no_name_panics(name in ".{0,80}", tail in "(latch-|__lock__|c-)?-?[0-9]{0,22}") {
            for layout in ALL {
                let _ = layout.number(&name);
                let _ = layout.number(&format!("{name}{tail}"));
            }
        }
    }
}
