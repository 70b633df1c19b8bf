//! The keys of `tenure top`, as terminals send them.

/// A key that does something.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Key {
    Up,
    Down,
    PageUp,
    PageDown,
    Home,
    End,
    Enter,
    Escape,
    /// Shows everything again.
    Redraw,
    Letter(char),
}

/// Whether these bytes may be the beginning of a key's.
pub(crate) fn is_incomplete(bytes: &[u8]) -> bool {
    let Some(at) = bytes.iter().rposition(|byte| *byte == b'\x1b') else { return false };
    match &bytes[at + 1..] {
        [] | [b'[' | b'O'] => true,
        [b'[', parameters @ ..] => parameters.iter().all(|byte| matches!(byte, b'0'..=b'9' | b';')),
        _ => false,
    }
}

/// The keys that were pressed. Others are left out.
pub(crate) fn decode(bytes: &[u8]) -> Vec<Key> {
    let (mut keys, mut rest) = (Vec::new(), bytes);
    while let [first, tail @ ..] = rest {
        rest = tail;
        let key = match first {
            b'\x1b' => match tail {
                [b'[' | b'O', tail @ ..] => {
                    let end = tail.iter().position(|byte| (0x40..=0x7e).contains(byte));
                    let end = end.map_or(tail.len(), |end| end + 1);
                    rest = &tail[end..];
                    sequence(&tail[..end])
                }
                // A key with Alt.
                [_, tail @ ..] => {
                    rest = tail;
                    None
                }
                [] => Some(Key::Escape),
            },
            b'\r' | b'\n' => Some(Key::Enter),
            0x7f | 0x08 => Some(Key::Escape),
            0x0c => Some(Key::Redraw),
            b'k' => Some(Key::Up),
            b'j' => Some(Key::Down),
            byte if byte.is_ascii_graphic() => Some(Key::Letter(char::from(*byte))),
            _ => None,
        };
        keys.extend(key);
    }
    keys
}

fn sequence(bytes: &[u8]) -> Option<Key> {
    Some(match bytes {
        b"A" => Key::Up,
        b"B" => Key::Down,
        b"5~" => Key::PageUp,
        b"6~" => Key::PageDown,
        b"H" | b"1~" | b"7~" => Key::Home,
        b"F" | b"4~" | b"8~" => Key::End,
        _ => return None,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_are_decoded() {
        use Key::{Down, End, Enter, Escape, Home, Letter, PageDown, PageUp, Redraw, Up};
        let cases: [(&[u8], &[Key]); 13] = [
            (b"\x1b[A\x1b[B", &[Up, Down]),
            (b"\x1bOA\x1bOB", &[Up, Down]),
            (b"kj", &[Up, Down]),
            (b"\x1b[5~\x1b[6~", &[PageUp, PageDown]),
            (b"\x1b[H\x1b[F\x1b[1~\x1b[4~", &[Home, End, Home, End]),
            (b"\r\n", &[Enter, Enter]),
            (b"\x1b", &[Escape]),
            (b"\x7f", &[Escape]),
            (b"\x0c", &[Redraw]),
            (b"rfq", &[Letter('r'), Letter('f'), Letter('q')]),
            // F1, Ctrl-right, Alt-x and a character that is not ASCII.
            (b"\x1bOP\x1b[1;5C", &[]),
            (b"\x1bx", &[]),
            ("é".as_bytes(), &[]),
        ];
        for (bytes, keys) in cases {
            assert_eq!(decode(bytes), keys, "{bytes:?}");
        }
    }

    #[test]
    fn a_key_that_arrives_in_parts_is_waited_for() {
        for bytes in [&b"\x1b"[..], b"\x1b[", b"\x1bO", b"\x1b[5", b"q\x1b"] {
            assert!(is_incomplete(bytes), "{bytes:?}");
        }
        for bytes in [&b"q"[..], b"\x1b[A", b"\x1bOA", b"\x1b[5~", b"\x1bq", b""] {
            assert!(!is_incomplete(bytes), "{bytes:?}");
        }
    }
}
