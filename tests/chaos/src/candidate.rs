//! A candidate: campaigns over and over in several elections, works, resigns, and tells what it sees.

mod work;

use std::{
    io::{Read as _, Write as _},
    process::ExitCode,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering::Relaxed},
    },
    thread,
    time::Duration,
};

use anyhow::{Context as _, Result};
use tenure::{Config, Elector, Leadership};
use tenure_testkit::history::{Event, EventKind};
use tokio::signal::unix;

use crate::{
    line::Line,
    mutant,
    options::CandidateOptions,
    sampler::{Sampler, now},
};

/// Elections whose terms are short, so that there are many.
pub(crate) const SHORT: [&str; 3] = ["short-1", "short-2", "short-3"];
/// An election whose terms are long, so that faults meet them.
pub(crate) const LONG: &str = "long";

/// All elections.
pub(crate) fn elections() -> impl Iterator<Item = &'static str> {
    SHORT.into_iter().chain([LONG])
}

/// Stands in its elections until it is told to end, or its rig is gone.
pub(crate) fn run(options: &CandidateOptions) -> Result<ExitCode> {
    tracing_subscriber::fmt()
        .with_env_filter(tracing_subscriber::EnvFilter::from_default_env())
        .with_writer(std::io::stderr)
        .init();
    end_with_the_rig();
    if options.mutant {
        mutant::choose(mutant::COMPARE_THE_CLOCK)?;
    }
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build()?;
    runtime.block_on(stand(options))?;
    Ok(ExitCode::SUCCESS)
}

async fn stand(options: &CandidateOptions) -> Result<()> {
    let id = options.id.parse().context("the id of a candidate")?;
    let config = Config::new().with_ttl(options.ttl).with_id(id);
    let elector = tenure::connect_with(&options.url, config).await?;
    let mut told_to_end = unix::signal(unix::SignalKind::terminate())?;
    tokio::spawn(tell_status_when_asked(options.id.clone(), Arc::clone(&elector)));
    let sampler = Sampler::start(|event| say(&Line::Saw(event)));
    let ending = Arc::new(AtomicBool::new(false));
    let elections = match &options.hold {
        Some(election) => vec![election.clone()],
        None => elections().map(str::to_owned).collect(),
    };
    let candidacies = elections.into_iter().map(|election| {
        let length = match election.as_str() {
            _ if options.hold.is_some() => Length::Endless,
            LONG => Length::Ttls,
            _ => Length::Short,
        };
        let candidacy = Candidacy {
            elector: Arc::clone(&elector),
            election,
            length,
            ttl: options.ttl,
            sampler: sampler.clone(),
            ending: Arc::clone(&ending),
        };
        tokio::spawn(candidacy.go_on())
    });
    let candidacies: Vec<_> = candidacies.collect();
    told_to_end.recv().await;
    ending.store(true, Relaxed);
    elector.close().await;
    for candidacy in candidacies {
        candidacy.await?;
    }
    Ok(())
}

/// The rig asks with a signal how a candidate sees things that is stuck.
async fn tell_status_when_asked(id: String, elector: Arc<dyn Elector>) {
    let Ok(mut asked) = unix::signal(unix::SignalKind::user_defined1()) else { return };
    while asked.recv().await.is_some() {
        eprintln!("{id}: {:?}", elector.status());
    }
}

/// Ends this process when the rig is gone: nobody holds the other end of the standard input any more.
fn end_with_the_rig() {
    thread::spawn(|| {
        let _ = std::io::stdin().read(&mut [0; 1]);
        std::process::exit(1);
    });
}

/// How long a term is, where nothing ends it before.
#[derive(Clone, Copy)]
enum Length {
    Short,
    Ttls,
    Endless,
}

struct Candidacy {
    elector: Arc<dyn Elector>,
    election: String,
    length: Length,
    ttl: Duration,
    sampler: Sampler,
    ending: Arc<AtomicBool>,
}

impl Candidacy {
    async fn go_on(self) {
        while !self.ending.load(Relaxed) {
            match self.elector.campaign(&self.election).await {
                Ok(leadership) => self.lead(leadership).await,
                Err(tenure::Error::Closed) => break,
                Err(error) => say(&Line::Refused(format!("{error}; {:?}", self.elector.status()))),
            }
        }
    }

    async fn lead(&self, leadership: Leadership) {
        let token = leadership.fencing_token().get();
        let Some((term, leads)) = self.sampler.watch(leadership.handle()) else {
            say(&Line::Missed { election: self.election.clone(), token });
            return;
        };
        say(&Line::Saw(leads));
        let length = match self.length {
            Length::Short => Duration::from_millis(fastrand::u64(20..250)),
            Length::Ttls => self.ttl.mul_f64(0.2 + 2.5 * fastrand::f64()),
            Length::Endless => Duration::from_secs(3_600),
        };
        let worked = leadership.run(work::work(leadership.handle(), length, self.ttl)).await;
        if worked.is_ok() && leadership.is_leader() {
            saw(&self.election, token, now(), EventKind::Resigns);
        }
        let over_since = term.over_since();
        match fastrand::u8(..3) {
            0 => drop(leadership),
            // Whether it was confirmed, or lost meanwhile, is seen in the history.
            _ => drop(leadership.resign().await),
        }
        saw(&self.election, token, now(), EventKind::Ends { valid_until: term.last_yes(), over_since });
    }
}

fn saw(election: &str, token: u64, at: u64, kind: EventKind) {
    say(&Line::Saw(Event { at, election: election.to_owned(), token, kind }));
}

/// Writes a line at once and as a whole: a candidate may be killed at any moment.
fn say(line: &Line) {
    let Ok(mut text) = serde_json::to_string(line) else { return };
    text.push('\n');
    // A rig that is gone is noticed at the standard input.
    let _ = std::io::stdout().lock().write_all(text.as_bytes());
}
