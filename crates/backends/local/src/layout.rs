//! Which file is where, and what the files are called.

use std::{
    fs::{DirBuilder, File, Metadata, OpenOptions},
    io,
    os::unix::fs::{DirBuilderExt, MetadataExt, OpenOptionsExt},
    path::{Path, PathBuf},
};

use rustix::fs::OFlags;
use tenure_core::ElectionName;

const ENTRY: &str = "entry-";
const NEW: &str = ".new-";
const RESIGN: &str = ".resign-";
const DIGITS: usize = 20;

/// The paths under one directory.
///
/// Elections and tokens have a directory each, because any name that a fixed file
/// could have beside the elections is a legal name of an election.
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

    /// The file of an election's counter.
    pub(crate) fn counter(&self, name: &ElectionName) -> PathBuf {
        self.tokens().join(name.as_str())
    }

    /// Makes the fixed directories where they are missing, for their owner alone.
    pub(crate) fn make(&self) -> io::Result<()> {
        make_dir(&self.elections())?;
        make_dir(&self.tokens())
    }
}

impl Layout {
    /// The first of the fixed directories that everybody on this machine may change, if there is one: one that was there already keeps
    /// its mode. In a root with the sticky bit, `/tmp` say, nobody can take another's directory away.
    pub(crate) fn everybodys(&self) -> io::Result<Option<PathBuf>> {
        const OTHERS_WRITE: u32 = 0o002;
        const STICKY: u32 = 0o1000;
        for (dir, shields) in [(self.root.clone(), STICKY), (self.elections(), 0), (self.tokens(), 0)] {
            let mode = dir.metadata()?.mode();
            if mode & OTHERS_WRITE != 0 && mode & shields == 0 {
                return Ok(Some(dir));
            }
        }
        Ok(None)
    }
}

pub(crate) fn make_dir(path: &Path) -> io::Result<()> {
    let made = DirBuilder::new().recursive(true).mode(0o700).create(path);
    made.map_err(|error| match error.kind() {
        // `mkdir -p` says so of a file, or of a link to nowhere, that stands where a directory is wanted.
        io::ErrorKind::AlreadyExists => {
            io::Error::new(io::ErrorKind::NotADirectory, "something that is no directory is in its place")
        }
        _ => error,
    })
}

pub(crate) fn entry_file(number: u64) -> String {
    format!("{ENTRY}{number:020}")
}

pub(crate) fn new_file(number: u64) -> String {
    format!("{NEW}{number:020}")
}

/// The file that asks the candidate of an entry to resign.
pub(crate) fn resign_file(number: u64) -> String {
    format!("{RESIGN}{number:020}")
}

/// The number of the entry whose candidate this file asks to resign; `None` for any other file.
pub(crate) fn resign_number(file: &str) -> Option<u64> {
    number(file.strip_prefix(RESIGN)?)
}

/// The number of an entry's file; `None` for any other file.
pub(crate) fn entry_number(file: &str) -> Option<u64> {
    number(file.strip_prefix(ENTRY)?)
}

/// Whether this is the name of an entry being made.
pub(crate) fn is_new_file(file: &str) -> bool {
    file.strip_prefix(NEW).and_then(number).is_some()
}

fn number(digits: &str) -> Option<u64> {
    let all = digits.len() == DIGITS && digits.bytes().all(|b| b.is_ascii_digit());
    if all { digits.parse().ok().filter(|n| *n > 0) } else { None }
}

/// How every file is opened: neither a link nor a pipe that somebody has put there
/// may lead elsewhere or block.
pub(crate) fn open_options() -> OpenOptions {
    let mut options = OpenOptions::new();
    options.custom_flags((OFlags::NOFOLLOW | OFlags::NONBLOCK).bits() as i32);
    options
}

/// Whether `path` still leads to the file that is open.
pub(crate) fn leads_to(path: &Path, file: &Metadata) -> io::Result<bool> {
    match path.symlink_metadata() {
        Ok(there) => Ok(there.dev() == file.dev() && there.ino() == file.ino()),
        Err(error) if is_absent(&error) => Ok(false),
        Err(error) => Err(error),
    }
}

/// Whether the error says that there is no such file, be it for want of a directory.
pub(crate) fn is_absent(error: &io::Error) -> bool {
    matches!(error.kind(), io::ErrorKind::NotFound | io::ErrorKind::NotADirectory)
}

/// Makes the names in `dir` durable.
pub(crate) fn sync_dir(dir: &Path) -> io::Result<()> {
    File::open(dir)?.sync_all()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_an_entrys_own_name_is_an_entry() {
        assert_eq!(entry_number(&entry_file(7)), Some(7));
        assert_eq!(entry_number(&entry_file(u64::MAX)), Some(u64::MAX));
        assert!(is_new_file(&new_file(7)));
        assert_eq!(resign_number(&resign_file(7)), Some(7));
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
            assert!(!is_new_file(name), "{name}");
            assert_eq!(resign_number(name), None, "{name}");
        }
    }

    #[test]
    fn no_election_takes_a_fixed_files_place() {
        let layout = Layout::new("/d".into());
        for name in ["elections", "tokens", ".tokens", "entry-00000000000000000001"] {
            let name = ElectionName::new(name).unwrap();
            assert_eq!(layout.election(&name).parent(), Some(layout.elections().as_path()));
            assert_eq!(layout.counter(&name).parent(), Some(layout.tokens().as_path()));
        }
    }
}
