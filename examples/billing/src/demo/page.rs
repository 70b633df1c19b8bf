//! The HTML page of a run: who led when, what was charged, and what struck.

use std::fmt::Write;

use super::{
    scenario::FaultKind,
    summary::{Fault, Summary},
};
use crate::payment::Outcome;

const WIDTH: f64 = 1000.0;
const LEFT: f64 = 90.0;
const LANE: f64 = 30.0;
/// The height of the charges' chart, and where the lanes begin.
const CHART: f64 = 90.0;
const LANES: f64 = CHART + 40.0;
/// Into how many slices of time charges are counted.
const SLICES: usize = 180;

const STYLE: &str = "
:root { color-scheme: light dark; --ink: #1d2733; --faint: #8794a3; --line: #d9e0e7; --back: #fff; --lead: #2f7d5b;
  --charge: #3b74b9; --kill: #c0392b; --pause: #b9770e; }
@media (prefers-color-scheme: dark) { :root { --ink: #e6ebf0; --faint: #8794a3; --line: #34404d; --back: #151b22;
  --lead: #4fb286; --charge: #6ea3e0; --kill: #ef6a5a; --pause: #e0a33e; } }
body { font: 15px/1.5 system-ui, sans-serif; color: var(--ink); background: var(--back); max-width: 1040px;
  margin: 2rem auto; padding: 0 1rem; }
h1 { font-size: 1.4rem; margin: 0 } h2 { font-size: 1.05rem; margin: 2rem 0 .5rem } p { margin: .3rem 0 }
.faint { color: var(--faint) } .good { color: var(--lead) } .bad { color: var(--kill); white-space: pre-wrap }
table { border-collapse: collapse } td, th { padding: .2rem 1.2rem .2rem 0; text-align: left;
  border-bottom: 1px solid var(--line) } td.n { text-align: right; font-variant-numeric: tabular-nums }
svg { width: 100%; height: auto } svg text { font: 12px system-ui, sans-serif; fill: var(--faint) }
.axis { stroke: var(--line) } .lead { fill: var(--lead) } .charge { fill: var(--charge) }
.kill { stroke: var(--kill); fill: var(--kill) } .pause { fill: var(--pause) } .stale { fill: var(--pause) }
.dup { fill: var(--kill) } .down { fill: var(--line) }
";

/// The page; it needs nothing from elsewhere.
pub(crate) fn render(summary: &Summary) -> String {
    let verdict = match summary.violations.as_slice() {
        [] => "<p class=good>The books are right: every renewal charged once, nobody twice.</p>".to_owned(),
        wrong => format!("<p class=bad>WRONG: {}</p>", escape(&wrong.join("\n"))),
    };
    format!(
        "<!doctype html>\n<html lang=en><meta charset=utf-8><meta name=viewport content='width=device-width'>\n\
         <title>billing demo, seed {seed}</title>\n<style>{STYLE}</style>\n\
         <h1>billing demo</h1>\n<p class=faint>{servers} servers on {store}, seed {seed}, {seconds:.1} s</p>\n{verdict}\n\
         <h2>Who led when</h2>\n{timeline}\n{legend}\n<h2>The books</h2>\n{counts}\n<h2>The faults</h2>\n{faults}\n</html>\n",
        seed = summary.seed,
        servers = summary.servers,
        store = escape(&summary.store),
        seconds = summary.seconds(),
        timeline = timeline(summary),
        legend = LEGEND,
        counts = counts(summary),
        faults = faults(summary),
    )
}

const LEGEND: &str = "<p class=faint>Above: charges made (blue), duplicates refused (red), stale tokens refused (ochre). \
    Below, one lane per server: green while it leads, ✕ killed and grey while it is down, ochre while it is stopped. \
    Hover for details.</p>";

/// Where a moment is drawn.
struct Scale {
    begun: i64,
    span: f64,
}

impl Scale {
    fn x(&self, at: i64) -> f64 {
        LEFT + ((at - self.begun) as f64 / self.span).clamp(0.0, 1.0) * (WIDTH - LEFT - 10.0)
    }
}

fn timeline(summary: &Summary) -> String {
    let scale = Scale { begun: summary.begun, span: ((summary.ended - summary.begun) as f64).max(1.0) };
    let height = LANES + f64::from(summary.servers) * LANE + 30.0;
    let mut svg = format!("<svg viewBox='0 0 {WIDTH} {height}' role=img aria-label='who led when'>\n");
    axis(&mut svg, &scale, height);
    charges(&mut svg, summary, &scale);
    for number in 1..=summary.servers {
        let _ = writeln!(svg, "<text x=0 y={}>server-{number}</text>", lane(number) + 15.0);
    }
    for fault in &summary.faults {
        absence(&mut svg, fault, &scale);
    }
    for (n, term) in summary.terms.iter().enumerate() {
        let next = summary.terms.get(n + 1).map_or(summary.ended, |next| next.claimed_at);
        let killed = summary.faults.iter().find(|f| {
            f.struck.kind == FaultKind::Kill && f.struck.victim == term.leader && f.struck.token == term.token
        });
        let end = killed.map_or(next, |fault| fault.struck.at);
        let title = format!("{} led for {} ms with token {}", term.leader, end - term.claimed_at, term.token);
        bar(&mut svg, "lead", &term.leader, (scale.x(term.claimed_at), scale.x(end)), 8.0, &title);
    }
    for fault in &summary.faults {
        strike(&mut svg, fault, &scale);
    }
    svg + "</svg>"
}

fn axis(svg: &mut String, scale: &Scale, height: f64) {
    let step = [1.0, 2.0, 5.0, 10.0, 30.0, 60.0, 300.0]
        .into_iter()
        .find(|step| scale.span / 1000.0 / step <= 15.0)
        .unwrap_or(1800.0);
    let mut second = 0.0;
    while second * 1000.0 <= scale.span {
        let x = scale.x(scale.begun + (second * 1000.0) as i64);
        let _ = writeln!(
            svg,
            "<line class=axis x1={x:.1} x2={x:.1} y1=0 y2={:.0} /><text x={x:.1} y={:.0}>{second} s</text>",
            height - 22.0,
            height - 6.0
        );
        second += step;
    }
}

fn charges(svg: &mut String, summary: &Summary, scale: &Scale) {
    let mut slices = [[0usize; 3]; SLICES];
    for entry in &summary.ledger {
        let part = (entry.received_at - scale.begun) as f64 / scale.span;
        let slice = ((part * SLICES as f64) as usize).min(SLICES - 1);
        slices[slice][match entry.outcome {
            Outcome::Charged => 0,
            Outcome::RefusedDuplicate => 1,
            Outcome::RefusedStale => 2,
        }] += 1;
    }
    let most = slices.iter().map(|slice| slice.iter().sum::<usize>()).max().unwrap_or(0).max(1) as f64;
    let width = (WIDTH - LEFT - 10.0) / SLICES as f64;
    for (n, slice) in slices.iter().enumerate() {
        let mut y = CHART;
        for (count, class) in slice.iter().zip(["charge", "dup", "stale"]).filter(|(count, _)| **count > 0) {
            // A single refusal must be seen beside a hundred charges.
            let tall = (*count as f64 / most * CHART).max(2.0);
            y -= tall;
            let x = LEFT + n as f64 * width;
            let _ = writeln!(
                svg,
                "<rect class={class} x={x:.1} y={y:.1} width={:.1} height={tall:.1}><title>{count}</title></rect>",
                width - 0.8
            );
        }
    }
    let per_second = most * SLICES as f64 / (scale.span / 1000.0);
    let _ = writeln!(svg, "<text x=0 y=12>{per_second:.0} / s</text><text x=0 y={CHART}>charges</text>");
}

/// The time for which a server was down, or stopped.
fn absence(svg: &mut String, fault: &Fault, scale: &Scale) {
    let struck = &fault.struck;
    let Some(back_at) = struck.back_at.filter(|_| struck.kind == FaultKind::Kill) else { return };
    let title = format!("{} was down for {} ms", struck.victim, back_at - struck.at);
    bar(svg, "down", &struck.victim, (scale.x(struck.at), scale.x(back_at)), 14.0, &title);
}

fn strike(svg: &mut String, fault: &Fault, scale: &Scale) {
    let struck = &fault.struck;
    let title = format!(
        "{} of {}; nobody charged for {}",
        struck.kind.as_str(),
        struck.victim,
        fault.gap_ms.map_or("an unknown time".to_owned(), |gap| format!("{gap} ms"))
    );
    let x = scale.x(struck.at);
    match struck.kind {
        FaultKind::Kill => {
            let y = lane(number_of(&struck.victim)) + 11.0;
            let _ = writeln!(
                svg,
                "<path class=kill stroke-width=2.5 d='M{:.1} {:.1}l8 8m0 -8l-8 8'><title>{}</title></path>",
                x - 4.0,
                y - 4.0,
                escape(&title)
            );
        }
        FaultKind::Pause => {
            let end = scale.x(struck.back_at.unwrap_or(struck.at));
            bar(svg, "pause", &struck.victim, (x, end), 14.0, &title);
        }
    }
}

fn bar(svg: &mut String, class: &str, server: &str, (from, to): (f64, f64), inset: f64, title: &str) {
    let (y, tall) = (lane(number_of(server)) + inset / 2.0 - 2.0, LANE - inset);
    let _ = writeln!(
        svg,
        "<rect class={class} rx=2 x={from:.1} y={y:.1} width={:.1} height={tall:.1}><title>{}</title></rect>",
        (to - from).max(1.5),
        escape(title)
    );
}

fn lane(number: u32) -> f64 {
    LANES + f64::from(number.saturating_sub(1)) * LANE
}

/// `server-3.2` is the third server's second life.
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
            let struck = &fault.struck;
            format!(
                "<tr><td class=n>{:.1} s<td>{}<td>{}<td>{}<td class=n>{}\n",
                (struck.at - summary.begun) as f64 / 1000.0,
                struck.kind.as_str(),
                escape(&struck.victim),
                escape(struck.next.as_ref().map_or("the same", |(_, next)| next)),
                fault.gap_ms.map_or("unknown".to_owned(), |gap| format!("{gap} ms")),
            )
        })
        .collect();
    format!("<table><tr><th>at<th>fault<th>leader<th>then<th>nobody charged for\n{rows}</table>")
}

fn escape(text: &str) -> String {
    text.replace('&', "&amp;")
        .replace('<', "&lt;")
        .replace('>', "&gt;")
        .replace('"', "&quot;")
        .replace('\'', "&#39;")
}
