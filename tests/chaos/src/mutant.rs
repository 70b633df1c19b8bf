//! One rule, broken on purpose in this whole process, to see that a trial shows it.

use anyhow::Result;
use tenure_core::mutants::Rule;

/// What a process that was stopped breaks.
pub(crate) const COMPARE_THE_CLOCK: Rule = Rule::CompareTheClock;

/// Breaks `rule` for good.
#[cfg(tenure_mutants)]
pub(crate) fn choose(rule: Rule) -> Result<()> {
    tenure_core::mutants::break_everywhere(rule);
    Ok(())
}

/// Fails.
///
/// # Errors
/// In this build no rule can be broken.
#[cfg(not(tenure_mutants))]
pub(crate) fn choose(rule: Rule) -> Result<()> {
    anyhow::bail!("{rule:?} can be broken only in a build with `--cfg tenure_mutants`")
}
