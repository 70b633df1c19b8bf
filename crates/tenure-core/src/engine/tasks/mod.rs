//! Sessions, candidates, terms and their entries, and the tasks that drive them.
//!
//! | file | what |
//! |---|---|
//! | `events` | what sessions and terms tell the elector's task |
//! | `tokens` | notes the fencing tokens that were seen, and reports one that has gone back |
//! | `in_flight_work` | counts the work of a term, and the polls of it |
//! | `entry_value` | the values that are set for an entry |
//! | `session` | what all elections of an elector share, and how it ends |
//! | `candidate_entry` | stores the values that are set for an entry |
//! | `term`, `parent` | one leadership, and the one on which it depends |
//! | `work` | runs the work of a term, cancels and drops it on time |
//! | `elections` | the latest term in each election, and the values of the candidates there |
//! | `session_task` | the task of a session: heartbeats, repeated withdrawals, closing |
//! | `session_opening`, `openings` | opens a session; the sessions that are being opened |
//! | `watches` | the watches on the entries of the terms of a session |
//! | `requests` | the requests of candidates, and their outcomes |
//! | `candidate` | what the elector's task knows of a candidate |
//! | `campaigns` | the commands of campaigns to the elector's task |
//! | `elector_task`, `actions` | the task of an elector: it owns all candidates and sessions, and changes their states |
//! | `observe` | the task of an observer |
//!
//! Each file imports only files above it in this table, except that `elector_task` and `actions` are one type. Any thread may end a
//! term or a session, which then sends an event; everything else happens in the elector's task.

mod actions;
pub(crate) mod campaigns;
pub(crate) mod candidate;
mod candidate_entry;
pub(crate) mod elections;
pub(crate) mod elector_task;
pub(crate) mod entry_value;
pub(crate) mod events;
pub(crate) mod in_flight_work;
pub(crate) mod observe;
mod openings;
mod parent;
mod requests;
pub(crate) mod session;
pub(crate) mod session_opening;
mod session_task;
pub(crate) mod term;
pub(crate) mod tokens;
mod watches;
mod work;
