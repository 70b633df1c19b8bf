//! Sessions, campaigns, terms and their entries, and the tasks that drive them.
//!
//! | file | what |
//! |---|---|
//! | `in_flight_work` | counts the work of a term, and the polls of it |
//! | `registered_entry` | the entries of a session that exist in the store |
//! | `session` | what all elections of an elector share, and how it ends |
//! | `term`, `parent` | one leadership, and the one on which it depends |
//! | `work` | runs the work of a term, cancels and drops it on time |
//! | `events` | what the task of the active terms receives |
//! | `pending_entry` | an entry to withdraw, with the request that created it |
//! | `entry_watcher` | watches entries for backends that watch each by itself |
//! | `active_terms` | the task for all terms of a session, until their entries have been withdrawn |
//! | `session_task` | the task of a session: heartbeats, their confirmation, repeated withdrawals, closing |
//! | `session_pool` | opens a session when one is needed |
//! | `elections` | the slot of an elector in each election |
//! | `candidate_value` | the values of candidates, and how they are stored |
//! | `candidacy` | one candidate under one session, from entering to leading or leaving |
//! | `campaign` | the task of a campaign: a candidacy under one session after another |
//! | `observe` | the task of an observer |

mod active_terms;
pub(crate) mod campaign;
pub(crate) mod candidacy;
pub(crate) mod candidate_value;
pub(crate) mod elections;
mod entry_watcher;
mod events;
pub(crate) mod in_flight_work;
pub(crate) mod observe;
mod parent;
mod pending_entry;
mod registered_entry;
pub(crate) mod session;
pub(crate) mod session_pool;
mod session_task;
pub(crate) mod term;
mod work;
