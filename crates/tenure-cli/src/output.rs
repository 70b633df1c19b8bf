//! How candidates are printed: as a line of text, or as a JSON object.

use std::{
    borrow::Cow,
    io::{self, IsTerminal as _, Write as _},
    time::SystemTime,
};

use anstyle::Style;
use anyhow::Result;
use serde::Serialize;
use tenure::Candidate;

use crate::args::Query;

/// A candidate as a JSON object.
#[derive(Debug, Serialize)]
pub(crate) struct CandidateJson<'a> {
    election: &'a str,
    id: &'a str,
    token: Option<u64>,
    /// Invalid UTF-8 is replaced.
    value: Cow<'a, str>,
    session: &'a str,
    #[serde(skip_serializing_if = "Option::is_none")]
    age_ms: Option<u128>,
}

/// A JSON object of `observe`: the leader, or that there is none.
#[derive(Serialize)]
struct LeaderJson<'a> {
    time: String,
    election: &'a str,
    leader: Option<CandidateJson<'a>>,
}

impl<'a> CandidateJson<'a> {
    pub(crate) fn new(election: &'a str, candidate: &'a Candidate) -> Self {
        Self {
            election,
            id: &candidate.id,
            token: candidate.token.map(tenure::FencingToken::get),
            value: candidate.value_lossy(),
            session: &candidate.session,
            age_ms: candidate.age.map(|age| age.as_millis()),
        }
    }

    pub(crate) fn remove_age(&mut self) {
        self.age_ms = None;
    }
}

/// A candidate on one line: its id, token and value, or a JSON object.
pub(crate) fn candidate_line(options: &Query, candidate: &Candidate) -> Result<String> {
    if options.json {
        return Ok(serde_json::to_string(&CandidateJson::new(&options.store.election, candidate))?);
    }
    let value = candidate.value_lossy();
    let token = candidate.token.map_or_else(|| "-".to_owned(), |token| token.to_string());
    // Other processes wrote these, so they may contain control characters.
    let (id, value) = (candidate.id.escape_debug(), value.escape_debug());
    // `anstream` removes the styles where the output is not a terminal.
    let (bold, dim) = (Style::new().bold(), Style::new().dimmed());
    let line = format!("{bold}{id}{bold:#}\t{dim}{token}{dim:#}\t{value}");
    Ok(line.trim_end().to_owned())
}

/// Prints candidates, one on each line; on a terminal below a header. Returns exit code 0.
pub(crate) fn print_candidates(options: &Query, candidates: &[Candidate]) -> Result<u8> {
    if options.json || !io::stdout().is_terminal() {
        for candidate in candidates {
            print_line(&candidate_line(options, candidate)?)?;
        }
        return Ok(0);
    }
    let rows: Vec<_> = candidates
        .iter()
        .map(|candidate| {
            let token = candidate.token.map_or_else(|| "-".to_owned(), |token| token.to_string());
            let (id, value) = (candidate.id.escape_debug(), candidate.value_lossy());
            [id.to_string(), token, value.escape_debug().to_string()]
        })
        .collect();
    let width = |column: usize, header: &str| {
        rows.iter().map(|row| row[column].chars().count()).fold(header.len(), usize::max)
    };
    let (ids, tokens) = (width(0, "ID"), width(1, "TOKEN"));
    let (bold, dim) = (Style::new().bold(), Style::new().dimmed());
    print_line(&format!("{dim}{:ids$}  {:tokens$}  VALUE{dim:#}", "ID", "TOKEN"))?;
    for [id, token, value] in &rows {
        let padding = " ".repeat(ids - id.chars().count());
        print_line(format!("{bold}{id}{bold:#}{padding}  {token:tokens$}  {value}").trim_end())?;
    }
    Ok(0)
}

/// The leader on one line, for `observe`: `-` if there is none.
pub(crate) fn leader_line(options: &Query, leader: Option<&Candidate>) -> Result<String> {
    let time = humantime::format_rfc3339_seconds(SystemTime::now()).to_string();
    match (leader, options.json) {
        (leader, true) => {
            let election = options.store.election.as_str();
            let leader = leader.map(|leader| CandidateJson::new(election, leader));
            Ok(serde_json::to_string(&LeaderJson { time, election, leader })?)
        }
        (leader, false) => {
            let line = leader.map_or_else(|| Ok("-".to_owned()), |leader| candidate_line(options, leader))?;
            let with_time = options.timestamps || io::stdout().is_terminal();
            Ok(if with_time { format!("{time}\t{line}") } else { line })
        }
    }
}

/// Prints a line to the standard output. Returns exit code 0.
pub(crate) fn print_line(line: &str) -> Result<u8> {
    exit_on_broken_pipe(writeln!(anstream::stdout(), "{line}"))?;
    Ok(0)
}

/// Prints these bytes to the standard output. Returns exit code 0.
pub(crate) fn print_bytes(bytes: &[u8]) -> Result<u8> {
    let mut stdout = io::stdout();
    exit_on_broken_pipe(stdout.write_all(bytes).and_then(|()| stdout.flush()))?;
    Ok(0)
}

/// Ends this process with exit code 0 if nothing reads its standard output any more.
pub(crate) fn exit_on_broken_pipe(outcome: io::Result<()>) -> io::Result<()> {
    match outcome {
        Err(error) if error.kind() == io::ErrorKind::BrokenPipe => std::process::exit(0),
        outcome => outcome,
    }
}
