//! The summary of a run, as a table and as a JSON object.

use std::{fmt::Write, path::Path};

use serde_json::{Value, json};

use super::{
    args::Args,
    cluster::{InjectedFault, RunRecord},
    ledger_reader::{LedgerEntry, LedgerReader},
    scenario::{FaultKind, Scenario},
    verdict::{Verdict, check},
};
use crate::db::{Database, Term};

/// A fault and its effect.
#[derive(Clone, Debug)]
pub(crate) struct Fault {
    pub(crate) injected: InjectedFault,
    /// The time without charges: from the fault to the first request of the next leader, or of the same one after it
    /// was continued.
    pub(crate) gap_ms: Option<i64>,
}

#[derive(Debug)]
pub(crate) struct Summary {
    pub(crate) seed: u64,
    pub(crate) servers: u32,
    pub(crate) store: String,
    pub(crate) begun_at: i64,
    pub(crate) ended_at: i64,
    pub(crate) verdict: Verdict,
    pub(crate) faults: Vec<Fault>,
    pub(crate) terms: Vec<Term>,
    pub(crate) ledger: Vec<LedgerEntry>,
    /// Empty if the run is correct.
    pub(crate) violations: Vec<String>,
}

impl Summary {
    /// Reads the ledger and the database, and compares them with the scenario.
    pub(crate) async fn create(
        args: &Args,
        seed: u64,
        store: &str,
        scenario: &Scenario,
        record: RunRecord,
        ledger: &Path,
        database: &Database,
    ) -> anyhow::Result<Self> {
        let ledger = LedgerReader::open(ledger).await?.entries().await?;
        let recorded = database.recorded().await?;
        let verdict = check(&scenario.renewals(), &ledger, &recorded);
        let mut violations = verdict.violations();
        violations.extend(record.errors);
        let (planned, injected) = (scenario.faults.len(), record.faults.len());
        if injected < planned {
            violations.push(format!("only {injected} of {planned} faults were injected"));
        }
        let faults = record
            .faults
            .into_iter()
            .map(|injected| Fault { gap_ms: gap_ms(&injected, &ledger), injected })
            .collect();
        Ok(Self {
            seed,
            servers: args.servers,
            store: without_password(store),
            begun_at: record.begun_at,
            ended_at: record.ended_at,
            verdict,
            faults,
            terms: database.terms().await?,
            ledger,
            violations,
        })
    }

    fn count(&self, kind: FaultKind) -> usize {
        self.faults.iter().filter(|fault| fault.injected.kind == kind).count()
    }

    pub(crate) fn max_gap_ms(&self) -> i64 {
        self.faults.iter().filter_map(|fault| fault.gap_ms).max().unwrap_or(0)
    }

    pub(crate) fn seconds(&self) -> f64 {
        (self.ended_at - self.begun_at) as f64 / 1000.0
    }

    /// The lines of the table: a number, and what is counted.
    pub(crate) fn counts(&self) -> Vec<(usize, &'static str)> {
        let verdict = &self.verdict;
        vec![
            (verdict.due, "renewals fell due"),
            (verdict.charged, "charges were made"),
            (verdict.double_charged, "charged twice"),
            (verdict.missed, "missed"),
            (verdict.not_due, "charged and not due"),
            (verdict.refused_duplicate, "refused as duplicates (charged before a crash, recorded after it)"),
            (verdict.refused_stale, "refused as stale (sent by a former leader)"),
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
        // Writing to a string cannot fail.
        for (count, what) in self.counts() {
            let _ = writeln!(table, "  {count:>7}  {what}");
        }
        if !self.faults.is_empty() {
            let _ = writeln!(
                table,
                "\n  {:>8}  {:5}  {:13} {:13} no charges for",
                "at", "fault", "leader", "next leader"
            );
        }
        for fault in &self.faults {
            let injected = &fault.injected;
            let _ = writeln!(
                table,
                "  {:>6.1} s  {:5}  {:13} {:13} {}",
                (injected.at - self.begun_at) as f64 / 1000.0,
                injected.kind.as_str(),
                injected.victim,
                injected.next_leader.as_ref().map_or("the same", |(_, next)| next),
                fault.gap_ms.map_or("unknown".to_owned(), |gap| format!("{gap} ms")),
            );
        }
        let _ = match self.violations.as_slice() {
            [] => writeln!(table, "\n  OK: every renewal was charged exactly once.\n"),
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
                    "kind": fault.injected.kind.as_str(),
                    "at_ms": fault.injected.at - self.begun_at,
                    "leader": fault.injected.victim,
                    "token": fault.injected.token,
                    "next": fault.injected.next_leader.as_ref().map(|(_, next)| next),
                    "next_seen_ms": fault.injected.next_leader.as_ref().map(|(at, _)| at - fault.injected.at),
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
            "elapsed_ms": self.ended_at - self.begun_at,
            "seed": self.seed,
            "servers": self.servers,
            "store": self.store,
            "faults": faults,
            // Only the first lines; the table also has the logs.
            "violations": self.violations.iter().filter_map(|text| text.lines().next()).collect::<Vec<_>>(),
        })
    }
}

