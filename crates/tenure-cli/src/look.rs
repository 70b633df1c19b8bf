//! `tenure leader`, `candidates` and `observe`: who leads, and who waits.

use std::{
    future::Future,
    io::{self, Write as _},
    time::Duration,
};

use anstyle::Style;
use anyhow::{Result, bail};
use futures::StreamExt as _;
use serde::Serialize;
use tenure::{Candidate, Config};

use crate::{args::Look, exit, signals, store};

/// A candidate as it is printed.
#[derive(Serialize)]
struct Shown<'a> {
    election: &'a str,
    id: &'a str,
    token: Option<u64>,
    /// What is not UTF-8 is replaced.
    value: &'a str,
    session: &'a str,
    #[serde(skip_serializing_if = "Option::is_none")]
    age_ms: Option<u128>,
}

/// What `observe` prints: nobody, or somebody.
#[derive(Serialize)]
struct Seen<'a> {
    election: &'a str,
    leader: Option<Shown<'a>>,
}

/// Prints who leads.
pub(crate) async fn leader(options: &Look) -> Result<u8> {
    let elector = store::connect(options.store.url.as_deref(), Config::new()).await?;
    let leader = in_time(options.timeout, elector.leader(&options.store.election)).await?;
    let Some(leader) = leader else { return Ok(exit::VACANT) };
    print(&text(options, &leader)?)
}

/// Prints all candidates.
pub(crate) async fn candidates(options: &Look) -> Result<u8> {
    let elector = store::connect(options.store.url.as_deref(), Config::new()).await?;
    for candidate in in_time(options.timeout, elector.candidates(&options.store.election)).await? {
        print(&text(options, &candidate)?)?;
    }
    Ok(0)
}

/// Prints who leads, now and at every change.
pub(crate) async fn observe(options: &Look) -> Result<u8> {
    let mut signals = signals::listen()?;
    let elector = store::connect(options.store.url.as_deref(), Config::new()).await?;
    let mut leaders = elector.observe(&options.store.election);
    let mut first = options.timeout;
    loop {
        let next = async { leaders.next().await.transpose() };
        let next = tokio::select! {
            next = in_time(first.take(), next) => next?,
            Some(signal) = signals.recv() => match signal.ends() {
                true => return Ok(exit::by_signal(signal.number)),
                false => continue,
            },
        };
        let Some(leader) = next else { return Ok(0) };
        let line = match (&leader, options.json) {
            (leader, true) => {
                let leader = leader.as_ref().map(|leader| (leader, leader.value_lossy()));
                let shown = leader.as_ref().map(|(leader, value)| shown(options, leader, value));
                serde_json::to_string(&Seen { election: &options.store.election, leader: shown })?
            }
            (Some(leader), false) => text(options, leader)?,
            (None, false) => "-".to_owned(),
        };
        print(&line)?;
    }
}

/// Asks whoever leads to resign, and prints who it was once it has.
pub(crate) async fn resign(options: &Look) -> Result<u8> {
    let elector = store::connect(options.store.url.as_deref(), Config::new()).await?;
    let election = &options.store.election;
    let asking = async {
        let mut leaders = elector.observe(election);
        let Some(asked) = elector.request_resign(election).await? else { return Ok(None) };
        loop {
            match tokio::time::timeout(ASK_AGAIN, leaders.next()).await {
                Ok(leader) => match leader.transpose()? {
                    Some(leader) if is_same(leader.as_ref(), &asked) => {}
                    _ => return Ok(Some(asked)),
                },
                // A candidate that changed its value just then may have written over it.
                Err(_) => match elector.request_resign(election).await? {
                    Some(leader) if is_same(Some(&leader), &asked) => {}
                    Some(_) | None => return Ok(Some(asked)),
                },
            }
        }
    };
    let limit = options.timeout;
    match in_time::<_, tenure::Error>(limit, asking).await? {
        Some(resigned) => print(&text(options, &resigned)?),
        None => Ok(exit::VACANT),
    }
}

/// How long a leader may take before it is asked again.
const ASK_AGAIN: Duration = Duration::from_secs(5);

/// Whether this is the same term.
fn is_same(leader: Option<&Candidate>, asked: &Candidate) -> bool {
    leader.is_some_and(|leader| (&leader.session, leader.token) == (&asked.session, asked.token))
}

async fn in_time<T, E>(limit: Option<Duration>, asking: impl Future<Output = Result<T, E>>) -> Result<T>
where
    anyhow::Error: From<E>,
{
    let Some(limit) = limit else { return Ok(asking.await?) };
    match tokio::time::timeout(limit, asking).await {
        Ok(answer) => Ok(answer?),
        Err(_) => bail!("there was no answer within {}", humantime::format_duration(limit)),
    }
}

fn shown<'a>(options: &'a Look, candidate: &'a Candidate, value: &'a str) -> Shown<'a> {
    Shown {
        election: &options.store.election,
        id: &candidate.id,
        token: candidate.token.map(tenure::FencingToken::get),
        value,
        session: &candidate.session,
        age_ms: candidate.age.map(|age| age.as_millis()),
    }
}

/// A candidate on a line of its own: id, token and value.
pub(crate) fn text(options: &Look, candidate: &Candidate) -> Result<String> {
    let value = candidate.value_lossy();
    if options.json {
        return Ok(serde_json::to_string(&shown(options, candidate, &value))?);
    }
    let token = candidate.token.map_or_else(|| "-".to_owned(), |token| token.to_string());
    // Others' text, which may hold anything.
    let (id, value) = (candidate.id.escape_debug(), value.escape_debug());
    // On a terminal; elsewhere nothing is left of the style.
    let (bold, dim) = (Style::new().bold(), Style::new().dimmed());
    let line = format!("{bold}{id}{bold:#}\t{dim}{token}{dim:#}\t{value}");
    Ok(line.trim_end().to_owned())
}

/// Prints a line; whoever reads no more wants no more.
fn print(line: &str) -> Result<u8> {
    written(writeln!(anstream::stdout(), "{line}"))?;
    Ok(0)
}

/// What came of writing to the standard output.
pub(crate) fn written(outcome: io::Result<()>) -> io::Result<()> {
    match outcome {
        Err(error) if error.kind() == io::ErrorKind::BrokenPipe => std::process::exit(0),
        outcome => outcome,
    }
}
