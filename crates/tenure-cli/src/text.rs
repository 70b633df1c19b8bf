//! Text for terminals: escaped, measured in columns, shortened and wrapped.

use std::time::Duration;

use tenure_core::internal::printable;
use unicode_width::{UnicodeWidthChar as _, UnicodeWidthStr as _};

/// The longest text of another process that is shown, in bytes.
const MAX_SHOWN_BYTES: usize = 1024;

/// Text that another process wrote, on one line and without control characters.
pub(crate) fn escaped(text: &str) -> String {
    printable(text, MAX_SHOWN_BYTES)
}

/// How many columns of a terminal the text takes.
pub(crate) fn width(text: &str) -> usize {
    text.width()
}

/// The beginning of `text` that fits into so many columns.
fn head(text: &str, columns: usize) -> &str {
    let mut used = 0;
    let end = text.char_indices().find(|(_, character)| {
        used += character.width().unwrap_or(0);
        used > columns
    });
    &text[..end.map_or(text.len(), |(at, _)| at)]
}

/// The end of `text` that fits into so many columns.
fn tail(text: &str, columns: usize) -> &str {
    let mut used = 0;
    let before = text.char_indices().rev().find(|(_, character)| {
        used += character.width().unwrap_or(0);
        used > columns
    });
    &text[before.map_or(0, |(at, character)| at + character.len_utf8())..]
}

/// Shortens a text to at most `columns`. Its end is left out.
pub(crate) fn clipped(text: &str, columns: usize) -> String {
    if width(text) <= columns {
        return text.to_owned();
    }
    if columns == 0 {
        return String::new();
    }
    format!("{}…", head(text, columns - 1))
}

/// Shortens a name to at most `columns`. A part in the middle is left out: names of one service begin alike, and those of one
/// host end differently.
pub(crate) fn shortened(name: &str, columns: usize) -> String {
    if width(name) <= columns || columns < 8 {
        return clipped(name, columns);
    }
    let end = tail(name, columns / 3);
    format!("{}…{end}", head(name, columns - 1 - width(end)))
}

/// Fills a text up to `columns` with spaces, at its end or its beginning.
pub(crate) fn padded(text: &str, columns: usize, to_the_right: bool) -> String {
    let spaces = " ".repeat(columns.saturating_sub(width(text)));
    if to_the_right { format!("{spaces}{text}") } else { format!("{text}{spaces}") }
}

/// Breaks a text into at most `max_lines` lines, between words where that is possible. What does not fit is left out.
pub(crate) fn wrapped(text: &str, columns: usize, max_lines: usize) -> Vec<String> {
    let (mut lines, mut rest) = (Vec::new(), text.trim());
    while !rest.is_empty() && lines.len() < max_lines && columns > 0 {
        if lines.len() + 1 == max_lines || width(rest) <= columns {
            lines.push(clipped(rest, columns));
            break;
        }
        let line = head(rest, columns);
        // A word that is longer than half a line is broken.
        let end = line.rfind(' ').filter(|end| *end > line.len() / 2 && !rest[line.len()..].starts_with(' '));
        let end = end.unwrap_or(line.len()).max(rest.chars().next().map_or(0, char::len_utf8));
        lines.push(rest[..end].trim_end().to_owned());
        rest = rest[end..].trim_start();
    }
    lines
}

/// A duration in at most two units: `7s`, `3m12s`, `5h04m`, `12d03h`.
pub(crate) fn short_duration(duration: Duration) -> String {
    let seconds = duration.as_secs();
    let (minutes, hours, days) = (seconds / 60, seconds / 3600, seconds / 86_400);
    match (days, hours, minutes) {
        (0, 0, 0) => format!("{seconds}s"),
        (0, 0, _) => format!("{minutes}m{:02}s", seconds % 60),
        (0, _, _) => format!("{hours}h{:02}m", minutes % 60),
        _ => format!("{days}d{:02}h", hours % 24),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_text_fits_its_columns() {
        for (text, columns, fitting) in [
            ("billing", 7, "billing"),
            ("billing", 6, "billi…"),
            ("billing", 1, "…"),
            ("billing", 0, ""),
            ("日本語", 5, "日本…"),
            ("日本語", 4, "日…"),
        ] {
            assert_eq!(clipped(text, columns), fitting, "{text}");
        }
        assert_eq!(shortened("host-4711-0123456789abcdef", 12), "host-47…cdef");
        assert_eq!(shortened("日本語日本語日本語", 12), "日本語…本語");
        assert_eq!(shortened("abcdefghij", 7), "abcdef…");
        for columns in 0..40 {
            for name in ["host-4711-0123456789abcdef", "日本語日本語日本語", "a\u{301}e\u{301}o\u{301}"]
            {
                assert!(width(&shortened(name, columns)) <= columns, "{name} {columns}");
            }
        }
    }

    #[test]
    fn a_text_is_wrapped_between_words() {
        assert_eq!(wrapped("one two three", 7, 5), ["one two", "three"]);
        assert_eq!(wrapped("one two three four", 7, 2), ["one two", "three …"]);
        assert_eq!(wrapped("abcdefghijkl", 5, 3), ["abcde", "fghij", "kl"]);
        assert_eq!(wrapped("日本", 1, 3), ["日", "本"], "no endless loop");
        assert_eq!(wrapped("", 5, 3), [""; 0]);
        assert_eq!(wrapped("a", 0, 3), [""; 0]);
    }

    #[test]
    fn a_duration_has_at_most_two_units() {
        for (seconds, text) in [(0, "0s"), (59, "59s"), (60, "1m00s"), (3599, "59m59s"), (3661, "1h01m")] {
            assert_eq!(short_duration(Duration::from_secs(seconds)), text);
        }
        assert_eq!(short_duration(Duration::from_secs(90_000)), "1d01h");
    }
}
