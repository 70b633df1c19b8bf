//! How entries are named, and in which order they stand.

use std::{fmt, str::FromStr};

/// How the entries of an election are named: as our own, or as another library's, to stand in one
/// election with its candidates.
///
/// The first candidate by number leads, whoever made its entry. Another library reads our payload
/// (see [`EntryRequest::payload`](tenure_core::spi::EntryRequest::payload)) as its candidate's id.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub enum Layout {
    /// `c-GUID-NUMBER`. Only ephemeral znodes count as candidates.
    #[default]
    Tenure,
    /// `_c_GUID-latch-NUMBER`, as Curator's `LeaderLatch` has it.
    Curator,
    /// `GUID__lock__NUMBER`, as kazoo's `Election` and `Lock` have it.
    Kazoo,
}

/// The longest number: ZooKeeper's are ten digits, and may one day be nineteen (ZOOKEEPER-4706).
const MOST_DIGITS: usize = 19;
const LEAST_DIGITS: usize = 10;

impl Layout {
    /// What the name of `nonce`'s entry begins with; ZooKeeper adds the number.
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

    /// The number of a candidate's entry; `None` when no candidate has such a name.
    ///
    /// The other libraries look at no more than what stands before the number: Curator's
    /// `LockInternals.standardFixForSorting`, kazoo's `Lock._contenders_re`.
    pub(crate) fn number(self, name: &str) -> Option<u64> {
        match self {
            Self::Tenure => {
                let (guid, number) = name.strip_prefix("c-")?.split_at_checked(32)?;
                let is_hex = guid.bytes().all(|b| matches!(b, b'0'..=b'9' | b'a'..=b'f'));
                number.strip_prefix('-').filter(|_| is_hex).and_then(parse)
            }
            Self::Curator => after(name, "latch-").and_then(parse),
            Self::Kazoo => after(name, "__lock__").and_then(parse),
        }
    }

    /// Whether only an ephemeral znode can be a candidate's. A kazoo lock may be made to outlive its session.
    pub(crate) fn is_ephemeral(self) -> bool {
        self == Self::Tenure
    }
}

fn after<'a>(name: &'a str, mark: &str) -> Option<&'a str> {
    name.rfind(mark).map(|at| &name[at + mark.len()..])
}

/// A number as ZooKeeper writes it, `%010d` of an `int`, so that later ones are larger: one that
/// has run over is negative.
fn parse(text: &str) -> Option<u64> {
    let (sign, digits) = match text.strip_prefix('-') {
        Some(digits) => (-1, digits),
        None => (1, text),
    };
    let least = if sign < 0 { LEAST_DIGITS - 1 } else { LEAST_DIGITS };
    if !(least..=MOST_DIGITS).contains(&digits.len()) || !digits.bytes().all(|b| b.is_ascii_digit()) {
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
    fn names_are_as_the_other_libraries_have_them() {
        let nonce = 0x1234_5678_9abc_def0_1122_3344_5566_7788;
        assert_eq!(Layout::Tenure.prefix(nonce), "c-123456789abcdef01122334455667788-");
        assert_eq!(Layout::Curator.prefix(nonce), "_c_12345678-9abc-def0-1122-334455667788-latch-");
        assert_eq!(Layout::Kazoo.prefix(nonce), "123456789abcdef01122334455667788__lock__");
    }

    #[test]
    fn strangers_are_no_candidates() {
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

    /// Hazard Z8: numbers are compared as numbers, also once they have run over.
    #[test]
    fn later_numbers_are_larger() {
        let name = |number: &str| format!("{}{number}", Layout::Tenure.prefix(1));
        let in_order = ["0000000009", "0000000010", "2147483647", "-2147483648", "-000000001"];
        let numbers: Vec<_> =
            in_order.iter().map(|number| Layout::Tenure.number(&name(number)).unwrap()).collect();
        assert!(numbers.is_sorted_by(|a, b| a < b), "{numbers:?}");
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
