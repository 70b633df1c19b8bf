//! Explores all states, and reports the result.

use std::{thread::available_parallelism, time::Instant};

use clap::ValueEnum as _;
use serde::Serialize;
use stateright::{Checker, HasDiscoveries};

use crate::{
    Modelled, Options, cas,
    explorable::{Explorable, Violation},
    protocol::Protocol,
    rules::{Rule, Store},
    walk,
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

/// Explores each model with all rules, and then each mutant if requested.
pub(crate) fn check(options: &Options) -> Verdict {
    let began = Instant::now();
    let mut verdict = Verdict::default();
    let is_selected = |modelled| options.store.is_none_or(|named| named == modelled);
    for (modelled, store) in [(Modelled::Etcd, Store::Etcd), (Modelled::Zookeeper, Store::Zookeeper)] {
        if is_selected(modelled) {
            verdict.check_protocol(store, options);
        }
    }
    if is_selected(Modelled::Cas) {
        verdict.check_cas(options);
    }
    verdict.seconds = (began.elapsed().as_secs_f64() * 10.0).round() / 10.0;
    verdict
}

fn threads() -> usize {
    available_parallelism().map_or(1, Into::into)
}

/// A violation with the shortest path, which is the easiest to read, by a search breadth first; without one, the number of states.
fn failure<M: Explorable>(model: M) -> Result<Violation<M>, usize> {
    let checker =
        model.checker().finish_when(HasDiscoveries::AnyFailures).threads(threads()).spawn_bfs().join();
    let is_failure = |name: &'static str| checker.model().property(name).expectation.discovery_is_failure();
    let failure = checker.discoveries().into_iter().find(|(name, _)| is_failure(name));
    failure.map(|(name, path)| (name, path.into_actions())).ok_or_else(|| checker.unique_state_count())
}

impl Verdict {
    fn check_protocol(&mut self, store: Store, options: &Options) {
        let name = format!("{store:?}");
        self.exhaust(&name, Protocol { store, disabled: None }, options);
        for rule in options.mutants.then(|| Rule::all_of(store)).into_iter().flatten() {
            let mutant = Protocol { store, disabled: Some(rule) };
            self.disable(&format!("{rule:?} ({name})"), [mutant], options);
        }
    }

    fn check_cas(&mut self, options: &Options) {
        for (scope, recipe) in cas::SCOPES {
            self.exhaust(&format!("Cas, {scope}"), recipe, options);
        }
        let (scope, recipe) = cas::WALKED;
        self.walk(&format!("Cas, {scope}"), &recipe, options);
        for &rule in options.mutants.then(cas::Rule::value_variants).into_iter().flatten() {
            let recipes = cas::SCOPES.map(|(_, recipe)| recipe).into_iter();
            let mutants = recipes.filter(|recipe| recipe.failover == rule.is_about_epochs());
            let mutants = mutants.map(|recipe| cas::Recipe { disabled: Some(rule), ..recipe });
            self.disable(&format!("{rule:?} (Cas)"), mutants, options);
        }
    }

    fn exhaust<M: Explorable>(&mut self, name: &str, model: M, options: &Options) {
        let began = Instant::now();
        let checker = model.checker().threads(threads()).spawn_bfs().join();
        println!(
            "{name}: {} states, {} steps, {:.1?}",
            checker.unique_state_count(),
            checker.state_count(),
            began.elapsed()
        );
        self.states += checker.unique_state_count();
        self.steps += checker.state_count();
        let mut found = checker.discoveries();
        for property in checker.model().properties() {
            let seen = found.remove(property.name);
            if seen.is_some() == property.expectation.discovery_is_failure() {
                let path = seen.filter(|_| options.paths).map(|path| path.to_string());
                self.report(&format!("{name}: {}", property.name), path);
            }
        }
    }

    /// Takes random walks, where exploring all states would take too long.
    fn walk<M: Explorable>(&mut self, name: &str, model: &M, options: &Options) {
        let began = Instant::now();
        let violation = walk::find_violation(model, threads());
        println!("{name}: {} steps of random walks, {:.1?}", walk::STEPS, began.elapsed());
        if let Some((property, steps)) = violation {
            self.report(&format!("{name}: {property}"), options.paths.then(|| format!("{steps:?}")));
        }
    }

    fn report(&mut self, what: &str, path: Option<String>) {
        println!("WRONG  {what}");
        if let Some(path) = path {
            println!("{path}");
        }
        self.violations.push(what.to_owned());
    }

    /// Explores a mutant, in each of its scopes until a property fails.
    fn disable<M: Explorable>(
        &mut self,
        name: &str,
        mutants: impl IntoIterator<Item = M>,
        options: &Options,
    ) {
        let began = Instant::now();
        self.mutants += 1;
        let mut states = 0;
        for mutant in mutants {
            match failure(mutant) {
                Ok((property, steps)) => {
                    self.killed += 1;
                    println!(
                        "killed    {name} by \"{property}\" in {} steps, {:.1?}",
                        steps.len(),
                        began.elapsed()
                    );
                    if options.paths {
                        println!("          {steps:?}");
                    }
                    return;
                }
                Err(explored) => states += explored,
            }
        }
        println!("SURVIVED  {name}, {states} states");
        self.survivors.push(name.to_owned());
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
