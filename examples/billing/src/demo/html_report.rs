//! The HTML report of a run: the leaders, the charges and the faults over time.

use std::fmt::Write;

use super::{
    scenario::FaultKind,
    summary::{Fault, Summary},
};
use crate::payment_api::Outcome;

const WIDTH: f64 = 1000.0;
/// The left margin, for the servers' names.
const LEFT_MARGIN: f64 = 100.0;
/// The right margin, for half of the last time label.
const RIGHT_MARGIN: f64 = 20.0;
/// The height of a server's lane.
const LANE_HEIGHT: f64 = 30.0;
/// The height of the bar chart of charges.
const CHART_HEIGHT: f64 = 90.0;
/// Where the lanes begin.
const LANES_TOP: f64 = CHART_HEIGHT + 40.0;
/// The number of bars in the chart.
const TIME_SLICES: usize = 180;

const STYLE: &str = "
:root { color-scheme: light dark; --ink: #1d2733; --faint: #586575; --line: #d9e0e7; --back: #fff; --lead: #2f7d5b;
  --charge: #3b74b9; --kill: #b3261e; --pause: #a86a00; --dup: #8e5bb5; --stale: #b3261e; --down: #7d8a97; }
@media (prefers-color-scheme: dark) { :root { --ink: #e6ebf0; --faint: #9aa7b5; --line: #2b3641; --back: #151b22;
  --lead: #3f9c74; --charge: #6ea3e0; --kill: #ff7a6b; --pause: #e0a33e; --dup: #b98be0; --stale: #ff7a6b;
  --down: #7d8a97; } }
body { font: 15px/1.5 system-ui, sans-serif; color: var(--ink); background: var(--back); max-width: 1040px;
  margin: 2rem auto; padding: 0 1rem; }
h1 { font-size: 1.4rem; margin: 0 } h2 { font-size: 1.05rem; margin: 2rem 0 .5rem } p { margin: .3rem 0 }
.faint { color: var(--faint); overflow-wrap: anywhere }
.good, .bad { font-size: 1.1rem; font-weight: 600; margin: .8rem 0 }
.good { color: var(--lead) } .bad { color: var(--kill); white-space: pre-wrap }
table { border-collapse: collapse } td, th { padding: .2rem 1.6rem .2rem 0; text-align: left;
  border-bottom: 1px solid var(--line) } .n { text-align: right; font-variant-numeric: tabular-nums }
svg { width: 100%; height: auto } svg text { font: 12px system-ui, sans-serif; fill: var(--faint) }
.axis { stroke: var(--line) } .second { text-anchor: middle } .lead { fill: var(--lead) } .down { fill: var(--down) }
.charge { fill: var(--charge) } .dup { fill: var(--dup) } .stale { fill: var(--stale) } .pause { fill: var(--pause) }
.kill { stroke: var(--kill); stroke-width: 2.5 } .rim { stroke: var(--back); stroke-width: 6 }
.chart { overflow-x: auto; margin: 0 } .chart svg { min-width: 1000px } [tabindex]:focus-visible { outline: 2px solid var(--charge) }
#shown { min-height: 1.5em } @media (max-width: 500px) { td, th { padding-right: .6rem } }
.legend { display: flex; flex-wrap: wrap; gap: .1rem 1.4rem; color: var(--faint) }
.legend svg { width: 14px; height: 14px; margin-right: .4rem; vertical-align: -2px }
";

/// Shows what a bar stands for below the chart, when it is focused, touched or pointed at.
const SCRIPT: &str = "
for (const event of ['focusin', 'click', 'pointerover']) document.addEventListener(event, ({target}) => {
  const bar = target.closest('svg [tabindex]');
  if (bar) document.getElementById('shown').textContent = bar.getAttribute('aria-label');
});
";

/// Renders the page. It loads nothing from elsewhere.
pub(crate) fn render(summary: &Summary) -> String {
    let verdict = match summary.violations.as_slice() {
        [] => "<p class=good>OK: every renewal was charged exactly once.</p>".to_owned(),
        violations => format!("<p class=bad>WRONG: {}</p>", escape(&violations.join("\n"))),
    };
    format!(
        "<!doctype html>\n<html lang=en><meta charset=utf-8><meta name=viewport content='width=device-width'>\n\
         <title>billing demo, seed {seed}</title>\n<style>{STYLE}</style>\n\
         <h1>billing demo</h1>\n<p class=faint>{servers} servers on {store}, seed {seed}, {seconds:.1} s</p>\n{verdict}\n\
         <h2>Leaders over time</h2>\n{timeline}\n{legend}\n{words}\n<h2>Result</h2>\n{counts}\n<h2>Faults</h2>\n{faults}\n<script>{SCRIPT}</script>\n</html>\n",
        seed = summary.seed,
        servers = summary.servers,
        store = escape(&summary.store),
        seconds = summary.seconds(),
        timeline = timeline(summary),
        legend = legend(),
        words = in_words(summary),
        counts = counts(summary),
        faults = faults(summary),
    )
}

/// The legend: one row for the chart of charges, and one for the lanes.
fn legend() -> String {
    let rows = [
        &[
            ("charge", "charged"),
            ("dup", "refused: charged before a crash"),
            ("stale", "refused: sent by a former leader"),
        ][..],
        &[
            ("lead", "leads"),
            ("kill", "killed"),
            ("down", "down until it is replaced"),
            ("pause", "stopped (SIGSTOP)"),
        ],
    ];
    let mut legend = String::new();
    for row in rows {
        legend += "<div class=legend>";
        for (class, meaning) in row {
            let sign = match *class {
                "kill" => cross((7.0, 7.0)),
                class => format!("<rect class={class} rx=2 width=14 height=14 />"),
            };
            let _ = write!(legend, "<span><svg viewBox='0 0 14 14'>{sign}</svg>{meaning}</span>");
        }
        legend += "</div>\n";
    }
    legend
}

/// Maps times to x coordinates. Times are in milliseconds.
struct TimeScale {
    begun_at: i64,
    span: f64,
}

impl TimeScale {
    fn x(&self, at: i64) -> f64 {
        LEFT_MARGIN
            + ((at - self.begun_at) as f64 / self.span).clamp(0.0, 1.0) * (WIDTH - LEFT_MARGIN - RIGHT_MARGIN)
    }
}

fn timeline(summary: &Summary) -> String {
    let scale = TimeScale {
        begun_at: summary.begun_at,
        span: ((summary.ended_at - summary.begun_at) as f64).max(1.0),
    };
    let height = LANES_TOP + f64::from(summary.servers) * LANE_HEIGHT + 30.0;
    let mut svg = format!(
        "<figure class=chart tabindex=0 role=region aria-label='leaders over time, scrolls sideways'>\n\
         <svg viewBox='0 0 {WIDTH} {height}' role=group aria-label='leaders over time'>\n"
    );
    axis(&mut svg, &scale, height);
    charges(&mut svg, summary, &scale);
    for number in 1..=summary.servers {
        let _ = writeln!(svg, "<text x=0 y={}>server-{number}</text>", lane(number) + 17.0);
    }
    for fault in &summary.faults {
        downtime(&mut svg, fault, &scale);
    }
    for (n, term) in summary.terms.iter().enumerate() {
        let (end, _) = end_of_term(summary, n);
        let title = format!("{} led for {} ms with token {}", term.leader, end - term.claimed_at, term.token);
        bar(&mut svg, "lead", &term.leader, (scale.x(term.claimed_at), scale.x(end)), 8.0, &title);
    }
    for fault in &summary.faults {
        fault_mark(&mut svg, fault, &scale);
    }
    svg + "</svg>\n</figure>\n<p id=shown class=faint role=status>Select a bar to see what it stands for.</p>"
}

/// The end of a term, and the fault that ended it.
fn end_of_term(summary: &Summary, n: usize) -> (i64, Option<&Fault>) {
    let term = &summary.terms[n];
    let next = summary.terms.get(n + 1).map_or(summary.ended_at, |next| next.claimed_at);
    let killed = summary.faults.iter().find(|fault| {
        let injected = &fault.injected;
        injected.kind == FaultKind::Kill && injected.victim == term.leader && injected.token == term.token
    });
    (killed.map_or(next, |fault| fault.injected.at), killed)
}

/// The chart as a list, for those who do not see it.
fn in_words(summary: &Summary) -> String {
    let second = |at: i64| (at - summary.begun_at) as f64 / 1000.0;
    let mut items = String::new();
    for (n, term) in summary.terms.iter().enumerate() {
        let (end, killed) = end_of_term(summary, n);
        let _ = writeln!(
            items,
            "<li>{} led from {:.1} s to {:.1} s with token {}{}",
            escape(&term.leader),
            second(term.claimed_at),
            second(end),
            term.token,
            if killed.is_some() { ", until it was killed" } else { "" },
        );
    }
    format!("<details><summary>The terms in words</summary>\n<ol>\n{items}</ol>\n</details>")
}

fn axis(svg: &mut String, scale: &TimeScale, height: f64) {
    let step = [1.0, 2.0, 5.0, 10.0, 30.0, 60.0, 300.0]
        .into_iter()
        .find(|step| scale.span / 1000.0 / step <= 15.0)
        .unwrap_or(1800.0);
    let mut second = 0.0;
    while second * 1000.0 <= scale.span {
        let x = scale.x(scale.begun_at + (second * 1000.0) as i64);
        let _ = writeln!(
            svg,
            "<line class=axis x1={x:.1} x2={x:.1} y1=0 y2={:.0} /><text class=second x={x:.1} y={:.0}>{second} s</text>",
            height - 22.0,
            height - 6.0
        );
        second += step;
    }
}

fn charges(svg: &mut String, summary: &Summary, scale: &TimeScale) {
    let mut slices = [[0usize; 3]; TIME_SLICES];
    for entry in &summary.ledger {
        let part = (entry.received_at - scale.begun_at) as f64 / scale.span;
        let slice = ((part * TIME_SLICES as f64) as usize).min(TIME_SLICES - 1);
        slices[slice][match entry.outcome {
            Outcome::Charged => 0,
            Outcome::RefusedDuplicate => 1,
            Outcome::RefusedStale => 2,
        }] += 1;
    }
    let most = slices.iter().map(|slice| slice.iter().sum::<usize>()).max().unwrap_or(0).max(1) as f64;
    let width = (WIDTH - LEFT_MARGIN - RIGHT_MARGIN) / TIME_SLICES as f64;
    for (n, slice) in slices.iter().enumerate() {
        let mut y = CHART_HEIGHT;
        for (count, class) in slice.iter().zip(["charge", "dup", "stale"]).filter(|(count, _)| **count > 0) {
            // At least two pixels, so that a single refusal is visible beside a hundred charges.
            let bar_height = (*count as f64 / most * CHART_HEIGHT).max(2.0);
            y -= bar_height;
            let x = LEFT_MARGIN + n as f64 * width;
            let _ = writeln!(
                svg,
                "<rect class={class} x={x:.1} y={y:.1} width={:.1} height={bar_height:.1}><title>{count}</title></rect>",
                width - 0.8
            );
        }
    }
    let per_second = most * TIME_SLICES as f64 / (scale.span / 1000.0);
    let _ = writeln!(
        svg,
        "<line class=axis x1={LEFT_MARGIN} x2={} y1={CHART_HEIGHT} y2={CHART_HEIGHT} />\
         <text x=0 y=12>charges,</text><text x=0 y=28>up to {per_second:.0} / s</text>",
        WIDTH - RIGHT_MARGIN
    );
}

/// Draws the time for which a killed server was down.
fn downtime(svg: &mut String, fault: &Fault, scale: &TimeScale) {
    let injected = &fault.injected;
    let Some(recovered_at) = injected.recovered_at.filter(|_| injected.kind == FaultKind::Kill) else {
        return;
    };
    let title = format!("{} was down for {} ms", injected.victim, recovered_at - injected.at);
    bar(svg, "down", &injected.victim, (scale.x(injected.at), scale.x(recovered_at)), 14.0, &title);
}

/// Draws a kill as a cross, and a pause as a bar.
fn fault_mark(svg: &mut String, fault: &Fault, scale: &TimeScale) {
    let injected = &fault.injected;
    let title = format!(
        "{} of {}; no charges for {}",
        injected.kind.as_str(),
        injected.victim,
        fault.gap_ms.map_or("an unknown time".to_owned(), |gap| format!("{gap} ms"))
    );
    let x = scale.x(injected.at);
    match injected.kind {
        FaultKind::Kill => {
            let y = lane(number_of(&injected.victim)) + 13.0;
            let title = escape(&title);
            let _ = writeln!(
                svg,
                "<g tabindex=0 role=img aria-label='{title}'>{}<title>{title}</title></g>",
                cross((x, y))
            );
        }
        FaultKind::Pause => {
            let end = scale.x(injected.recovered_at.unwrap_or(injected.at));
            bar(svg, "pause", &injected.victim, (x, end), 14.0, &title);
        }
    }
}

fn cross((x, y): (f64, f64)) -> String {
    let lines = format!("M{:.1} {:.1}l8 8m0 -8l-8 8", x - 4.0, y - 4.0);
    format!("<path class=rim d='{lines}' /><path class=kill d='{lines}' />")
}

fn bar(svg: &mut String, class: &str, server: &str, (from, to): (f64, f64), inset: f64, title: &str) {
    let (y, bar_height) = (lane(number_of(server)) + inset / 2.0 - 2.0, LANE_HEIGHT - inset);
    let title = escape(title);
    let _ = writeln!(
        svg,
        "<rect class={class} tabindex=0 role=img aria-label='{title}' rx=2 x={from:.1} y={y:.1} width={:.1} \
         height={bar_height:.1}><title>{title}</title></rect>",
        (to - from).max(1.5),
    );
}

fn lane(number: u32) -> f64 {
    LANES_TOP + f64::from(number.saturating_sub(1)) * LANE_HEIGHT
}

/// The number of a server: 3 for `server-3.2`, which is its second generation.
fn number_of(server: &str) -> u32 {
    server.trim_start_matches("server-").split('.').next().and_then(|n| n.parse().ok()).unwrap_or(0)
}

fn counts(summary: &Summary) -> String {
    let rows: String = summary
        .counts()
        .into_iter()
        .map(|(count, what)| format!("<tr><td class=n>{count}<td>{}\n", escape(what)))
        .collect();
    format!("<table>{rows}</table>")
}

fn faults(summary: &Summary) -> String {
    let rows: String = summary
        .faults
        .iter()
        .map(|fault| {
            let injected = &fault.injected;
            format!(
                "<tr><td class=n>{:.1} s<td>{}<td>{}<td>{}<td class=n>{}\n",
                (injected.at - summary.begun_at) as f64 / 1000.0,
                injected.kind.as_str(),
                escape(&injected.victim),
                escape(injected.next_leader.as_ref().map_or("the same", |(_, next)| next)),
                fault.gap_ms.map_or("unknown".to_owned(), |gap| format!("{gap} ms")),
            )
        })
        .collect();
    format!(
        "<table><tr><th class=n>at<th>fault<th>leader<th>next leader<th class=n>no charges for\n{rows}</table>"
    )
}

fn escape(text: &str) -> String {
    text.replace('&', "&amp;")
        .replace('<', "&lt;")
        .replace('>', "&gt;")
        .replace('"', "&quot;")
        .replace('\'', "&#39;")
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The relative luminance of `#rgb` or `#rrggbb`, by WCAG 2.
    fn luminance(color: &str) -> f64 {
        let digits: Vec<u32> = color.chars().skip(1).map(|digit| digit.to_digit(16).unwrap()).collect();
        let channels: Vec<u32> = match digits.len() {
            3 => digits.iter().map(|digit| digit * 17).collect(),
            _ => digits.chunks(2).map(|pair| pair[0] * 16 + pair[1]).collect(),
        };
        let linear = |channel: u32| match f64::from(channel) / 255.0 {
            c if c <= 0.04045 => c / 12.92,
            c => ((c + 0.055) / 1.055).powf(2.4),
        };
        0.2126 * linear(channels[0]) + 0.7152 * linear(channels[1]) + 0.0722 * linear(channels[2])
    }

    fn contrast(a: &str, b: &str) -> f64 {
        let (a, b) = (luminance(a), luminance(b));
        (a.max(b) + 0.05) / (a.min(b) + 0.05)
    }

    /// Case 61: text has a contrast of 4.5 to its background and every mark one of 3 (WCAG 2, level AA), light and dark.
    #[test]
    fn colours_have_enough_contrast() {
        let (light, dark) = STYLE.split_once("@media").unwrap();
        for scheme in [light, dark] {
            let color = |name: &str| {
                let (_, rest) =
                    scheme.split_once(&format!("--{name}: ")).unwrap_or_else(|| panic!("no {name}"));
                rest.split(';').next().unwrap().to_owned()
            };
            let back = color("back");
            for (name, least) in [
                ("ink", 4.5),
                ("faint", 4.5),
                ("lead", 3.0),
                ("charge", 3.0),
                ("kill", 4.5),
                ("pause", 3.0),
                ("dup", 3.0),
                ("stale", 3.0),
                ("down", 3.0),
            ] {
                let contrast = contrast(&color(name), &back);
                assert!(contrast >= least, "{name} on {back}: {contrast:.2}");
            }
        }
    }
}
