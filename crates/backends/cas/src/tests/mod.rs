//! Tests of the recipe over the store in memory.

mod directed;
mod recipe;
mod review;
