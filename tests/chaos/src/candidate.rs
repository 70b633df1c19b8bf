//! A candidate's process: campaigns in several elections again and again, works, resigns, and reports what it observes.

mod reporter;
mod work;

use std::{
    io::Read as _,
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
use tenure_testkit::history::EventKind;
use tokio::signal::unix;
use tracing_subscriber::EnvFilter;

use crate::{
    message::Message,
    options::{CandidateOptions, LONG_ELECTION, elections},
    safety_rule,
    sampler::{Sampler, now},
};
use reporter::{report, report_event};

/// Takes part in elections until it receives SIGTERM or its parent exits.
pub(crate) fn run(options: &CandidateOptions) -> Result<ExitCode> {
    tracing_subscriber::fmt()
        // kube's client logs each request that fails.
        .with_env_filter(EnvFilter::from_default_env().add_directive("kube_client=off".parse()?))
        .with_writer(std::io::stderr)
        .init();
    exit_with_parent();
    if options.mutant {
        safety_rule::disable(safety_rule::OF_STOPPED_PROCESS)?;
    }
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build()?;
    runtime.block_on(take_part(options))?;
    Ok(ExitCode::SUCCESS)
}

async fn take_part(options: &CandidateOptions) -> Result<()> {
    let id = options.id.parse().context("the id of a candidate is invalid")?;
    let config = Config::new().with_ttl(options.ttl).with_id(id);
    let elector = tenure::connect_with(&options.url, config).await?;
    let mut terminate = unix::signal(unix::SignalKind::terminate())?;
    tokio::spawn(print_status_on_signal(options.id.clone(), Arc::clone(&elector)));
    let sampler = Sampler::start(|event| report(&Message::Event(event)));
    let stopping = Arc::new(AtomicBool::new(false));
    let elections = match &options.hold {
        Some(election) => vec![election.clone()],
        None => elections().map(str::to_owned).collect(),
    };
    let candidacies = elections.into_iter().map(|election| {
        let term_length = match election.as_str() {
            _ if options.hold.is_some() => TermLength::Endless,
            LONG_ELECTION => TermLength::SeveralTtls,
            _ => TermLength::Short,
        };
        let candidacy = Candidacy {
            elector: Arc::clone(&elector),
            election,
            term_length,
            ttl: options.ttl,
            sampler: sampler.clone(),
            stopping: Arc::clone(&stopping),
        };
        tokio::spawn(candidacy.run())
    });
    let candidacies: Vec<_> = candidacies.collect();
    terminate.recv().await;
    stopping.store(true, Relaxed);
    elector.close().await;
    for candidacy in candidacies {
        candidacy.await?;
    }
    Ok(())
}

/// Prints the elector's status on SIGUSR1, which the parent sends to a candidate that is stuck.
async fn print_status_on_signal(id: String, elector: Arc<dyn Elector>) {
    let Ok(mut signals) = unix::signal(unix::SignalKind::user_defined1()) else { return };
    while signals.recv().await.is_some() {
        eprintln!("{id}: {:?}", elector.status());
    }
}

/// Exits when the parent does: then the standard input is closed.
fn exit_with_parent() {
    thread::spawn(|| {
        let _ = std::io::stdin().read(&mut [0; 1]);
        std::process::exit(1);
    });
}

/// How long a term lasts unless it is lost before.
#[derive(Clone, Copy)]
enum TermLength {
    Short,
    SeveralTtls,
    Endless,
}

/// One candidate's part in one election.
struct Candidacy {
    elector: Arc<dyn Elector>,
    election: String,
    term_length: TermLength,
    ttl: Duration,
    sampler: Sampler,
    stopping: Arc<AtomicBool>,
}

impl Candidacy {
    async fn run(self) {
        while !self.stopping.load(Relaxed) {
            match self.elector.campaign(&self.election).await {
                Ok(leadership) => self.lead(leadership).await,
                Err(tenure::Error::Closed) => break,
                Err(error) => {
                    report(&Message::CampaignFailed(format!("{error}; {:?}", self.elector.status())));
                }
            }
        }
    }

    async fn lead(&self, leadership: Leadership) {
        let token = leadership.fencing_token().get();
        let Some((term, leads)) = self.sampler.watch(leadership.handle()) else {
            report(&Message::ElectedTooLate { election: self.election.clone(), token });
            return;
        };
        report(&Message::Event(leads));
        let length = match self.term_length {
            TermLength::Short => Duration::from_millis(fastrand::u64(20..250)),
            TermLength::SeveralTtls => self.ttl.mul_f64(0.2 + 2.5 * fastrand::f64()),
            TermLength::Endless => Duration::from_secs(3_600),
        };
        let worked = leadership.run(work::work(leadership.handle(), length, self.ttl)).await;
        if worked.is_ok() && leadership.is_leader() {
            report_event(&self.election, token, now(), EventKind::Resigns);
        }
        let over_since = term.first_invalid_or_now();
        match fastrand::u8(..3) {
            0 => drop(leadership),
            // The history shows whether it was confirmed or lost meanwhile.
            _ => drop(leadership.resign().await),
        }
        let ends = EventKind::Ends { valid_until: term.last_valid(), over_since };
        report_event(&self.election, token, now(), ends);
    }
}
