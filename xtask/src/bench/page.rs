//! `docs/reference/benchmarks.md` and its plot, from a full run.

use std::{fmt::Write as _, fs};

use anyhow::{Context, Result};
use serde_json::Value;

const PAGE: &str = "docs/reference/benchmarks.md";
const PLOT: &str = "docs/reference/benchmarks.svg";
/// What the page holds between these is replaced.
const BEGIN: &str = "<!-- the table: written by cargo xtask bench -->";
const END: &str = "<!-- the end of the table -->";

/// Replaces the rows of the stores that were measured, and draws the plot. Rows of peers stay if none was measured on their store.
///
/// # Errors
/// When the page is not there, or has no place for the table.
pub(super) fn write(rows: &[Value]) -> Result<()> {
    let page = fs::read_to_string(PAGE)
        .with_context(|| format!("cannot read {PAGE}; run this at the top of the tree"))?;
    let (before, rest) = page.split_once(BEGIN).with_context(|| format!("{PAGE} has no {BEGIN}"))?;
    let (tables, after) = rest.split_once(END).with_context(|| format!("{PAGE} has no {END}"))?;
    let (peers, ours): (Vec<&Value>, Vec<&Value>) = rows.iter().partition(|row| row["peer"].is_string());
    let (mut old, mut old_beside) = (Vec::new(), Vec::new());
    for line in tables.lines().filter(|line| line.starts_with("| ") && !line.starts_with("| store |")) {
        if is_beside(line) { &mut old_beside } else { &mut old }.push(line);
    }
    let table = merge(TABLE, &old, &table(&ours));
    let beside = merge(BESIDE, &old_beside, &beside(&ours, &peers));
    fs::write(PAGE, format!("{before}{BEGIN}\n\n{table}\n{beside}\n{END}{after}"))?;
    plot_again()
}

const TABLE: &str = "| store | measure | rounds | p50 (p99) | floor, p50 (p99) | ratio | target | met |\n|---|---|---|---|---|---|---|---|\n";
const BESIDE: &str = "| store | measure | tenure, p50 (p99) | other | other, p50 (p99) | other / tenure |\n|---|---|---|---|---|---|\n";

/// Whether this row is of the second table.
fn is_beside(row: &str) -> bool {
    row.matches('|').count() == BESIDE.lines().next().unwrap_or_default().matches('|').count()
}

fn store_of(row: &str) -> &str {
    row.split('|').nth(1).unwrap_or_default().trim()
}

/// A table of the rows of all stores: those that were measured, or else the old ones.
fn merge(head: &str, old: &[&str], measured: &str) -> String {
    let measured: Vec<&str> = measured.lines().collect();
    let mut stores: Vec<&str> = Vec::new();
    for row in old.iter().chain(&measured) {
        if !stores.contains(&store_of(row)) {
            stores.push(store_of(row));
        }
    }
    let mut table = head.to_owned();
    for store in stores {
        let is_measured = measured.iter().any(|row| store_of(row) == store);
        let rows = if is_measured { &measured[..] } else { old };
        for row in rows.iter().filter(|row| store_of(row) == store) {
            table += row;
            table.push('\n');
        }
    }
    table
}

fn number(row: &Value, name: &str) -> Option<f64> {
    row[name].as_f64()
}

/// The rows of the first table.
fn table(rows: &[&Value]) -> String {
    let mut table = String::new();
    for row in rows {
        let text = |name: &str| row[name].as_str().unwrap_or_default();
        let pair = |a: &str, b: &str| match (number(row, a), number(row, b)) {
            (Some(a), Some(b)) => format!("{a:.0} ({b:.0})"),
            _ => "–".to_owned(),
        };
        let ratio = number(row, "ratio_p50").map_or_else(|| "–".to_owned(), |ratio| format!("{ratio:.2}"));
        let met = if row["met"] == true { "yes" } else { "**no**" };
        // Writing to a string does not fail.
        let _ = writeln!(
            table,
            "| {} | {} | {} | {} | {} | {ratio} | {} | {} |",
            text("store"),
            text("measure"),
            row["rounds"],
            pair("p50_us", "p99_us"),
            pair("floor_p50_us", "floor_p99_us"),
            text("target"),
            if text("target") == "none" { "–" } else { met },
        );
    }
    table
}

