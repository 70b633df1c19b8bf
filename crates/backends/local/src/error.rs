//! Classifies I/O errors for the engine.

use std::{io, path::Path};

use tenure_core::spi::{BackendError, BackendErrorKind};

/// The error of an `action` on `path` that failed with `error`. The message contains the cause.
pub(crate) fn io_error(action: &str, path: &Path, error: &io::Error) -> BackendError {
    BackendError::new(kind(error), message(action, path, error))
}

/// Like [`io_error`], but permanent: nothing is in progress that waiting could save, and the caller who chose the
/// directory should learn of the error at once.
pub(crate) fn open_error(action: &str, path: &Path, error: &io::Error) -> BackendError {
    let kind = match kind(error) {
        BackendErrorKind::Unauthorized => BackendErrorKind::Unauthorized,
        _ => BackendErrorKind::Invalid,
    };
    BackendError::new(kind, message(action, path, error))
}

fn kind(error: &io::Error) -> BackendErrorKind {
    use io::ErrorKind as K;
    match error.kind() {
        // A symbolic link in the place of a file is not followed.
        _ if error.raw_os_error() == Some(rustix::io::Errno::LOOP.raw_os_error()) => {
            BackendErrorKind::Invalid
        }
        K::PermissionDenied | K::ReadOnlyFilesystem => BackendErrorKind::Unauthorized,
        K::NotADirectory | K::IsADirectory | K::InvalidFilename | K::Unsupported | K::InvalidInput => {
            BackendErrorKind::Invalid
        }
        _ => BackendErrorKind::Unavailable,
    }
}

fn message(action: &str, path: &Path, error: &io::Error) -> String {
    format!("cannot {action} {}: {error}", path.display())
}
