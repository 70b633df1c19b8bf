//! Random numbers that are unique across processes.

/// 64 random bits, as [`number`] makes them.
pub(crate) fn upper_half() -> u64 {
    (number() >> 64) as u64
}

/// 128 random bits from the operating system.
///
/// A generator of this process is not used: its seed, made of the clock and the thread, may be shared by a forked process, a
/// resumed snapshot or a container started in the same instant.
pub(crate) fn number() -> u128 {
    let mut bytes = [0; 16];
    match getrandom::fill(&mut bytes) {
        Ok(()) => u128::from_ne_bytes(bytes),
        // The operating system has none, perhaps early at boot in a sandbox.
        Err(_) => fastrand::u128(..),
    }
}
