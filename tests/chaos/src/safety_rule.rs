//! Disables a safety rule in the whole process, to show that a trial detects it.

use std::fmt;

use anyhow::Result;
use tenure_cas::rules::CasRule;
use tenure_core::failpoints::SafetyRule;

/// A safety rule: of the engine or a backend, or of the recipe for stores that compare and swap.
#[derive(Clone, Copy)]
pub(crate) enum Rule {
    Safety(SafetyRule),
    Cas(CasRule),
}

impl fmt::Debug for Rule {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Safety(rule) => rule.fmt(f),
            Self::Cas(rule) => rule.fmt(f),
        }
    }
}

/// The rule that the candidate of a `stopped-process` trial disables.
pub(crate) const OF_STOPPED_PROCESS: Rule = Rule::Safety(SafetyRule::CheckClock);

/// Disables `rule` until the process ends.
#[cfg(tenure_mutants)]
pub(crate) fn disable(rule: Rule) -> Result<()> {
    match rule {
        Rule::Safety(rule) => tenure_core::failpoints::disable_everywhere(rule),
        Rule::Cas(rule) => tenure_cas::rules::disable_everywhere(rule),
    }
    Ok(())
}

/// Fails: this build cannot disable rules.
///
/// # Errors
/// Always.
#[cfg(not(tenure_mutants))]
pub(crate) fn disable(rule: Rule) -> Result<()> {
    anyhow::bail!("cannot disable {rule:?}: this build has no failpoints; build with `--cfg tenure_mutants`")
}
