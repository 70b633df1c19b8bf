//! What the fuzz targets call: parsers that no user can call. In no other build.

use std::{
    fs::File,
    io,
    path::{Path, PathBuf},
};

use tenure_core::ElectionName;

use crate::{counter::Counter, entry, layout, layout::Layout, record};

/// The newest state of a file with two copies: its generation and its body.
///
/// # Errors
/// When the file cannot be read.
pub fn read(file: &File) -> io::Result<Option<(u64, Vec<u8>)>> {
    Ok(record::read(file)?.map(|record| (record.generation, record.body)))
}

/// Writes a new state over the older copy.
///
/// # Errors
/// When the file cannot be written, or the body is too large.
pub fn write(file: &File, generation: u64, body: &[u8]) -> io::Result<()> {
    record::write(file, generation, body)
}

/// The session and the payload of an entry.
///
/// # Errors
/// When the file cannot be read.
pub fn entry(file: &File) -> io::Result<Option<(String, Vec<u8>)>> {
    entry::read(file)
}

/// Takes the next number of an election below `dir`; `None` when its counter is locked.
///
/// # Errors
/// When the counter cannot be read or written, or no higher number is left.
pub fn next_number(dir: &Path, election: &ElectionName, floor: u64) -> io::Result<Option<u64>> {
    let layout = Layout::new(dir.to_owned());
    layout.make()?;
    Counter::try_lock(&layout, election)?.map(|counter| counter.next(floor)).transpose()
}

/// The directory of an election's entries, and the file of its counter.
pub fn paths(dir: &Path, election: &ElectionName) -> [PathBuf; 2] {
    let layout = Layout::new(dir.to_owned());
    [layout.election(election), layout.counter(election)]
}

/// The names of the entry with this number, of the same while it is made, and of the wish that its candidate may resign.
pub fn file_names(number: u64) -> [String; 3] {
    [layout::entry_file(number), layout::new_file(number), layout::resign_file(number)]
}

/// The number in the name of an entry's file.
pub fn entry_number(file: &str) -> Option<u64> {
    layout::entry_number(file)
}

/// Whether a file is an entry being made.
pub fn is_new_file(file: &str) -> bool {
    layout::is_new_file(file)
}

/// The number in the name of a wish to resign.
pub fn resign_number(file: &str) -> Option<u64> {
    layout::resign_number(file)
}
