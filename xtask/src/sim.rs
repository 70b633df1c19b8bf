//! `cargo xtask sim` and `cargo xtask mutants`: the engine over simulated clusters, with all safety rules and with each one disabled, a
//! model of each protocol, and the guard of `tenure run`.

use std::{path::Path, process::Command, time::Instant};

use anyhow::{Context as _, Result, ensure};
use clap::Args;
use serde_json::{Value, json};

use crate::{
    failpoint_build,
    shell::{run, run_for_json, say},
};

/// What to run; the rest is passed on to `tenure-sim` and `tenure-model`.
#[derive(Args)]
pub(crate) struct Options {
    /// How many runs, each with another seed
    #[arg(long)]
    seeds: Option<u64>,
    /// The first seed; a failing one is run again with `--first-seed N --seeds 1`
    #[arg(long)]
    first_seed: Option<u64>,
    /// etcd, zookeeper or cas; all in turn unless one is named
    #[arg(long)]
    store: Option<String>,
    /// etcd: its real client and our backend over a simulated network, in place of the simulated recipes
    #[arg(long, conflicts_with = "store")]
    client: Option<String>,
    /// Prints one object of JSON as the last line
    #[arg(long)]
    json: bool,
}

/// With so many seeds every disabled rule is noticed; the slowest one has needed some 3 500.
const MUTANT_SEEDS: u64 = 10_000;

/// Runs the simulation with all safety rules.
///
/// # Errors
/// When a promise was broken.
pub(crate) fn simulate(options: &Options) -> Result<()> {
    let mut sim = simulation(&failpoint_build::build("tenure-sim")?, options, options.seeds);
    sim.args(options.json.then_some("--json"));
    run(&mut sim)
}

/// Explores every state of the protocols' models; then disables each rule in turn, in the model, in the simulation and in the
/// guard of `tenure run`, and checks that this is noticed.
///
/// # Errors
/// When the protocol with all rules breaks a promise, or a mutant survives.
pub(crate) fn mutants(options: &Options) -> Result<()> {
    ensure!(
        options.client.is_none(),
        "mutants run in the model and with the simulated recipes: leave out --client"
    );
    let began = Instant::now();
    let mut model = Command::new(failpoint_build::build("tenure-model")?);
    model.args(options.store.iter().map(|store| format!("--store={store}"))).args(["--mutants", "--json"]);
    let model = run_for_json(&mut model)?;
    let mut sim =
        simulation(&failpoint_build::build("tenure-sim")?, options, options.seeds.or(Some(MUTANT_SEEDS)));
    let sim = run_for_json(sim.args(["--mutants", "--json"]))?;
    let guard = failpoint_build::build_beside_tests("tenure")?;
    let guard = run_for_json(Command::new(guard).arg("--mutants"))?;
    let all = ["model", "simulation", "guard"].into_iter().zip([model, sim, guard]);
    let parts: Vec<Part> = all.map(|(name, said)| Part::read(name, said)).collect::<Result<_>>()?;
    let sum = |of: fn(&Part) -> u64| parts.iter().map(of).sum::<u64>();
    let survivors: Vec<_> = parts.iter().flat_map(|part| part.survivors.clone()).collect();
    let (mutants, killed) = (sum(|part| part.mutants), sum(|part| part.killed));
    say(format!(
        "{killed} of {mutants} mutants killed, in the model, in the simulation and in the guard of `tenure run`"
    ));
    if options.json {
        let seconds = (began.elapsed().as_secs_f64() * 10.0).round() / 10.0;
        let states = sum(|part| part.states);
        println!(
            "{}",
            json!({ "mutants": mutants, "killed": killed, "survivors": survivors, "states": states, "seconds": seconds })
        );
    }
    ensure!(
        survivors.is_empty(),
        "these rules were disabled and nothing noticed it: {}",
        survivors.join(", ")
    );
    for part in parts {
        ensure!(part.succeeded, "the {} failed", part.name);
    }
    Ok(())
}

fn simulation(program: &Path, options: &Options, seeds: Option<u64>) -> Command {
    let mut sim = Command::new(program);
    for (flag, value) in [("seeds", seeds), ("first-seed", options.first_seed)] {
        sim.args(value.map(|value| format!("--{flag}={value}")));
    }
    for (flag, value) in [("store", &options.store), ("client", &options.client)] {
        sim.args(value.iter().map(|value| format!("--{flag}={value}")));
    }
    sim
}

/// The result of the mutants of one checker.
struct Part {
    name: &'static str,
    mutants: u64,
    killed: u64,
    survivors: Vec<String>,
    /// How many states the model has.
    states: u64,
    succeeded: bool,
}

impl Part {
    fn read(name: &'static str, (said, succeeded): (Option<Value>, bool)) -> Result<Self> {
        let said = said.with_context(|| format!("the {name} ended without a result"))?;
        let number = |of: &str| said[of].as_u64().unwrap_or(0);
        let survivors = said["survivors"].as_array().into_iter().flatten();
        let survivors = survivors.map(|mutant| format!("{} in the {name}", mutant.as_str().unwrap_or("one")));
        Ok(Self {
            name,
            mutants: number("mutants"),
            killed: number("killed"),
            survivors: survivors.collect(),
            states: number("states"),
            succeeded,
        })
    }
}
