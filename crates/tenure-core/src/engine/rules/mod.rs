//! The rules of leader election: pure functions and data, without `await`, tasks or I/O.
//!
//! | file | rule |
//! |---|---|
//! | `window` | until when leadership may be assumed: the deadline |
//! | `heartbeat` | how often heartbeats are sent, which one confirms which, and how large a grace period they allow |
//! | `expiry` | until when the store may keep a session in which no heartbeat is sent any more |
//! | `end` | by when work has to stop once a session or a term has ended |
//! | `candidate_state` | what a candidate does in which state: the state machine of campaigns and leaderships |
//! | `pending_withdrawals` | how often a withdrawal is repeated whose request may still be executed |
//! | `token_marks` | when a fencing token has gone back |

pub(crate) mod candidate_state;
pub(crate) mod end;
pub(crate) mod expiry;
pub(crate) mod heartbeat;
pub(crate) mod pending_withdrawals;
pub(crate) mod token_marks;
pub(crate) mod window;
