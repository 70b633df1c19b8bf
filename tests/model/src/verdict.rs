//! Explores all states, and reports the result.

use std::{thread::available_parallelism, time::Instant};

use serde::Serialize;
use stateright::{Checker, HasDiscoveries, Model as _};

use crate::{
    Options,
    protocol::Protocol,
    rules::{Rule, Store},
};

/// The result.
#[derive(Debug, Default, Serialize)]
pub(crate) struct Verdict {
    /// With all rules, over all stores: the distinct states, and the steps between them.
    states: usize,
    steps: usize,
    mutants: usize,
    killed: usize,
    survivors: Vec<String>,
    violations: Vec<String>,
    seconds: f64,
}

/// Explores the protocol with all rules, and then each mutant if requested.
pub(crate) fn check(options: &Options) -> Verdict {
    let began = Instant::now();
    let mut verdict = Verdict::default();
    let stores = [Store::Etcd, Store::Zookeeper];
    for store in stores.into_iter().filter(|store| options.store.is_none_or(|named| named == *store)) {
        verdict.exhaust(store, options);
        if options.mutants {
            for rule in Rule::all_of(store) {
                verdict.disable(store, rule, options);
            }
        }
    }
    verdict.seconds = (began.elapsed().as_secs_f64() * 10.0).round() / 10.0;
    verdict
}

fn threads() -> usize {
    available_parallelism().map_or(1, Into::into)
}

impl Verdict {
    fn exhaust(&mut self, store: Store, options: &Options) {
        let began = Instant::now();
        let protocol = Protocol { store, disabled: None };
        let checker = protocol.checker().threads(threads()).spawn_bfs().join();
        println!(
            "{store:?}: {} states, {} steps, {:.1?}",
            checker.unique_state_count(),
            checker.state_count(),
            began.elapsed()
        );
        self.states += checker.unique_state_count();
        self.steps += checker.state_count();
        let found = checker.discoveries();
        for property in checker.model().properties() {
            let seen = found.get(property.name);
            if seen.is_some() != property.expectation.discovery_is_failure() {
                continue;
            }
            let what = format!("{store:?}: {}", property.name);
            println!("WRONG  {what}");
            if let Some(path) = seen.filter(|_| options.paths) {
                println!("{path}");
            }
            self.violations.push(what);
        }
    }

    fn disable(&mut self, store: Store, rule: Rule, options: &Options) {
        let began = Instant::now();
        let protocol = Protocol { store, disabled: Some(rule) };
        // Breadth first, so that the shortest path is found, which is the easiest to read.
        let checker =
            protocol.checker().finish_when(HasDiscoveries::AnyFailures).threads(threads()).spawn_bfs().join();
        let failures: Vec<_> = checker
            .discoveries()
            .into_iter()
            .filter(|(name, _)| checker.model().property(name).expectation.discovery_is_failure())
            .collect();
        let name = format!("{rule:?} ({store:?})");
        self.mutants += 1;
        let Some((property, path)) = failures.into_iter().next() else {
            println!("SURVIVED  {name}, {} states", checker.unique_state_count());
            self.survivors.push(name);
            return;
        };
        self.killed += 1;
        let steps = path.into_actions();
        println!("killed    {name} by \"{property}\" in {} steps, {:.1?}", steps.len(), began.elapsed());
        if options.paths {
            println!("          {steps:?}");
        }
    }

    pub(crate) fn is_clean(&self) -> bool {
        self.violations.is_empty() && self.survivors.is_empty() && self.states > 0
    }

    pub(crate) fn print(&self, options: &Options) {
        println!(
            "{} states, {} violations; {} of {} mutants killed; {:.1} s",
            self.states,
            self.violations.len(),
            self.killed,
            self.mutants,
            self.seconds
        );
        if options.json {
            println!("{}", serde_json::to_string(self).unwrap_or_default());
        }
    }
}
