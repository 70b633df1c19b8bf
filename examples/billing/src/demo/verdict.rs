//! Compares what was due with what the provider has charged and what the database has recorded.

use std::collections::{HashMap, HashSet};

use super::ledger_reader::LedgerEntry;
use crate::{
    db::{RecordedRenewal, Renewal},
    payment_api::Outcome,
};

/// The result of the comparison. All fields are numbers of renewals, charges or requests.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Verdict {
    /// Renewals that were due.
    pub(crate) due: usize,
    /// Charges that the provider made.
    pub(crate) charged: usize,
    /// Charges of a renewal after the first one.
    pub(crate) double_charged: usize,
    /// Renewals that were due and not charged.
    pub(crate) missed: usize,
    /// Charges of renewals that were not due.
    pub(crate) not_due: usize,
    /// Charges whose amount was not the price.
    pub(crate) wrong_amount: usize,
    /// Renewals that were charged and are not recorded in the database.
    pub(crate) not_recorded: usize,
    /// Renewals that are recorded in the database and were not charged.
    pub(crate) recorded_only: usize,
    /// Charges with a lower token than the highest one that the provider had seen.
    pub(crate) charged_stale: usize,
    pub(crate) refused_stale: usize,
    pub(crate) refused_duplicate: usize,
}

pub(crate) fn check(due: &[Renewal], ledger: &[LedgerEntry], recorded: &[RecordedRenewal]) -> Verdict {
    let prices: HashMap<(i64, String), i64> = due
        .iter()
        .map(|renewal| ((renewal.subscription, renewal.request().period), renewal.price_cents))
        .collect();
    let mut verdict = Verdict { due: prices.len(), ..Verdict::default() };
    let mut charged = HashSet::new();
    let mut highest = 0;
    for entry in ledger {
        match entry.outcome {
            Outcome::RefusedStale => verdict.refused_stale += 1,
            Outcome::RefusedDuplicate => verdict.refused_duplicate += 1,
            Outcome::Charged => {
                verdict.charged += 1;
                verdict.charged_stale += usize::from(entry.token < highest);
                let renewal = (entry.subscription, entry.period.clone());
                match prices.get(&renewal) {
                    None => verdict.not_due += 1,
                    Some(price) => verdict.wrong_amount += usize::from(*price != entry.amount_cents),
                }
                verdict.double_charged += usize::from(!charged.insert(renewal));
            }
        }
        highest = highest.max(entry.token);
    }
    let recorded: HashSet<(i64, String)> =
        recorded.iter().map(|record| (record.subscription, record.period.clone())).collect();
    verdict.missed = prices.keys().filter(|renewal| !charged.contains(*renewal)).count();
    verdict.not_recorded = charged.difference(&recorded).count();
    verdict.recorded_only = recorded.difference(&charged).count();
    verdict
}

impl Verdict {
    /// A text for each violation.
    pub(crate) fn violations(&self) -> Vec<String> {
        [
            (self.double_charged, "charged twice"),
            (self.missed, "due and not charged"),
            (self.not_due, "charged and not due"),
            (self.wrong_amount, "charged with an amount that is not the price"),
            (self.not_recorded, "charged and not recorded in the database"),
            (self.recorded_only, "recorded in the database and not charged"),
            (self.charged_stale, "charged with a stale token"),
        ]
        .into_iter()
        .filter(|(count, _)| *count > 0)
        .map(|(count, what)| format!("{count} {what}"))
        .collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::calendar::DAY_MS;

    fn renewal(subscription: i64) -> Renewal {
        Renewal {
            subscription,
            price_cents: 990,
            periods_paid: 1,
            renews_at: 20_000 * DAY_MS,
            next_renewal_at: 20_031 * DAY_MS,
        }
    }

    fn entry(subscription: i64, token: i64, outcome: Outcome) -> LedgerEntry {
        let period = renewal(subscription).request().period;
        LedgerEntry { subscription, period, amount_cents: 990, token, outcome, received_at: 0 }
    }

    fn record(subscription: i64) -> RecordedRenewal {
        RecordedRenewal { subscription, period: renewal(subscription).request().period, amount_cents: 990 }
    }

    fn verdict(ledger: &[LedgerEntry], recorded: &[i64]) -> Verdict {
        let recorded: Vec<_> = recorded.iter().copied().map(record).collect();
        check(&[renewal(1), renewal(2)], ledger, &recorded)
    }

    #[test]
    fn a_correct_ledger_has_no_violation_whatever_was_refused() {
        use Outcome::*;
        let ledger = [
            entry(1, 7, Charged),
            entry(1, 9, RefusedDuplicate),
            entry(2, 7, RefusedStale),
            entry(2, 9, Charged),
        ];
        let verdict = verdict(&ledger, &[1, 2]);
        assert_eq!(verdict.violations(), Vec::<String>::new());
        assert_eq!((verdict.due, verdict.charged), (2, 2));
        assert_eq!((verdict.refused_stale, verdict.refused_duplicate), (1, 1));
    }

    #[test]
    fn each_violation_is_found() {
        let correct = [entry(1, 7, Outcome::Charged), entry(2, 8, Outcome::Charged)];
        let with = |extra: LedgerEntry| [&correct[..], &[extra]].concat();

        let twice = verdict(&with(entry(1, 8, Outcome::Charged)), &[1, 2]);
        assert_eq!((twice.double_charged, twice.violations()), (1, vec!["1 charged twice".into()]));

        let missed = verdict(&correct[..1], &[1]);
        assert_eq!((missed.missed, missed.violations()), (1, vec!["1 due and not charged".into()]));

        let not_due = verdict(&with(entry(3, 8, Outcome::Charged)), &[1, 2, 3]);
        assert_eq!((not_due.not_due, not_due.violations()), (1, vec!["1 charged and not due".into()]));

        let other_period =
            verdict(&with(LedgerEntry { period: "1999-01-01".into(), ..correct[1].clone() }), &[1, 2]);
        assert_eq!((other_period.not_due, other_period.not_recorded), (1, 1));

        let stale = verdict(&[correct[1].clone(), correct[0].clone()], &[1, 2]);
        assert_eq!(stale.violations(), ["1 charged with a stale token"]);

        let wrong_amount = verdict(
            &[LedgerEntry { amount_cents: 9_900, ..correct[0].clone() }, correct[1].clone()],
            &[1, 2],
        );
        assert_eq!(wrong_amount.violations(), ["1 charged with an amount that is not the price"]);

        assert_eq!(verdict(&correct, &[1]).violations(), ["1 charged and not recorded in the database"]);
        assert_eq!(
            verdict(&correct[..1], &[1, 2]).violations(),
            ["1 due and not charged", "1 recorded in the database and not charged"]
        );
    }
}