/// The rows of the second table: other libraries beside tenure, in the same run on the same servers.
fn beside(ours: &[&Value], peers: &[&Value]) -> String {
    let mut table = String::new();
    let pair = |row: &Value| match (number(row, "p50_us"), number(row, "p99_us")) {
        (Some(a), Some(b)) => format!("{a:.0} ({b:.0})"),
        _ => "–".to_owned(),
    };
    for peer in peers {
        // Not all of them hold ten thousand elections; what one costs is what is compared.
        let kind = |row: &Value| {
            let name = row["measure"].as_str().unwrap_or_default();
            name.chars().filter(|c| !c.is_ascii_digit() || !name.starts_with("many")).collect::<String>()
        };
        let same = ours.iter().find(|row| row["store"] == peer["store"] && kind(row) == kind(peer));
        let ratio = same
            .and_then(|same| Some(number(peer, "p50_us")? / number(same, "p50_us")?))
            .map_or_else(|| "–".to_owned(), |ratio| format!("{ratio:.1}"));
        let _ = writeln!(
            table,
            "| {} | {} | {} | {} | {} | {ratio} |",
            peer["store"].as_str().unwrap_or_default(),
            peer["measure"].as_str().unwrap_or_default(),
            same.map_or_else(|| "–".to_owned(), |same| pair(same)),
            peer["peer"].as_str().unwrap_or_default(),
            pair(peer),
        );
    }
    table
}

/// Draws the plot again, from the table in the page.
///
/// # Errors
/// When the page is not there.
pub(super) fn plot_again() -> Result<()> {
    let page = fs::read_to_string(PAGE)
        .with_context(|| format!("cannot read {PAGE}; run this at the top of the tree"))?;
    let table = page.split_once(BEGIN).and_then(|(_, rest)| rest.split_once(END));
    let (table, _) = table.with_context(|| format!("{PAGE} has no {BEGIN}"))?;
    fs::write(PLOT, plot(&bars(table)))?;
    Ok(())
}

/// A ratio to the floor.
#[derive(Debug, PartialEq)]
struct Bar {
    name: String,
    ratio: f64,
    is_met: bool,
}

/// The ratios in the first table.
fn bars(table: &str) -> Vec<Bar> {
    let rows = table.lines().map(|line| line.split('|').map(str::trim).collect::<Vec<_>>());
    let bar = |row: Vec<&str>| match row[..] {
        ["", store, measure, _, _, _, ratio, _, met, ""] => Some(Bar {
            name: format!("{store}: {measure}"),
            ratio: ratio.parse().ok()?,
            is_met: met != "**no**",
        }),
        _ => None,
    };
    rows.filter_map(bar).collect()
}

/// The greatest width of a character of the plot's text, in its units.
const CHARACTER: f64 = 7.0;

