//! The books are checked: what was due, what the provider charged, and what the database holds for paid.

use std::collections::{HashMap, HashSet};

use super::books::Entry;
use crate::{
    db::{Recorded, Renewal},
    payment::Outcome,
};

/// What the books say.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Verdict {
    /// Renewals that had to be charged.
    pub(crate) due: usize,
    /// Charges that the provider made.
    pub(crate) charged: usize,
    /// Charges beyond the first of a renewal.
    pub(crate) double_charged: usize,
    /// Renewals that were due and not charged.
    pub(crate) missed: usize,
    /// Charges for what was not due.
    pub(crate) not_due: usize,
    /// Charges of another amount than the price.
    pub(crate) wrong_amount: usize,
    /// Renewals charged, of which the database knows nothing.
    pub(crate) not_recorded: usize,
    /// Renewals that the database holds for paid, and the provider has not charged.
    pub(crate) recorded_only: usize,
    /// Charges made under a token lower than one that the provider had seen.
    pub(crate) charged_stale: usize,
    pub(crate) refused_stale: usize,
    pub(crate) refused_duplicate: usize,
}

pub(crate) fn check(due: &[Renewal], ledger: &[Entry], recorded: &[Recorded]) -> Verdict {
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
    /// What must not be, in words.
    pub(crate) fn violations(&self) -> Vec<String> {
        [
            (self.double_charged, "charged twice"),
            (self.missed, "due and not charged"),
            (self.not_due, "charged and not due"),
            (self.wrong_amount, "charged with another amount than the price"),
            (self.not_recorded, "charged and not recorded in the database"),
            (self.recorded_only, "recorded in the database and not charged"),
            (self.charged_stale, "charged under a stale token"),
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

    fn entry(subscription: i64, token: i64, outcome: Outcome) -> Entry {
        let period = renewal(subscription).request().period;
        Entry { subscription, period, amount_cents: 990, token, outcome, received_at: 0 }
    }

    fn record(subscription: i64) -> Recorded {
        Recorded { subscription, period: renewal(subscription).request().period, amount_cents: 990 }
    }

    fn verdict(ledger: &[Entry], recorded: &[i64]) -> Verdict {
        let recorded: Vec<_> = recorded.iter().copied().map(record).collect();
        check(&[renewal(1), renewal(2)], ledger, &recorded)
    }

    #[test]
    fn clean_books_have_no_violation_whatever_was_refused() {
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
    fn forged_books_are_found_out() {
        let clean = [entry(1, 7, Outcome::Charged), entry(2, 8, Outcome::Charged)];
        let with = |more: Entry| [&clean[..], &[more]].concat();

        let twice = verdict(&with(entry(1, 8, Outcome::Charged)), &[1, 2]);
        assert_eq!((twice.double_charged, twice.violations()), (1, vec!["1 charged twice".into()]));

        let missed = verdict(&clean[..1], &[1]);
        assert_eq!((missed.missed, missed.violations()), (1, vec!["1 due and not charged".into()]));

        let not_due = verdict(&with(entry(3, 8, Outcome::Charged)), &[1, 2, 3]);
        assert_eq!((not_due.not_due, not_due.violations()), (1, vec!["1 charged and not due".into()]));

        let other_period = verdict(&with(Entry { period: "1999-01-01".into(), ..clean[1].clone() }), &[1, 2]);
        assert_eq!((other_period.not_due, other_period.not_recorded), (1, 1));

        let stale = verdict(&[clean[1].clone(), clean[0].clone()], &[1, 2]);
        assert_eq!(stale.violations(), ["1 charged under a stale token"]);

        let dear = verdict(&[Entry { amount_cents: 9_900, ..clean[0].clone() }, clean[1].clone()], &[1, 2]);
        assert_eq!(dear.violations(), ["1 charged with another amount than the price"]);

        assert_eq!(verdict(&clean, &[1]).violations(), ["1 charged and not recorded in the database"]);
        assert_eq!(
            verdict(&clean[..1], &[1, 2]).violations(),
            ["1 due and not charged", "1 recorded in the database and not charged"]
        );
    }
}
