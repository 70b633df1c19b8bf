//! An internal function that the fuzz targets call. Compiled with `--cfg fuzzing` only.
#![allow(missing_docs, reason = "not part of the API")]

use tenure_core::{Config, Error, StoreUrl};

pub fn config(url: &StoreUrl) -> Result<Config, Error> {
    crate::connect::apply_url_settings(url, Config::new())
}
