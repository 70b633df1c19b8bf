//! Random numbers that no other process has.

/// 128 bits from the system.
///
/// Not from a generator of this process: those are seeded from its clock and thread, which a forked
/// process, a resumed snapshot or a container started in the same instant may share.
pub(crate) fn number() -> u128 {
    let mut bytes = [0; 16];
    match getrandom::fill(&mut bytes) {
        Ok(()) => u128::from_ne_bytes(bytes),
        // The system has none to give, early at boot in a sandbox perhaps: better one of ours.
        Err(_) => fastrand::u128(..),
    }
}
