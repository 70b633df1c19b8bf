//! Requests to the API server.

mod client;
mod load;
mod refusal;
mod watch;

pub(crate) use client::Client;
pub(crate) use refusal::{Resource, is_refused};
pub(crate) use watch::{Watch, WatchEvent};
