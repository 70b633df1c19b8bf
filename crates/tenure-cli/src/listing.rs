//! `tenure elections`.

use std::{
    io::{self, IsTerminal as _},
    time::SystemTime,
};

use anstyle::Style;
use anyhow::Result;
use serde::Serialize;
use tenure::{Candidate, Config};

use crate::{
    args::Elections,
    elections::{self, Election, Limits, Reading},
    messages,
    output::{CandidateJson, print_line},
    store::Store,
    text::{escaped, padded, short_duration, width},
    waiting::{self, Limit},
};

/// The output of `--json`, on one line.
#[derive(Debug, Serialize)]
struct ListingJson<'a> {
    time: String,
    store: &'a str,
    prefix: &'a str,
    total: usize,
    truncated: bool,
    elections: Vec<ElectionJson<'a>>,
}

/// An election as a JSON object.
#[derive(Debug, Serialize)]
pub(crate) struct ElectionJson<'a> {
    election: &'a str,
    leader: Option<CandidateJson<'a>>,
    candidate_count: usize,
    /// In queue order, the leader first.
    candidates: Vec<CandidateJson<'a>>,
}

/// Prints all elections whose names begin with a prefix.
pub(crate) async fn elections(options: &Elections) -> Result<u8> {
    let store = Store::new(options.url.as_deref())?;
    let elector = store.connect(Config::new()).await?;
    let prefix = options.prefix.as_str();
    let limit = options.limit.try_into().unwrap_or(usize::MAX);
    let request = elections::read(&elector, prefix, Limits::of(limit), || {});
    let what = "reading the elections";
    let reading =
        waiting::answer(&*elector, &store, what, options.timeout.unwrap_or(Limit::DEFAULT), request).await?;
    if options.json {
        print_line(&json(&store.name, prefix, &reading, usize::MAX)?)?;
    } else {
        print_elections(&reading.elections)?;
    }
    if reading.elections.is_empty() {
        let named =
            if prefix.is_empty() { String::new() } else { format!(" whose name begins with {prefix}") };
        messages::inform(&format!("{} has no election{named} with a candidate", store.name));
    }
    if reading.is_truncated {
        messages::print(&format!(
            "these are the first {} of {} elections; give a longer prefix, or a higher --limit",
            reading.elections.len(),
            reading.total
        ));
    }
    Ok(0)
}

/// A reading that ended now, as a JSON object on one line. With more bytes than `max_bytes`, it has no candidates that wait.
pub(crate) fn json(
    store: &str,
    prefix: &str,
    reading: &Reading,
    max_bytes: usize,
) -> serde_json::Result<String> {
    let mut listing = ListingJson {
        time: humantime::format_rfc3339_seconds(SystemTime::now()).to_string(),
        store,
        prefix,
        total: reading.total,
        truncated: reading.is_truncated,
        elections: reading.elections.iter().map(ElectionJson::new).collect(),
    };
    let json = serde_json::to_string(&listing)?;
    if json.len() <= max_bytes {
        return Ok(json);
    }
    listing.elections = listing.elections.into_iter().map(ElectionJson::leader_only).collect();
    serde_json::to_string(&listing)
}

impl<'a> ElectionJson<'a> {
    pub(crate) fn new(election: &'a Election) -> Self {
        let name = election.name.as_str();
        let candidate = |candidate| CandidateJson::new(name, candidate);
        Self {
            election: name,
            leader: election.leader().map(candidate),
            candidate_count: election.candidate_count,
            candidates: election.candidates.iter().map(candidate).collect(),
        }
    }

    /// Without those who wait. They stay counted.
    pub(crate) fn leader_only(mut self) -> Self {
        self.candidates.truncate(1);
        self
    }

    /// Without what changes from reading to reading while nothing happens.
    pub(crate) fn without_ages(mut self) -> Self {
        self.leader.iter_mut().chain(&mut self.candidates).for_each(CandidateJson::remove_age);
        self
    }
}

/// The columns. Numbers are aligned to the right.
const HEADERS: [(&str, bool); 7] = [
    ("ELECTION", false),
    ("LEADER", false),
    ("TOKEN", true),
    ("WAITING", true),
    ("AGE", true),
    ("SESSION", false),
    ("VALUE", false),
];

/// Prints the elections, one on each line: between tabs, or on a terminal in columns below a header.
fn print_elections(elections: &[Election]) -> Result<()> {
    let rows: Vec<_> = elections.iter().map(row).collect();
    if !io::stdout().is_terminal() {
        return rows.iter().try_for_each(|row| print_line(row.join("\t").trim_end()).map(drop));
    }
    if rows.is_empty() {
        return Ok(());
    }
    let widths: Vec<_> = HEADERS
        .iter()
        .enumerate()
        .map(|(column, (header, _))| {
            rows.iter().map(|row| width(&row[column])).fold(header.len(), usize::max)
        })
        .collect();
    let aligned = |cells: &[String]| {
        let cells = cells.iter().zip(&widths).zip(HEADERS);
        let cells: Vec<_> = cells.map(|((cell, width), (_, right))| padded(cell, *width, right)).collect();
        cells.join("  ").trim_end().to_owned()
    };
    let dim = Style::new().dimmed();
    print_line(&format!("{dim}{}{dim:#}", aligned(&HEADERS.map(|(header, _)| header.to_owned()))))?;
    rows.iter().try_for_each(|row| print_line(&aligned(row)).map(drop))
}

fn row(election: &Election) -> [String; 7] {
    let unknown = || "-".to_owned();
    let leader = election.leader();
    let shown = |text: fn(&Candidate) -> Option<String>| leader.and_then(text).unwrap_or_else(unknown);
    [
        election.name.to_string(),
        shown(|leader| Some(escaped(&leader.id))),
        shown(|leader| leader.token.map(|token| token.to_string())),
        election.waiting().to_string(),
        shown(|leader| leader.age.map(short_duration)),
        shown(|leader| Some(escaped(&leader.session))),
        leader.map(|leader| escaped(&leader.value_lossy())).unwrap_or_default(),
    ]
}
