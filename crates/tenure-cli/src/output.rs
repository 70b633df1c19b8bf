//! How candidates are printed: as a line of text, or as a JSON object.

use std::io::{self, Write as _};

use anstyle::Style;
use anyhow::Result;
use serde::Serialize;
use tenure::Candidate;

use crate::args::Query;

/// A candidate as a JSON object.
#[derive(Serialize)]
struct CandidateJson<'a> {
    election: &'a str,
    id: &'a str,
    token: Option<u64>,
    /// Invalid UTF-8 is replaced.
    value: &'a str,
    session: &'a str,
    #[serde(skip_serializing_if = "Option::is_none")]
    age_ms: Option<u128>,
}

/// A JSON object of `observe`: the leader, or that there is none.
#[derive(Serialize)]
struct LeaderJson<'a> {
    election: &'a str,
    leader: Option<CandidateJson<'a>>,
}

fn candidate_json<'a>(options: &'a Query, candidate: &'a Candidate, value: &'a str) -> CandidateJson<'a> {
    CandidateJson {
        election: &options.store.election,
        id: &candidate.id,
        token: candidate.token.map(tenure::FencingToken::get),
        value,
        session: &candidate.session,
        age_ms: candidate.age.map(|age| age.as_millis()),
    }
}

/// A candidate on one line: its id, token and value, or a JSON object.
pub(crate) fn candidate_line(options: &Query, candidate: &Candidate) -> Result<String> {
    let value = candidate.value_lossy();
    if options.json {
        return Ok(serde_json::to_string(&candidate_json(options, candidate, &value))?);
    }
    let token = candidate.token.map_or_else(|| "-".to_owned(), |token| token.to_string());
    // Other processes wrote these, so they may contain control characters.
    let (id, value) = (candidate.id.escape_debug(), value.escape_debug());
    // `anstream` removes the styles where the output is not a terminal.
    let (bold, dim) = (Style::new().bold(), Style::new().dimmed());
    let line = format!("{bold}{id}{bold:#}\t{dim}{token}{dim:#}\t{value}");
    Ok(line.trim_end().to_owned())
}

/// The leader on one line, for `observe`: `-` if there is none.
pub(crate) fn leader_line(options: &Query, leader: Option<&Candidate>) -> Result<String> {
    match (leader, options.json) {
        (leader, true) => {
            let leader = leader.map(|leader| (leader, leader.value_lossy()));
            let json = leader.as_ref().map(|(leader, value)| candidate_json(options, leader, value));
            Ok(serde_json::to_string(&LeaderJson { election: &options.store.election, leader: json })?)
        }
        (Some(leader), false) => candidate_line(options, leader),
        (None, false) => Ok("-".to_owned()),
    }
}

/// Prints a line to the standard output. Returns exit code 0.
pub(crate) fn print_line(line: &str) -> Result<u8> {
    exit_on_broken_pipe(writeln!(anstream::stdout(), "{line}"))?;
    Ok(0)
}

/// Ends this process with exit code 0 if nothing reads its standard output any more.
pub(crate) fn exit_on_broken_pipe(outcome: io::Result<()>) -> io::Result<()> {
    match outcome {
        Err(error) if error.kind() == io::ErrorKind::BrokenPipe => std::process::exit(0),
        outcome => outcome,
    }
}
