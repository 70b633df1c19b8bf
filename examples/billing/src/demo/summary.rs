//! What a run comes to: a table for people, an object for programs.

use std::{fmt::Write, path::Path};

use serde_json::{Value, json};

use super::{
    Args,
    books::{Books, Entry},
    check::{Verdict, check},
    scenario::{FaultKind, Scenario},
    stage::{Ran, Struck},
};
use crate::db::{Database, Term};

/// A fault, and how long nobody charged.
#[derive(Clone, Debug)]
pub(crate) struct Fault {
    pub(crate) struck: Struck,
    /// From the fault to the first request under a leader that works: the next one, or the
    /// same one continued.
    pub(crate) gap_ms: Option<i64>,
}

/// A run, summed up.
#[derive(Debug)]
pub(crate) struct Summary {
    pub(crate) seed: u64,
    pub(crate) servers: u32,
    pub(crate) store: String,
    pub(crate) begun: i64,
    pub(crate) ended: i64,
    pub(crate) verdict: Verdict,
    pub(crate) faults: Vec<Fault>,
    pub(crate) terms: Vec<Term>,
    pub(crate) ledger: Vec<Entry>,
    /// Empty when all is well.
    pub(crate) violations: Vec<String>,
}

impl Summary {
    /// Reads the books, and checks them.
    pub(crate) async fn draw_up(
        args: &Args,
        seed: u64,
        store: &str,
        scenario: &Scenario,
        ran: Ran,
        ledger: &Path,
        database: &Database,
    ) -> anyhow::Result<Self> {
        let ledger = Books::open(ledger).await?.entries().await?;
        let recorded = database.recorded().await?;
        let verdict = check(&scenario.renewals(), &ledger, &recorded);
        let mut violations = verdict.violations();
        violations.extend(ran.trouble);
        let (wanted, struck) = (scenario.faults.len(), ran.struck.len());
        if struck < wanted {
            violations.push(format!("only {struck} of {wanted} faults were injected"));
        }
        let faults =
            ran.struck.into_iter().map(|struck| Fault { gap_ms: gap_ms(&struck, &ledger), struck }).collect();
        Ok(Self {
            seed,
            servers: args.servers,
            store: without_password(store),
            begun: ran.begun,
            ended: ran.ended,
            verdict,
            faults,
            terms: database.terms().await?,
            ledger,
            violations,
        })
    }

    fn count(&self, kind: FaultKind) -> usize {
        self.faults.iter().filter(|fault| fault.struck.kind == kind).count()
    }

    pub(crate) fn max_gap_ms(&self) -> i64 {
        self.faults.iter().filter_map(|fault| fault.gap_ms).max().unwrap_or(0)
    }

    pub(crate) fn seconds(&self) -> f64 {
        (self.ended - self.begun) as f64 / 1000.0
    }

    /// The lines of the table: a number, and what it counts.
    pub(crate) fn counts(&self) -> Vec<(usize, &'static str)> {
        let verdict = &self.verdict;
        vec![
            (verdict.due, "renewals fell due"),
            (verdict.charged, "charges were made"),
            (verdict.double_charged, "charged twice"),
            (verdict.missed, "missed"),
            (verdict.not_due, "charged and not due"),
            (verdict.refused_duplicate, "refused as duplicates (charged before a crash, recorded after)"),
            (verdict.refused_stale, "refused as stale (sent by a leader of the past)"),
            (self.terms.len(), "terms of leadership"),
        ]
    }

    pub(crate) fn table(&self) -> String {
        let mut table = format!(
            "\nbilling demo: {} servers, {} kills, {} pauses, seed {}, {:.1} s, on {}\n\n",
            self.servers,
            self.count(FaultKind::Kill),
            self.count(FaultKind::Pause),
            self.seed,
            self.seconds(),
            self.store
        );
        // Writing to a String cannot fail.
        for (count, what) in self.counts() {
            let _ = writeln!(table, "  {count:>7}  {what}");
        }
        if !self.faults.is_empty() {
            let _ = writeln!(
                table,
                "\n  {:>8}  {:5}  {:13} {:13} nobody charged for",
                "at", "fault", "leader", "then"
            );
        }
        for fault in &self.faults {
            let struck = &fault.struck;
            let _ = writeln!(
                table,
                "  {:>6.1} s  {:5}  {:13} {:13} {}",
                (struck.at - self.begun) as f64 / 1000.0,
                struck.kind.as_str(),
                struck.victim,
                struck.next.as_ref().map_or("the same", |(_, next)| next),
                fault.gap_ms.map_or("unknown".to_owned(), |gap| format!("{gap} ms")),
            );
        }
        let _ = match self.violations.as_slice() {
            [] => writeln!(table, "\n  The books are right: every renewal charged once, nobody twice.\n"),
            violations => writeln!(table, "\n  WRONG:\n  - {}\n", violations.join("\n  - ")),
        };
        table
    }

