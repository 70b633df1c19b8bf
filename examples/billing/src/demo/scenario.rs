//! What happens in a run: all of it decided by the seed.

use std::time::Duration;

use anyhow::bail;
use fastrand::Rng;

use crate::{
    calendar::{DAY_MS, Plan},
    db::{NewSubscription, Renewal},
};

/// How many renewals are left to charge, at most, when a fault strikes: the leader is at work then.
const AT_WORK: f64 = 40.0;

/// What was asked for.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Wishes {
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

/// A fault, and when it strikes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Planned {
    pub(crate) kind: FaultKind,
    /// It strikes when so many have been charged…
    pub(crate) after: usize,
    /// …and this long after that.
    pub(crate) delay: Duration,
    /// How long a killed server stays down.
    pub(crate) down: Duration,
    /// How many customers have signed up by then. The others come later, so that
    /// there is work left for the next leader, and for the next fault to interrupt.
    pub(crate) signed_up: usize,
}

/// A run.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Scenario {
    /// Those whose renewal is due as soon as they have signed up.
    pub(crate) due: Vec<NewSubscription>,
    /// Those whose renewal is days away.
    pub(crate) not_due: Vec<NewSubscription>,
    pub(crate) faults: Vec<Planned>,
}

impl Scenario {
    pub(crate) fn new(seed: u64, wishes: Wishes, now: i64) -> anyhow::Result<Self> {
        let faults = wishes.kills + wishes.pauses;
        if wishes.subscriptions <= faults {
            bail!(
                "{} subscriptions are too few for {faults} faults: at least {} are needed, one for each leader",
                wishes.subscriptions,
                faults + 1
            );
        }
        let mut random = Rng::with_seed(seed);
        let due = (0..i64::from(wishes.subscriptions))
            .map(|n| subscription(&mut random, n + 1, now - DAY_MS / 2, DAY_MS))
            .collect();
        let not_due = (0..i64::from(wishes.subscriptions.div_ceil(10)))
            .map(|n| {
                subscription(
                    &mut random,
                    i64::from(wishes.subscriptions) + n + 1,
                    now + 7 * DAY_MS,
                    20 * DAY_MS,
                )
            })
            .collect();
        Ok(Self { due, not_due, faults: plan(&mut random, wishes) })
    }

    /// The renewals that have to be charged, as the plans say.
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

/// A subscription whose next renewal is within `span` from `from`, or a few days before that, where
/// it was begun on a 31st.
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

/// Spreads the faults over the run: each in a stretch of its own.
fn plan(random: &mut Rng, wishes: Wishes) -> Vec<Planned> {
    let mut kinds = vec![FaultKind::Kill; wishes.kills as usize];
    kinds.resize((wishes.kills + wishes.pauses) as usize, FaultKind::Pause);
    random.shuffle(&mut kinds);

    let total = wishes.subscriptions as usize;
    let stretch = f64::from(wishes.subscriptions) / (kinds.len() as f64 + 1.0);
    let left = (stretch / 4.0).clamp(1.0, AT_WORK) as usize;
    kinds
        .into_iter()
        .enumerate()
        .map(|(n, kind)| {
            let after = ((n as f64 + 0.5 + 0.4 * random.f64()) * stretch) as usize;
            Planned {
                kind,
                after,
                delay: Duration::from_millis(random.u64(..40)),
                down: Duration::from_millis(random.u64(100..600)),
                signed_up: (after + left).min(total),
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
    fn the_same_seed_is_the_same_run() {
        let wishes = Wishes { subscriptions: 50, kills: 3, pauses: 2 };
        assert_eq!(Scenario::new(4, wishes, NOW).unwrap(), Scenario::new(4, wishes, NOW).unwrap());
        assert_ne!(Scenario::new(4, wishes, NOW).unwrap(), Scenario::new(5, wishes, NOW).unwrap());
    }

    #[test]
    fn too_few_subscriptions_for_the_faults_are_refused() {
        let wishes = Wishes { subscriptions: 7, kills: 5, pauses: 2 };
        let error = Scenario::new(1, wishes, NOW).unwrap_err().to_string();
        assert!(error.contains("at least 8"), "{error}");
    }

    proptest! {
        #[test]
        fn every_fault_interrupts_work_and_leaves_some(
            seed: u64, kills in 0u32..8, pauses in 0u32..8, more in 1u32..500, now in NOW..NOW + 400 * DAY_MS,
        ) {
            let wishes = Wishes { subscriptions: kills + pauses + more, kills, pauses };
            let scenario = Scenario::new(seed, wishes, now).unwrap();
            prop_assert_eq!(scenario.due.len(), wishes.subscriptions as usize);
            prop_assert_eq!(scenario.faults.iter().filter(|f| f.kind == FaultKind::Kill).count(), kills as usize);
            prop_assert_eq!(scenario.faults.len(), (kills + pauses) as usize);
            for pair in scenario.faults.windows(2) {
                prop_assert!(pair[0].after <= pair[1].after && pair[0].signed_up <= pair[1].signed_up);
            }
            for fault in &scenario.faults {
                prop_assert!(fault.after < fault.signed_up && fault.signed_up <= scenario.due.len());
            }
            // Due now, and then not again during the run; and the others not at all.
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
