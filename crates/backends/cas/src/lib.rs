//! Leader election over any store that can compare and swap a record.
//!
//! An adapter implements [`CasStore`]: read, swap, delete, list, hints of changes, and an epoch. [`CasBackend`] makes a
//! [`Backend`](tenure_core::spi::Backend) of it. All rules are here and none in an adapter.
//!
//! # Records
//!
//! | Key | Content | Swapped by |
//! |---|---|---|
//! | `s/ID` | a session: `live`, with its beat and its TTL, or `ended`, for good | its owner, for each heartbeat; anyone who has timed it, to end it |
//! | `e/NAME` | an election: the fencing token, and the queue of slots, of which the first leads | a candidate that enters or leaves, or a process that removes slots of ended sessions |
//! | `store` | the identity of the store, and the last epoch in which candidates may lead | a process that has waited in a new epoch |
//!
//! A record is one line of JSON. A session serves all elections of an elector, so that a heartbeat is one swap. An election's record is never
//! deleted.
//!
//! # Rules
//!
//! Each rule is stated in one place. `C` numbers are those of `docs/assurance/hazards.md` in the repository;
//! `docs/assurance/compare-and-swap.md` derives why the rules suffice, and says how long a takeover takes and what the limits are.
//!
//! | Rule | Hazards | Where |
//! |---|---|---|
//! | A window is extended by a session swap only, from before it was sent, and only if its nonce stands | C8, C10, C13, C4 | `session.rs`: `beat` |
//! | A session is timed by the challenger's clock: TTL and drift bound from the answer that showed the beat | C1, C14 | `timers.rs` |
//! | Timers belong to the elector; once the predecessor is silent, all sessions ahead are timed | C16 | `shared.rs`, `challenger.rs`: `advance` |
//! | A session that has stood still is ended by a swap; absence alone proves nothing | C11 | `challenger.rs`: `challenge` |
//! | Slots go after their session was read as ended, or by their owner; a new head has one new token | C5 | `challenger.rs`: `advance`; `queue.rs` |
//! | A withdrawal is a swap that was done | C6, C12 | `session.rs`: `withdraw` |
//! | A later epoch ends sessions and restarts timers; it is checked inside the swap | C5, C15 | `client.rs`: `refresh_epoch`; `session.rs`: `epoch`; `timers.rs`: `start_epoch` |
//! | Nobody leads in a new epoch before all windows of earlier ones have closed: an entry may be lost | C5 | `settle.rs` |
//! | Every body has a nonce | C2 | `record.rs` |
//! | Entering has full jitter; all else is retried at once | | `session.rs`: `enter`; `client.rs`: `change_election` |
//! | Observers see a vacancy when the head has ended, or stood still for a TTL | | `observe.rs` |
//! | Garbage is timed, ended, and later deleted | | `garbage.rs` |
//! | A store that ignores conditions is refused | C3 | `probe.rs` |
//! | No expiry by the store is relied upon | C9 | there is none in [`CasStore`] |
//!
//! # Assumptions
//!
//! - The store's swap is linearizable, and the store removes no record by itself.
//! - Clock rates of any two hosts differ from real time by less than the drift bound each.
//! - A failover that loses acknowledged writes loses the last ones, of all keys together, and raises the epoch. A store that does not say so
//!   ([`EpochState::Unknown`]) is refused by default: neither promise holds across its failovers. All candidates of a store that can lose
//!   writes have the same TTL: after a failover the others wait for the longest TTL in the records that are left.
//! - Nobody edits the records. An operator who ends a session or removes a slot can make two leaders for a moment; their tokens differ if the
//!   token is raised with the head.
#![doc(test(attr(deny(warnings))))]

mod backend;
mod challenger;
mod client;
#[cfg(any(test, all(tenure_mutants, feature = "memory")))]
pub mod directed;
mod garbage;
mod head_slot;
mod hints;
#[cfg(any(test, feature = "memory"))]
pub mod memory;
mod observe;
mod probe;
mod queue;
mod record;
pub mod rules;
mod session;
mod settings;
mod settle;
mod shared;
mod store;
#[cfg(test)]
mod tests;
mod timers;
mod watcher;

pub use backend::CasBackend;
pub use head_slot::HeadSlot;
pub use settings::CasSettings;
pub use store::{CasStore, Epoch, EpochState, Freshness, Record, Swap, Version};
