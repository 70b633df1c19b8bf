//! The safety rule "unknown is not empty", which can be disabled to check that a test fails without it.
//!
//! Without `--cfg tenure_mutants` it cannot be disabled.

#[cfg(tenure_mutants)]
thread_local! {
    static UNKNOWN_IS_EMPTY: std::cell::Cell<bool> = const { std::cell::Cell::new(false) };
}

/// Whether an unknown result counts as "no process is left", on this thread.
#[cfg(tenure_mutants)]
pub(super) fn unknown_is_empty() -> bool {
    UNKNOWN_IS_EMPTY.get()
}

/// Never.
#[cfg(not(tenure_mutants))]
pub(super) const fn unknown_is_empty() -> bool {
    false
}

/// Disables the rule and prints, for `cargo xtask mutants`, whether the check notices. Returns whether the check passes with
/// the rule in force.
///
/// # Errors
/// When a process cannot be started.
#[cfg(tenure_mutants)]
pub(crate) fn try_mutants() -> std::io::Result<bool> {
    let whole = super::holds_on_without_a_listing()?;
    UNKNOWN_IS_EMPTY.set(true);
    let shows = !super::holds_on_without_a_listing()?;
    let survivors: &[&str] = if shows { &[] } else { &["UnknownIsEmpty"] };
    println!("{}", serde_json::json!({ "mutants": 1, "killed": u8::from(shows), "survivors": survivors }));
    Ok(whole)
}
