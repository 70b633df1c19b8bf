//! One rule, broken on purpose in this whole process, to see that a trial shows it.

use anyhow::Result;
use tenure_core::failpoints::SafetyRule;

/// What a process that was stopped breaks.
pub(crate) const COMPARE_THE_CLOCK: SafetyRule = SafetyRule::CheckClock;

/// Breaks `rule` for good.
#[cfg(tenure_mutants)]
pub(crate) fn choose(rule: SafetyRule) -> Result<()> {
    tenure_core::failpoints::disable_everywhere(rule);
    Ok(())
}

/// Fails.
///
/// # Errors
/// In this build no rule can be broken.
#[cfg(not(tenure_mutants))]
pub(crate) fn choose(rule: SafetyRule) -> Result<()> {
    anyhow::bail!("{rule:?} can be broken only in a build with `--cfg tenure_mutants`")
}
