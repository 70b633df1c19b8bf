//! The safety rule "unknown is not empty", which can be disabled to check that a test fails without it.
//!
//! It can only be disabled with `--cfg tenure_mutants`.

#[cfg(tenure_mutants)]
thread_local! {
    static UNKNOWN_COUNTS_AS_EMPTY: std::cell::Cell<bool> = const { std::cell::Cell::new(false) };
}

/// Whether the rule is disabled on this thread: an unknown result then counts as "no process is left".
#[cfg(tenure_mutants)]
pub(super) fn unknown_counts_as_empty() -> bool {
    UNKNOWN_COUNTS_AS_EMPTY.get()
}

/// Always `false`.
#[cfg(not(tenure_mutants))]
pub(super) const fn unknown_counts_as_empty() -> bool {
    false
}

/// Disables the rule on this thread.
#[cfg(tenure_mutants)]
pub(super) fn disable() {
    UNKNOWN_COUNTS_AS_EMPTY.set(true);
}
