//! Disables a safety rule in the whole process, to show that a trial detects it.

use anyhow::Result;
use tenure_core::failpoints::SafetyRule;

/// The rule that the candidate of a `stopped-process` trial disables.
pub(crate) const OF_STOPPED_PROCESS: SafetyRule = SafetyRule::CheckClock;

/// Disables `rule` until the process ends.
#[cfg(tenure_mutants)]
pub(crate) fn disable(rule: SafetyRule) -> Result<()> {
    tenure_core::failpoints::disable_everywhere(rule);
    Ok(())
}

/// Fails: this build cannot disable rules.
///
/// # Errors
/// Always.
#[cfg(not(tenure_mutants))]
pub(crate) fn disable(rule: SafetyRule) -> Result<()> {
    anyhow::bail!("cannot disable {rule:?}: this build has no failpoints; build with `--cfg tenure_mutants`")
}