/// The ratios as horizontal bars. Met and missed targets differ in colour, pattern and words.
fn plot(bars: &[Bar]) -> String {
    let longest = bars.iter().map(|bar| bar.name.chars().count()).max().unwrap_or_default();
    let (left, wide, high, top) = (longest as f64 * CHARACTER + 16.0, 380.0, 22.0, 70.0);
    let most = bars.iter().map(|bar| bar.ratio).fold(1.0, f64::max);
    let (bottom, width) = (top + high * bars.len() as f64, left + wide + 150.0);
    let mut svg = format!(
        "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 {width} {height}\" width=\"{width}\" height=\"{height}\" \
         font-family=\"sans-serif\" font-size=\"12\" role=\"img\" aria-labelledby=\"title\">\n\
         <title id=\"title\">How many times as long as the raw store operations an election takes</title>\n\
         <defs><pattern id=\"missed\" width=\"6\" height=\"6\" patternUnits=\"userSpaceOnUse\" patternTransform=\"rotate(45)\">\
         <rect width=\"6\" height=\"6\" fill=\"#a8480f\"/><rect width=\"2\" height=\"6\" fill=\"#f3d9c8\"/></pattern></defs>\n\
         <rect width=\"100%\" height=\"100%\" fill=\"white\"/>\n\
         <text x=\"8\" y=\"22\" font-size=\"15\" font-weight=\"bold\">Elections beside the raw store operations (1: equally fast)</text>\n\
         <rect x=\"8\" y=\"36\" width=\"14\" height=\"14\" fill=\"#1b7f5c\"/><text x=\"28\" y=\"47\">target met</text>\
         <rect x=\"118\" y=\"36\" width=\"14\" height=\"14\" fill=\"url(#missed)\"/><text x=\"138\" y=\"47\">target missed</text>\n",
        height = bottom + high * 1.5
    );
    let one = left + wide / most;
    for (at, Bar { name, ratio, is_met }) in bars.iter().enumerate() {
        let (y, long) = (top + high * at as f64, wide * ratio / most);
        let (fill, missed) = if *is_met { ("#1b7f5c", "") } else { ("url(#missed)", ", missed") };
        // Writing to a string does not fail.
        let _ = writeln!(
            svg,
            "<text x=\"{}\" y=\"{}\" text-anchor=\"end\">{name}</text>\
             <rect x=\"{left}\" y=\"{y}\" width=\"{long:.1}\" height=\"14\" fill=\"{fill}\"/>\
             <text x=\"{:.1}\" y=\"{}\">{ratio:.2}{missed}</text>",
            left - 8.0,
            y + 11.0,
            left + long + 5.0,
            y + 11.0
        );
    }
    let _ = writeln!(
        svg,
        "<line x1=\"{one:.1}\" y1=\"{}\" x2=\"{one:.1}\" y2=\"{:.1}\" stroke=\"black\" stroke-dasharray=\"3\"/>\
         <text x=\"{one:.1}\" y=\"{:.1}\" text-anchor=\"middle\">1: the raw operations</text>\n</svg>",
        top - 8.0,
        bottom + 4.0,
        bottom + 20.0
    );
    svg
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    /// Every name has room, and a missed target is said in words as well.
    #[test]
    fn the_plot_is_readable_without_colours() {
        let row = |measure: &str, ratio: f64, met: bool| json!({"store": "etcd", "measure": measure, "rounds": 1, "ratio_p50": ratio, "target": "t", "met": met});
        let long = "churn: requests for a departure and a return, 200 elections of 50 processes";
        let rows = [row(long, 1.34, false), row("handover", 1.1, true)];
        let bars = bars(&table(&rows.iter().collect::<Vec<_>>()));
        let bar = |name: &str, ratio, is_met| Bar { name: format!("etcd: {name}"), ratio, is_met };
        assert_eq!(bars, [bar(long, 1.34, false), bar("handover", 1.1, true)]);
        let svg = plot(&bars);
        assert!(svg.contains(">1.34, missed<") && svg.contains(">1.10<"), "{svg}");
        assert!(
            svg.contains("<title") && svg.contains(">target met<") && svg.contains(">target missed<"),
            "{svg}"
        );
        let ends_at =
            svg.split("<text x=\"").find_map(|text| Some((text, text.split_once(&format!("etcd: {long}"))?)));
        let (text, _) = ends_at.unwrap();
        let right: f64 = text.split('"').next().unwrap().parse().unwrap();
        assert!(right >= format!("etcd: {long}").len() as f64 * CHARACTER, "{right}");
    }

    /// Not all of them hold as many elections; what one costs is what is compared.
    #[test]
    fn a_peer_stands_beside_the_same_measure_of_ours() {
        let ours = [
            json!({"store": "etcd", "measure": "handover, 2 candidates", "p50_us": 10.0, "p99_us": 20.0}),
            json!({"store": "etcd", "measure": "handover, 50 candidates", "p50_us": 40.0, "p99_us": 50.0}),
            json!({"store": "etcd", "measure": "many: lead 10000, each", "p50_us": 5.0, "p99_us": 5.0}),
        ];
        let peers = [
            json!({"peer": "P", "store": "etcd", "measure": "handover, 50 candidates", "p50_us": 80.0, "p99_us": 90.0}),
            json!({"peer": "P", "store": "etcd", "measure": "many: lead 1000, each", "p50_us": 15.0, "p99_us": 15.0}),
            json!({"peer": "P", "store": "zookeeper", "measure": "handover, 2 candidates", "p50_us": 1.0, "p99_us": 1.0}),
        ];
        let table = beside(&ours.iter().collect::<Vec<_>>(), &peers.iter().collect::<Vec<_>>());
        assert_eq!(
            table.lines().collect::<Vec<_>>(),
            [
                "| etcd | handover, 50 candidates | 40 (50) | P | 80 (90) | 2.0 |",
                "| etcd | many: lead 1000, each | 5 (5) | P | 15 (15) | 3.0 |",
                "| zookeeper | handover, 2 candidates | – | P | 1 (1) | – |",
            ]
        );
    }

    /// A run of one store leaves the rows of the others.
    #[test]
    fn the_rows_of_a_store_that_was_measured_are_replaced() {
        let old = ["| etcd | a | 1 |", "| etcd | b | 1 |", "| local | a | 1 |"];
        let merged = merge("head\n", &old, "| postgres | a | 2 |\n| etcd | a | 2 |\n");
        assert_eq!(merged, "head\n| etcd | a | 2 |\n| local | a | 1 |\n| postgres | a | 2 |\n");
        assert_eq!(merge("head\n", &old, ""), format!("head\n{}\n", old.join("\n")));
        assert!(is_beside("| etcd | a | 1 (1) | P | 1 (1) | 1 |"));
        assert!(!is_beside("| etcd | a | 1 | 1 (1) | 1 (1) | 1 | t | yes |"));
    }
}
