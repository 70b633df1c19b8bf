//! Internal functions that the fuzz targets call. Compiled with `--cfg fuzzing` only.
#![allow(missing_docs, reason = "not part of the API")]

use std::{
    fs::File,
    io,
    path::{Path, PathBuf},
};

use tenure_core::ElectionName;

use crate::{entry, layout, layout::Layout, record, token_counter::TokenCounter};

/// The generation and the body of a record.
pub fn read(file: &File) -> io::Result<Option<(u64, Vec<u8>)>> {
    Ok(record::read(file)?.map(|record| (record.generation, record.body)))
}

pub fn write(file: &File, generation: u64, body: &[u8]) -> io::Result<()> {
    record::write(file, generation, body)
}

/// The session and the payload of an entry.
pub fn entry(file: &File) -> io::Result<Option<(String, Vec<u8>)>> {
    entry::read(file)
}

/// Takes the next number of an election in the store directory `dir`; `None` if its counter is locked.
pub fn next_number(dir: &Path, election: &ElectionName, floor: u64) -> io::Result<Option<u64>> {
    let layout = Layout::new(dir.to_owned());
    layout.create_dirs()?;
    TokenCounter::try_lock(&layout, election)?.map(|counter| counter.next(floor)).transpose()
}

/// The directory of an election's entries, and the file of its counter.
pub fn paths(dir: &Path, election: &ElectionName) -> [PathBuf; 2] {
    let layout = Layout::new(dir.to_owned());
    [layout.election(election), layout.counter(election)]
}

/// The file names of the entry with this number, of its temporary file, and of a request that its candidate resign.
pub fn file_names(number: u64) -> [String; 3] {
    [layout::entry_file(number), layout::temp_file(number), layout::resign_request_file(number)]
}

pub fn entry_number(file: &str) -> Option<u64> {
    layout::entry_number(file)
}

pub fn is_new_file(file: &str) -> bool {
    layout::is_temp_file(file)
}

pub fn resign_number(file: &str) -> Option<u64> {
    layout::resign_request_number(file)
}
