//! The resume file on systems where no lock lasts exactly as long as a process: it cannot be opened.

use std::{convert::Infallible, io, path::Path};

use super::{Contents, Durability, EarlierContents, NEEDS_LINUX};

/// A resume file whose lock this process holds. There is none on this system.
#[derive(Debug)]
pub(crate) struct ResumeFile(Infallible);

impl ResumeFile {
    /// Refuses every file.
    pub(crate) fn open(_: &Path) -> Result<(Self, EarlierContents), String> {
        Err(NEEDS_LINUX.to_owned())
    }

    pub(crate) fn write(&self, _: Contents, _: Durability) -> io::Result<()> {
        match self.0 {}
    }

    pub(crate) fn path(&self) -> &Path {
        match self.0 {}
    }
}
