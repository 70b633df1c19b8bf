//! Tests of the recipe over the store in memory.

mod chaos;
mod directed;
mod host;
mod recipe;
mod review;
