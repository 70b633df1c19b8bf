//! A table that fits a width: columns are shortened, and left out.

use crate::text::{padded, shortened, width};

/// The space between two columns.
const GAP: usize = 2;
/// A column that can be shortened is not made narrower than this before others are left out.
const MIN_WIDTH: usize = 16;

/// A column.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Column {
    pub(crate) header: &'static str,
    /// Numbers are aligned to the right.
    pub(crate) is_number: bool,
    /// Whether its texts can be shortened.
    pub(crate) can_shrink: bool,
    /// Columns with lower numbers are left out first. `None` stays.
    pub(crate) importance: Option<u8>,
}

/// The header and the rows, each at most `columns` wide where that is possible.
pub(crate) fn table<const N: usize>(
    layout: [Column; N],
    rows: &[[String; N]],
    columns: usize,
) -> (String, Vec<String>) {
    let widths = widths(layout, rows, columns);
    let line = |cells: &dyn Fn(usize) -> String| {
        let cells = widths.iter().map(|(column, width)| {
            padded(&shortened(&cells(*column), *width), *width, layout[*column].is_number)
        });
        cells.collect::<Vec<_>>().join(&" ".repeat(GAP)).trim_end().to_owned()
    };
    let header = line(&|column| layout[column].header.to_owned());
    (header, rows.iter().map(|row| line(&|column| row[column].clone())).collect())
}

/// The columns that are shown, and their widths.
fn widths<const N: usize>(layout: [Column; N], rows: &[[String; N]], columns: usize) -> Vec<(usize, usize)> {
    let natural: [usize; N] = std::array::from_fn(|column| {
        rows.iter().map(|row| width(&row[column])).fold(layout[column].header.len(), usize::max)
    });
    let least = |column: usize| match layout[column].can_shrink {
        true => natural[column].min(MIN_WIDTH),
        false => natural[column],
    };
    let mut shown: Vec<usize> = (0..N).collect();
    let needed = |shown: &[usize]| {
        shown.iter().map(|column| least(*column)).sum::<usize>() + GAP * shown.len().saturating_sub(1)
    };
    while needed(&shown) > columns {
        let droppable = shown.iter().filter(|column| layout[**column].importance.is_some());
        let Some(dropped) = droppable.min_by_key(|column| layout[**column].importance).copied() else {
            break;
        };
        shown.retain(|column| *column != dropped);
    }
    let mut widths: Vec<_> = shown.iter().map(|column| (*column, least(*column))).collect();
    // Names share what is left, or what is missing.
    let mut spare = columns.saturating_sub(needed(&shown));
    let mut missing = needed(&shown).saturating_sub(columns);
    let mut flexible: Vec<_> = (0..widths.len()).filter(|at| layout[widths[*at].0].can_shrink).collect();
    flexible.sort_by_key(|at| natural[widths[*at].0]);
    for (done, at) in flexible.iter().enumerate() {
        let others = flexible.len() - done;
        let (column, width) = &mut widths[*at];
        let more = (natural[*column] - *width).min(spare / others);
        let less = missing.div_ceil(others).min(width.saturating_sub(1));
        *width = *width + more - less;
        (spare, missing) = (spare - more, missing - less);
    }
    widths
}

#[cfg(test)]
mod tests {
    use super::*;

    const LAYOUT: [Column; 3] = [
        Column { header: "NAME", is_number: false, can_shrink: true, importance: None },
        Column { header: "TOKEN", is_number: true, can_shrink: false, importance: Some(2) },
        Column { header: "SESSION", is_number: false, can_shrink: false, importance: Some(1) },
    ];

    fn shown(columns: usize) -> Vec<String> {
        let row = ["host-4711-0123456789abcdef", "17", "7587a3b1"].map(str::to_owned);
        let (header, rows) = table(LAYOUT, &[row], columns);
        [header].into_iter().chain(rows).collect()
    }

    #[test]
    fn columns_are_shortened_and_left_out() {
        assert_eq!(
            shown(80),
            ["NAME                        TOKEN  SESSION", "host-4711-0123456789abcdef     17  7587a3b1"]
        );
        assert_eq!(
            shown(36),
            ["NAME                 TOKEN  SESSION", "host-4711-01…abcdef     17  7587a3b1"]
        );
        assert_eq!(shown(30), ["NAME                     TOKEN", "host-4711-01234…9abcdef     17"]);
        assert_eq!(shown(12), ["NAME", "host-47…cdef"]);
        assert_eq!(shown(1), ["…", "…"]);
    }

    #[test]
    fn no_row_is_wider_than_the_terminal() {
        for columns in 1..60 {
            assert!(shown(columns).iter().all(|row| width(row) <= columns), "{columns}");
        }
    }
}