/// The time without charges after a fault, by the provider's ledger.
///
/// Requests that the victim sent before the fault may arrive after it. So only the requests of other leaders count,
/// and the victim's after it was continued.
fn gap_ms(fault: &InjectedFault, ledger: &[LedgerEntry]) -> Option<i64> {
    let continued_at = match fault.kind {
        FaultKind::Kill => i64::MAX,
        FaultKind::Pause => fault.recovered_at.unwrap_or(i64::MAX),
    };
    ledger
        .iter()
        .filter(|entry| {
            entry.token > fault.token || entry.token == fault.token && entry.received_at >= continued_at
        })
        .map(|entry| entry.received_at)
        .min()
        .map(|at| (at - fault.at).max(0))
}

fn without_password(store: &str) -> String {
    // Parsing cannot fail here, because the URL was parsed before.
    let Ok(url) = store.parse::<tenure::StoreUrl>() else { return String::new() };
    // `StoreUrl` prints the values of settings that were read, except passwords.
    for setting in ["ttl", "drift", "grace_period", "request_timeout", "layout", "tick", "schema"] {
        let _ = url.text(setting);
    }
    url.to_string()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::payment_api::Outcome;

    fn entry(token: i64, received_at: i64) -> LedgerEntry {
        let (period, outcome) = ("2026-12-21".to_owned(), Outcome::Charged);
        LedgerEntry { subscription: 1, period, amount_cents: 1, token, outcome, received_at }
    }

    fn fault(kind: FaultKind) -> InjectedFault {
        let victim = "a".into();
        InjectedFault { kind, at: 1_000, victim, token: 7, recovered_at: Some(5_000), next_leader: None }
    }

    #[test]
    fn settings_are_shown_and_passwords_are_not() {
        let shown = without_password("etcd://app:horse@127.0.0.1:2379/acme?ttl=2s&password_env=X&unknown=y");
        assert_eq!(shown, "etcd://app:***@127.0.0.1:2379/acme?password_env=***&ttl=2s&unknown=***");
    }

    #[test]
    fn late_requests_of_a_killed_leader_do_not_end_the_gap() {
        let ledger = [entry(7, 900), entry(7, 1_002), entry(9, 1_040), entry(9, 1_050)];
        assert_eq!(gap_ms(&fault(FaultKind::Kill), &ledger), Some(40));
        assert_eq!(gap_ms(&fault(FaultKind::Kill), &ledger[..2]), None);
    }

    #[test]
    fn a_leader_that_stays_leader_ends_the_gap_when_it_is_continued() {
        let ledger = [entry(7, 1_002), entry(7, 5_003)];
        assert_eq!(gap_ms(&fault(FaultKind::Pause), &ledger), Some(4_003));
        let with_next_leader = [entry(7, 1_002), entry(9, 4_500), entry(7, 5_003)];
        assert_eq!(gap_ms(&fault(FaultKind::Pause), &with_next_leader), Some(3_500));
    }
}
