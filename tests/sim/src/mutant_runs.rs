//! Runs every mutant. One that is not noticed is a gap in the checks.

use std::{
    sync::atomic::{AtomicU64, Ordering::Relaxed},
    time::Instant,
};

use serde::Serialize;

use crate::{mutant::Mutant, options::Options, seeds::run_seeds};

/// The number of mutants, and those that were not noticed.
#[derive(Debug, Serialize)]
pub(crate) struct Verdict {
    mutants: usize,
    killed: usize,
    survivors: Vec<String>,
    seconds: f64,
}

/// Runs each mutant until a seed shows a violation.
pub(crate) fn run_all(options: &Options, mutants: &[Mutant]) -> Verdict {
    let start = Instant::now();
    let mut survivors = Vec::new();
    for mutant in mutants {
        let began = Instant::now();
        let first = options.first_seed;
        match first_to_notice(options, *mutant) {
            Some(seed) => {
                let tried = seed - first + 1;
                println!("killed    {mutant:?} by seed {seed} ({tried} tried, {:.1?})", began.elapsed());
            }
            None => {
                println!("SURVIVED  {mutant:?} ({} seeds, {:.1?})", options.seeds, began.elapsed());
                survivors.push(format!("{mutant:?}"));
            }
        }
    }
    let killed = mutants.len() - survivors.len();
    Verdict { mutants: mutants.len(), killed, survivors, seconds: start.elapsed().as_secs_f64() }
}

fn first_to_notice(options: &Options, mutant: Mutant) -> Option<u64> {
    let noticed = AtomicU64::new(u64::MAX);
    run_seeds(options, Some(mutant), |seed, outcome| {
        let wrong = !outcome.violations.is_empty();
        if wrong {
            noticed.fetch_min(seed, Relaxed);
        }
        wrong
    });
    Some(noticed.into_inner()).filter(|seed| *seed < u64::MAX)
}

impl Verdict {
    pub(crate) fn is_clean(&self) -> bool {
        self.survivors.is_empty() && self.mutants > 0
    }

    pub(crate) fn print(&self, options: &Options) {
        println!("{} of {} mutants killed, {:.1} s", self.killed, self.mutants, self.seconds);
        if options.json {
            println!("{}", serde_json::to_string(self).unwrap_or_default());
        }
    }
}
