//! The paths and file names of the store.

use std::{
    fs::{DirBuilder, File, Metadata, OpenOptions},
    io,
    os::unix::fs::{DirBuilderExt, MetadataExt, OpenOptionsExt},
    path::{Path, PathBuf},
};

use rustix::fs::OFlags;
use tenure_core::ElectionName;

const ENTRY_PREFIX: &str = "entry-";
const TEMP_PREFIX: &str = ".new-";
const RESIGN_PREFIX: &str = ".resign-";
const NUMBER_DIGITS: usize = 20;

/// The paths in the directory of a store.
///
/// Elections and tokens have a directory each. A fixed file name beside the elections would not work, because every
/// file name is also a legal election name.
#[derive(Clone, Debug)]
pub(crate) struct Layout {
    root: PathBuf,
}

impl Layout {
    pub(crate) fn new(root: PathBuf) -> Self {
        Self { root }
    }

    pub(crate) fn root(&self) -> &Path {
        &self.root
    }

    pub(crate) fn elections(&self) -> PathBuf {
        self.root.join("elections")
    }

    pub(crate) fn tokens(&self) -> PathBuf {
        self.root.join("tokens")
    }

    /// The directory of an election's entries.
    pub(crate) fn election(&self, name: &ElectionName) -> PathBuf {
        self.elections().join(name.as_str())
    }

    /// The file of an election's token counter.
    pub(crate) fn counter(&self, name: &ElectionName) -> PathBuf {
        self.tokens().join(name.as_str())
    }

    /// Creates the fixed directories that are missing, accessible to their owner only.
    pub(crate) fn create_dirs(&self) -> io::Result<()> {
        create_dir(&self.elections())?;
        create_dir(&self.tokens())
    }

    /// The first of the fixed directories in which every user of this machine can replace files, if there is one.
    ///
    /// An existing directory keeps its mode. In a root directory with the sticky bit, such as `/tmp`, a user cannot
    /// remove the directories of another user.
    pub(crate) fn world_writable_dir(&self) -> io::Result<Option<PathBuf>> {
        const OTHERS_WRITE: u32 = 0o002;
        const STICKY: u32 = 0o1000;
        for (dir, protecting_bits) in [(self.root.clone(), STICKY), (self.elections(), 0), (self.tokens(), 0)]
        {
            let mode = dir.metadata()?.mode();
            if mode & OTHERS_WRITE != 0 && mode & protecting_bits == 0 {
                return Ok(Some(dir));
            }
        }
        Ok(None)
    }
}

pub(crate) fn create_dir(path: &Path) -> io::Result<()> {
    let created = DirBuilder::new().recursive(true).mode(0o700).create(path);
    created.map_err(|error| match error.kind() {
        // As with `mkdir -p`, this is the error if a file, or a link to nowhere, is in the place of the directory.
        io::ErrorKind::AlreadyExists => {
            io::Error::new(io::ErrorKind::NotADirectory, "a file that is not a directory is in its place")
        }
        _ => error,
    })
}

/// The file name of an entry.
pub(crate) fn entry_file(number: u64) -> String {
    format!("{ENTRY_PREFIX}{number:020}")
}

/// The file name of an entry while it is being created.
pub(crate) fn temp_file(number: u64) -> String {
    format!("{TEMP_PREFIX}{number:020}")
}

/// The name of the file that requests the candidate of an entry to resign.
pub(crate) fn resign_request_file(number: u64) -> String {
    format!("{RESIGN_PREFIX}{number:020}")
}

/// The number of the entry whose candidate this file requests to resign; `None` for any other file.
pub(crate) fn resign_request_number(file: &str) -> Option<u64> {
    parse_number(file.strip_prefix(RESIGN_PREFIX)?)
}

/// The number in the file name of an entry; `None` for any other file.
pub(crate) fn entry_number(file: &str) -> Option<u64> {
    parse_number(file.strip_prefix(ENTRY_PREFIX)?)
}

/// Whether this is the file name of an entry that is being created.
pub(crate) fn is_temp_file(file: &str) -> bool {
    file.strip_prefix(TEMP_PREFIX).and_then(parse_number).is_some()
}

fn parse_number(digits: &str) -> Option<u64> {
    let valid = digits.len() == NUMBER_DIGITS && digits.bytes().all(|b| b.is_ascii_digit());
    if valid { digits.parse().ok().filter(|n| *n > 0) } else { None }
}

/// The options with which every file is opened.
///
/// A symbolic link in the place of a file is not followed, and opening a pipe does not block.
pub(crate) fn open_options() -> OpenOptions {
    let mut options = OpenOptions::new();
    options.custom_flags((OFlags::NOFOLLOW | OFlags::NONBLOCK).bits() as i32);
    options
}

/// Whether `path` still leads to the open file with this metadata.
pub(crate) fn is_same_file(path: &Path, open_file: &Metadata) -> io::Result<bool> {
    match path.symlink_metadata() {
        Ok(found) => Ok(found.dev() == open_file.dev() && found.ino() == open_file.ino()),
        Err(error) if is_not_found(&error) => Ok(false),
        Err(error) => Err(error),
    }
}

/// Whether the error says that the file, or a directory above it, does not exist.
pub(crate) fn is_not_found(error: &io::Error) -> bool {
    matches!(error.kind(), io::ErrorKind::NotFound | io::ErrorKind::NotADirectory)
}

/// Makes the file names in `dir` durable.
pub(crate) fn sync_dir(dir: &Path) -> io::Result<()> {
    File::open(dir)?.sync_all()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_exact_file_names_are_recognised() {
        assert_eq!(entry_number(&entry_file(7)), Some(7));
        assert_eq!(entry_number(&entry_file(u64::MAX)), Some(u64::MAX));
        assert!(is_temp_file(&temp_file(7)));
        assert_eq!(resign_request_number(&resign_request_file(7)), Some(7));
        for name in [
            "entry-7",
            "entry-00000000000000000000",
            "entry-+0000000000000000007",
            "entry-99999999999999999999",
            "entry-000000000000000000071",
            "xentry-00000000000000000007",
            ".new-7",
            "",
        ] {
            assert_eq!(entry_number(name), None, "{name}");
            assert!(!is_temp_file(name), "{name}");
            assert_eq!(resign_request_number(name), None, "{name}");
        }
    }

    #[test]
    fn no_election_name_collides_with_a_fixed_path() {
        let layout = Layout::new("/d".into());
        for name in ["elections", "tokens", ".tokens", "entry-00000000000000000001"] {
            let name = ElectionName::new(name).unwrap();
            assert_eq!(layout.election(&name).parent(), Some(layout.elections().as_path()));
            assert_eq!(layout.counter(&name).parent(), Some(layout.tokens().as_path()));
        }
    }
}
