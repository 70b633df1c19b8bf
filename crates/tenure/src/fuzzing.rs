//! What the fuzz targets call: a parser that no user can call. In no other build.

use tenure_core::{Config, Error, StoreUrl};

/// What the settings of a URL make of the defaults, apart from its store's own.
///
/// # Errors
/// When one of them cannot work.
pub fn config(url: &StoreUrl) -> Result<Config, Error> {
    crate::connect::settings(url, Config::new())
}
