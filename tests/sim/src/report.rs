//! All seeds, and what came of them.

use std::{
    sync::{Mutex, PoisonError},
    time::Instant,
};

use serde::Serialize;

use crate::{options::Options, run::Outcome, seeds::run_seeds};

/// The sums over all seeds.
#[derive(Debug, Default, Serialize)]
pub(crate) struct Report {
    seeds: u64,
    elections: u64,
    faults: u64,
    violations: u64,
    seconds: f64,
    /// Writes of stale leaders that the fenced register refused.
    refused_stale: u64,
    /// Requests that the fake servers have received from a real client.
    requests: u64,
    failed_seeds: Vec<u64>,
    #[serde(skip)]
    what: Vec<(u64, Vec<String>)>,
}

/// Runs every seed.
pub(crate) fn run_all(options: &Options) -> Report {
    let start = Instant::now();
    let report = Mutex::new(Report::default());
    run_seeds(options, None, |seed, outcome| {
        report.lock().unwrap_or_else(PoisonError::into_inner).add(seed, outcome);
        false
    });
    let mut report = report.into_inner().unwrap_or_else(PoisonError::into_inner);
    report.seconds = start.elapsed().as_secs_f64();
    report.failed_seeds.sort_unstable();
    report.what.sort_unstable_by_key(|(seed, _)| *seed);
    report
}

impl Report {
    fn add(&mut self, seed: u64, outcome: Outcome) {
        self.seeds += 1;
        self.elections += outcome.elections;
        self.faults += outcome.faults;
        self.refused_stale += outcome.refused;
        self.requests += outcome.events;
        if !outcome.violations.is_empty() {
            self.violations += outcome.violations.len() as u64;
            self.failed_seeds.push(seed);
            self.what.push((seed, outcome.violations));
        }
    }

    pub(crate) fn is_clean(&self) -> bool {
        self.violations == 0 && self.elections > 0
    }

    pub(crate) fn print(&self, options: &Options) {
        for (seed, violations) in &self.what {
            println!("seed {seed} ({}), again with --seeds 1 --first-seed {seed}:", options.what(*seed));
            for violation in violations {
                println!("  {violation}");
            }
        }
        println!(
            "{} seeds, {} elections, {} faults, {} violations, {:.1} s",
            self.seeds, self.elections, self.faults, self.violations, self.seconds
        );
        if options.json {
            println!("{}", serde_json::to_string(self).unwrap_or_default());
        }
    }
}
