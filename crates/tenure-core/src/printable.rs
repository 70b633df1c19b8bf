//! Others' text, made fit to be printed: the one place where that is done.
//!
//! What a store or a stranger has written may hold line breaks, a terminal's escape sequences, marks that
//! turn the direction of writing, and megabytes. None of that belongs in a log, an error or on a terminal.

/// `text` with whatever is not visible written out (`\n`, `\u{1b}`), and cut short after about `most` bytes.
pub fn printable(text: &str, most: usize) -> String {
    let mut shown = String::with_capacity(text.len().min(most));
    for c in text.chars() {
        if shown.len() >= most {
            shown.push('…');
            break;
        }
        match c {
            // These are escaped in programs' texts only.
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
    fn what_is_not_visible_is_written_out() {
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
        fn it_is_short_and_on_one_line(text in "(?s).{0,200}", most in 0_usize..50) {
            let shown = printable(&text, most);
            prop_assert!(shown.len() <= most + 20, "{shown}");
            prop_assert!(!shown.chars().any(char::is_control));
        }
    }
}