    pub(crate) fn json(&self) -> Value {
        let verdict = &self.verdict;
        let faults: Vec<_> = self
            .faults
            .iter()
            .map(|fault| {
                json!({
                    "kind": fault.struck.kind.as_str(),
                    "at_ms": fault.struck.at - self.begun,
                    "leader": fault.struck.victim,
                    "token": fault.struck.token,
                    "next": fault.struck.next.as_ref().map(|(_, next)| next),
                    "next_seen_ms": fault.struck.next.as_ref().map(|(at, _)| at - fault.struck.at),
                    "gap_ms": fault.gap_ms,
                })
            })
            .collect();
        json!({
            "due": verdict.due,
            "charged": verdict.charged,
            "double_charged": verdict.double_charged,
            "missed": verdict.missed,
            "not_due": verdict.not_due,
            "wrong_amount": verdict.wrong_amount,
            "not_recorded": verdict.not_recorded,
            "recorded_only": verdict.recorded_only,
            "charged_stale": verdict.charged_stale,
            "refused_stale": verdict.refused_stale,
            "refused_duplicate": verdict.refused_duplicate,
            "leaders": self.terms.len(),
            "kills": self.count(FaultKind::Kill),
            "pauses": self.count(FaultKind::Pause),
            "max_gap_ms": self.max_gap_ms(),
            "elapsed_ms": self.ended - self.begun,
            "seed": self.seed,
            "servers": self.servers,
            "store": self.store,
            "faults": faults,
            // Without the logs that explain them; those are in the table.
            "violations": self.violations.iter().filter_map(|it| it.lines().next()).collect::<Vec<_>>(),
        })
    }
}

/// The time for which nobody charged, by the provider's ledger.
///
/// What a leader sent before it was struck may come in after; only what a leader sent that is
/// not the struck one counts, or the same one once it was continued.
fn gap_ms(struck: &Struck, ledger: &[Entry]) -> Option<i64> {
    let continued_at = match struck.kind {
        FaultKind::Kill => i64::MAX,
        FaultKind::Pause => struck.back_at.unwrap_or(i64::MAX),
    };
    ledger
        .iter()
        .filter(|entry| {
            entry.token > struck.token || entry.token == struck.token && entry.received_at >= continued_at
        })
        .map(|entry| entry.received_at)
        .min()
        .map(|at| (at - struck.at).max(0))
}

fn without_password(store: &str) -> String {
    // It prints no password; and it has been parsed before.
    store.parse::<tenure::StoreUrl>().map_or_else(|_| String::new(), |url| url.to_string())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::payment::Outcome;

    fn entry(token: i64, received_at: i64) -> Entry {
        let (period, outcome) = ("2026-12-21".to_owned(), Outcome::Charged);
        Entry { subscription: 1, period, amount_cents: 1, token, outcome, received_at }
    }

    fn struck(kind: FaultKind) -> Struck {
        Struck { kind, at: 1_000, victim: "a".into(), token: 7, back_at: Some(5_000), next: None }
    }

    #[test]
    fn what_the_dead_had_sent_does_not_end_the_time_without_a_leader() {
        let ledger = [entry(7, 900), entry(7, 1_002), entry(9, 1_040), entry(9, 1_050)];
        assert_eq!(gap_ms(&struck(FaultKind::Kill), &ledger), Some(40));
        assert_eq!(gap_ms(&struck(FaultKind::Kill), &ledger[..2]), None);
    }

    #[test]
    fn a_leader_that_stays_leader_ends_it_when_it_goes_on() {
        let ledger = [entry(7, 1_002), entry(7, 5_003)];
        assert_eq!(gap_ms(&struck(FaultKind::Pause), &ledger), Some(4_003));
        let moved = [entry(7, 1_002), entry(9, 4_500), entry(7, 5_003)];
        assert_eq!(gap_ms(&struck(FaultKind::Pause), &moved), Some(3_500));
    }
}
