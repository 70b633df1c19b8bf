//! The contents of a resume file.
//!
//! ```text
//! tenure resume 1
//! boot 8cadbbf8-d427-475c-a2d3-73ebe1473317
//! file 64769 131
//! session 00f1d2c3b4a59687 694d71ddacfda227 cdf818194e3a8c32
//! token billing 8123
//! sum 9d0c1f5f6e0f3ab1
//! ```
//!
//! `file` has the device and the inode of the file itself, a `session` its nonce, id and cluster, a `token` an election and the
//! highest fencing token seen there. Lines of other kinds are skipped. What follows the sum is left over from longer contents.

use std::fmt::Write as _;

use percent_encoding::{NON_ALPHANUMERIC, percent_decode_str, utf8_percent_encode};

use super::Contents;
use crate::{ElectionName, FencingToken, spi::SessionRecord};

const HEADER: &str = "tenure resume 1";

/// Where a record was written: a copy of the file is elsewhere, and after a restart of the machine it is another boot.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Origin {
    pub(super) boot: String,
    pub(super) device: String,
    pub(super) inode: String,
}

pub(super) fn encode(origin: &Origin, contents: &Contents) -> String {
    let mut text = format!("{HEADER}\nboot {}\nfile {} {}\n", origin.boot, origin.device, origin.inode);
    let escaped = |text: &str| utf8_percent_encode(text, NON_ALPHANUMERIC).to_string();
    for SessionRecord { session, cluster, nonce } in &contents.sessions {
        // Writing to a string cannot fail.
        let _ = writeln!(text, "session {nonce:016x} {} {}", escaped(session), escaped(cluster));
    }
    for (election, token) in &contents.tokens {
        let _ = writeln!(text, "token {election} {token}");
    }
    let sum = checksum(text.as_bytes());
    let _ = writeln!(text, "sum {sum:016x}");
    text
}

/// The origin and the contents in `text`; `None` when it was not written as a whole, or by another version.
pub(super) fn decode(text: &str) -> Option<(Origin, Contents)> {
    let end = text.find("\nsum ")? + 1;
    let sum = text[end..].strip_prefix("sum ")?.get(..16)?;
    if u64::from_str_radix(sum, 16) != Ok(checksum(&text.as_bytes()[..end])) {
        return None;
    }
    let mut lines = text[..end].lines();
    if lines.next()? != HEADER {
        return None;
    }
    let boot = lines.next()?.strip_prefix("boot ")?.to_owned();
    let (device, inode) = lines.next()?.strip_prefix("file ")?.split_once(' ')?;
    let origin = Origin { boot, device: device.to_owned(), inode: inode.to_owned() };
    let mut contents = Contents::default();
    for line in lines {
        match line.split_once(' ')? {
            ("session", words) => contents.sessions.push(session(words)?),
            ("token", words) => contents.tokens.push(token(words)?),
            _ => {}
        }
    }
    Some((origin, contents))
}

fn token(words: &str) -> Option<(ElectionName, FencingToken)> {
    let (election, token) = words.split_once(' ')?;
    Some((ElectionName::new(election).ok()?, token.parse().ok()?))
}

fn session(words: &str) -> Option<SessionRecord> {
    let mut words = words.split(' ');
    let nonce = u64::from_str_radix(words.next()?, 16).ok()?;
    let unescaped = |word: &str| Some(percent_decode_str(word).decode_utf8().ok()?.into_owned());
    Some(SessionRecord::new(unescaped(words.next()?)?, unescaped(words.next()?)?, nonce))
}

/// FNV-1a. It recognizes a write that was cut off; it is no protection from somebody who may write to the file.
fn checksum(bytes: &[u8]) -> u64 {
    bytes
        .iter()
        .fold(0xcbf2_9ce4_8422_2325, |sum, byte| (sum ^ u64::from(*byte)).wrapping_mul(0x100_0000_01b3))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn origin() -> Origin {
        Origin { boot: "b-1".into(), device: "7".into(), inode: "8".into() }
    }

    proptest! {
        #[test]
        fn decode_inverts_encode(
            sessions in proptest::collection::vec((".*", ".*", any::<u64>()), 0..4),
            tokens in proptest::collection::vec(("[A-Za-z0-9_-]{1,20}", 1_u64..), 0..4),
            tail in ".*",
        ) {
            let sessions = sessions.iter().map(|(id, cluster, nonce)| SessionRecord::new(id, cluster, *nonce)).collect();
            let token = |(name, number): &(String, u64)| Some((ElectionName::new(name).ok()?, FencingToken::new(*number)?));
            let contents = Contents { sessions, tokens: tokens.iter().filter_map(token).collect() };
            let text = encode(&origin(), &contents) + &tail;
            prop_assert_eq!(decode(&text), Some((origin(), contents)));
        }

        /// Hazard G39: a write that was cut off is not taken for a record.
        #[test]
        fn a_torn_write_is_no_record(cut in 0..200_usize) {
            let with = |sessions: &[SessionRecord]| {
                encode(&origin(), &Contents { sessions: sessions.to_vec(), ..Contents::default() })
            };
            let before = with(&[SessionRecord::new("1", "c", 1), SessionRecord::new("22", "c", 2)]);
            let after = with(&[SessionRecord::new("333", "c", 3)]);
            let cut = cut.min(after.len());
            let torn = format!("{}{}", &after[..cut], &before[cut..]);
            let decoded = decode(&torn);
            prop_assert!(decoded.is_none() || decoded == decode(&before) || decoded == decode(&after), "{torn}");
        }

        /// A later version may add lines of other kinds.
        #[test]
        fn lines_of_other_kinds_are_skipped(kind in "[a-z]{1,8}", words in "[a-z0-9]*") {
            prop_assume!(!["session", "token", "sum"].contains(&kind.as_str()));
            let text = encode(&origin(), &Contents::default());
            let text = format!("{}{kind} {words}\n", &text[..text.find("sum ").unwrap()]);
            let text = format!("{text}sum {:016x}\n", checksum(text.as_bytes()));
            prop_assert_eq!(decode(&text), Some((origin(), Contents::default())));
        }

        #[test]
        fn decode_does_not_panic(text in ".*") {
            decode(&text);
            decode(&format!("{HEADER}\n{text}"));
        }
    }
}
