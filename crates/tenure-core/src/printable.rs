//! Escapes and truncates text of other programs before it is printed.
//!
//! Text that a store or another client has written may contain line breaks, terminal escape sequences and bidirectional
//! control characters, and may be megabytes long. It must not reach a log, an error or a terminal as it is.

/// `text` with invisible characters escaped (`\n`, `\u{1b}`), truncated after about `max_bytes` bytes.
pub fn printable(text: &str, max_bytes: usize) -> String {
    let mut shown = String::with_capacity(text.len().min(max_bytes));
    for c in text.chars() {
        if shown.len() >= max_bytes {
            shown.push('…');
            break;
        }
        match c {
            // `escape_debug` escapes these, which is needed in source code only.
            '"' | '\'' | '\\' => shown.push(c),
            c => shown.extend(c.escape_debug()),
        }
    }
    shown
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn invisible_characters_are_escaped() {
        for (text, shown) in [
            ("plain \"text\" with 'ä' and C:\\", "plain \"text\" with 'ä' and C:\\"),
            ("a\nERROR b", "a\\nERROR b"),
            ("\u{1b}[31mred\u{7}", "\\u{1b}[31mred\\u{7}"),
            ("\u{202e}gnp", "\\u{202e}gnp"),
            ("\u{2028}\u{85}\0", "\\u{2028}\\u{85}\\0"),
        ] {
            assert_eq!(printable(text, 100), shown);
        }
    }

    proptest! {
        #[test]
        fn the_text_is_short_and_has_one_line(text in "(?s).{0,200}", max_bytes in 0_usize..50) {
            let shown = printable(&text, max_bytes);
            prop_assert!(shown.len() <= max_bytes + 20, "{shown}");
            prop_assert!(!shown.chars().any(char::is_control));
        }
    }
}
