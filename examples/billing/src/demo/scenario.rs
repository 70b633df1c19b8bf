//! The scenario of a run, which its seed determines.

use std::time::Duration;

use anyhow::bail;
use fastrand::Rng;

use crate::{
    calendar::{DAY_MS, Plan},
    db::{NewSubscription, Renewal},
};

/// How many renewals at most are left to charge when a fault is injected. There are some, so the leader is charging
/// then.
const MAX_LEFT_AT_FAULT: f64 = 40.0;

/// What the scenario must contain.
#[derive(Clone, Copy, Debug)]
pub(crate) struct ScenarioOptions {
    pub(crate) subscriptions: u32,
    pub(crate) kills: u32,
    pub(crate) pauses: u32,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum FaultKind {
    Kill,
    Pause,
}

impl FaultKind {
    pub(crate) fn as_str(self) -> &'static str {
        match self {
            Self::Kill => "kill",
            Self::Pause => "pause",
        }
    }
}

/// A fault, and when to inject it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct PlannedFault {
    pub(crate) kind: FaultKind,
    /// The fault is injected `delay` after this many renewals have been charged.
    pub(crate) after_charges: usize,
    pub(crate) delay: Duration,
    /// How long a killed server stays down.
    pub(crate) downtime: Duration,
    /// How many subscriptions have been added by then. The others are added later, so that the next leader and the next
    /// fault find unfinished work.
    pub(crate) subscriptions_added: usize,
}

/// The subscriptions and faults of a run.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Scenario {
    /// Subscriptions whose renewal is due as soon as they are added.
    pub(crate) due: Vec<NewSubscription>,
    /// Subscriptions whose renewal is days away.
    pub(crate) not_due: Vec<NewSubscription>,
    pub(crate) faults: Vec<PlannedFault>,
}

impl Scenario {
    pub(crate) fn new(seed: u64, options: ScenarioOptions, now: i64) -> anyhow::Result<Self> {
        let faults = options.kills + options.pauses;
        if options.subscriptions <= faults {
            bail!(
                "{} subscriptions are too few for {faults} faults: use at least {}, one for each leader",
                options.subscriptions,
                faults + 1
            );
        }
        let mut random = Rng::with_seed(seed);
        let due = (0..i64::from(options.subscriptions))
            .map(|n| subscription(&mut random, n + 1, now - DAY_MS / 2, DAY_MS))
            .collect();
        let not_due = (0..i64::from(options.subscriptions.div_ceil(10)))
            .map(|n| {
                subscription(
                    &mut random,
                    i64::from(options.subscriptions) + n + 1,
                    now + 7 * DAY_MS,
                    20 * DAY_MS,
                )
            })
            .collect();
        Ok(Self { due, not_due, faults: plan_faults(&mut random, options) })
    }

    /// The renewals that must be charged.
    pub(crate) fn renewals(&self) -> Vec<Renewal> {
        self.due
            .iter()
            .map(|new| Renewal {
                subscription: new.id,
                price_cents: new.price_cents,
                periods_paid: new.periods_paid,
                renews_at: new.renews_at(),
                next_renewal_at: new.plan.renews_at(new.started_at, new.periods_paid + 1),
            })
            .collect()
    }
}

/// A subscription whose next renewal is between `from` and `from + span`, or a few days earlier if it started on a
/// 31st.
fn subscription(random: &mut Rng, id: i64, from: i64, span: i64) -> NewSubscription {
    let plan = if random.u8(..4) == 0 { Plan::Annual } else { Plan::Monthly };
    let price_cents = match plan {
        Plan::Monthly => [490, 990, 1_990, 4_900][random.usize(..4)],
        Plan::Annual => [4_900, 9_900, 19_900, 49_000][random.usize(..4)],
    };
    let periods_paid = random.i64(1..=if plan == Plan::Monthly { 36 } else { 4 });
    let started_at = plan.renews_at(from + random.i64(0..span), -periods_paid);
    NewSubscription { id, plan, price_cents, started_at, periods_paid }
}

/// Distributes the faults over the run, each in a stretch of its own.
fn plan_faults(random: &mut Rng, options: ScenarioOptions) -> Vec<PlannedFault> {
    let mut kinds = vec![FaultKind::Kill; options.kills as usize];
    kinds.resize((options.kills + options.pauses) as usize, FaultKind::Pause);
    random.shuffle(&mut kinds);

    let total = options.subscriptions as usize;
    let stretch = f64::from(options.subscriptions) / (kinds.len() as f64 + 1.0);
    let left = (stretch / 4.0).clamp(1.0, MAX_LEFT_AT_FAULT) as usize;
    kinds
        .into_iter()
        .enumerate()
        .map(|(n, kind)| {
            let after_charges = ((n as f64 + 0.5 + 0.4 * random.f64()) * stretch) as usize;
            PlannedFault {
                kind,
                after_charges,
                delay: Duration::from_millis(random.u64(..40)),
                downtime: Duration::from_millis(random.u64(100..600)),
                subscriptions_added: (after_charges + left).min(total),
            }
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const NOW: i64 = 1_800_000_000_000;

    #[test]
    fn the_same_seed_gives_the_same_scenario() {
        let options = ScenarioOptions { subscriptions: 50, kills: 3, pauses: 2 };
        assert_eq!(Scenario::new(4, options, NOW).unwrap(), Scenario::new(4, options, NOW).unwrap());
        assert_ne!(Scenario::new(4, options, NOW).unwrap(), Scenario::new(5, options, NOW).unwrap());
    }

    #[test]
    fn too_few_subscriptions_for_the_faults_are_refused() {
        let options = ScenarioOptions { subscriptions: 7, kills: 5, pauses: 2 };
        let error = Scenario::new(1, options, NOW).unwrap_err().to_string();
        assert!(error.contains("at least 8"), "{error}");
    }

    proptest! {
        #[test]
        fn every_fault_interrupts_work_and_leaves_some(
            seed: u64, kills in 0u32..8, pauses in 0u32..8, more in 1u32..500, now in NOW..NOW + 400 * DAY_MS,
        ) {
            let options = ScenarioOptions { subscriptions: kills + pauses + more, kills, pauses };
            let scenario = Scenario::new(seed, options, now).unwrap();
            prop_assert_eq!(scenario.due.len(), options.subscriptions as usize);
            prop_assert_eq!(scenario.faults.iter().filter(|f| f.kind == FaultKind::Kill).count(), kills as usize);
            prop_assert_eq!(scenario.faults.len(), (kills + pauses) as usize);
            for pair in scenario.faults.windows(2) {
                prop_assert!(pair[0].after_charges <= pair[1].after_charges && pair[0].subscriptions_added <= pair[1].subscriptions_added);
            }
            for fault in &scenario.faults {
                prop_assert!(fault.after_charges < fault.subscriptions_added && fault.subscriptions_added <= scenario.due.len());
            }
            // The due ones are due now and not again during the run. The others are not due at all.
            for renewal in scenario.renewals() {
                prop_assert!((now - 5 * DAY_MS..=now + DAY_MS).contains(&renewal.renews_at));
                prop_assert!(renewal.next_renewal_at > now + 2 * DAY_MS);
            }
            for new in &scenario.not_due {
                prop_assert!(new.renews_at() > now + 2 * DAY_MS);
            }
        }
    }
}
