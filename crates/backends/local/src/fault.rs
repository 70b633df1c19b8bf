//! What an I/O error means to the engine.

use std::{io, path::Path};

use tenure_core::spi::{BackendError, BackendErrorKind};

/// An I/O error met while doing `what` to `path`, classified.
pub(crate) fn fault(what: &str, path: &Path, error: io::Error) -> BackendError {
    use io::ErrorKind as K;
    let kind = match error.kind() {
        // A link where a file belongs is not followed.
        _ if error.raw_os_error() == Some(rustix::io::Errno::LOOP.raw_os_error()) => {
            BackendErrorKind::Invalid
        }
        K::PermissionDenied | K::ReadOnlyFilesystem => BackendErrorKind::Unauthorized,
        K::NotADirectory | K::IsADirectory | K::InvalidFilename | K::Unsupported | K::InvalidInput => {
            BackendErrorKind::Invalid
        }
        _ => BackendErrorKind::Unavailable,
    };
    BackendError::with_source(kind, format!("cannot {what} {}: {error}", path.display()), error)
}

/// The same for a directory that is about to be used for the first time: nothing is under way
/// that waiting could bring back, and whoever named it is there to be told.
pub(crate) fn unusable(what: &str, path: &Path, error: io::Error) -> BackendError {
    let fault = fault(what, path, error);
    if fault.is_permanent() {
        return fault;
    }
    BackendError::with_source(BackendErrorKind::Invalid, fault.to_string(), fault)
}
