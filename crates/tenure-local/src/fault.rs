//! What an I/O error means to the engine.

use std::{io, path::Path};

use tenure_core::spi::{BackendError, BackendErrorKind};

/// An I/O error met while doing `what` to `path`, classified.
pub(crate) fn fault(what: &str, path: &Path, error: io::Error) -> BackendError {
    use io::ErrorKind as K;
    let kind = match error.kind() {
        K::PermissionDenied | K::ReadOnlyFilesystem => BackendErrorKind::Unauthorized,
        K::NotADirectory | K::InvalidFilename | K::Unsupported | K::InvalidInput => BackendErrorKind::Invalid,
        _ => BackendErrorKind::Unavailable,
    };
    BackendError::with_source(kind, format!("cannot {what} {}: {error}", path.display()), error)
}
