//! Billing.
fn main() {}
