//! Threads that enforce deadlines, whatever the engine and the application do.
//!
//! | file | what |
//! |---|---|
//! | `watchdog` | cancels and drops work on time |
//! | `abort_timer` | aborts the process when work goes on past its deadline, if that is configured |
//! | `alarm` | the timer on which both wait |

pub(crate) mod abort_timer;
mod alarm;
pub(crate) mod watchdog;
