//! Tests of the repository: its documentation, and crates outside the workspace that use it.

mod docs;
mod hazards;
mod newcomer;
mod third_party;
mod vocabulary;
