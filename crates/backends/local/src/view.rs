//! What an onlooker sees of an election.

use std::{io, os::unix::fs::OpenOptionsExt as _, path::Path, time::SystemTime};

use tenure_core::{Candidate, FencingToken};

use crate::{
    entry::{self, Look, look},
    layout::{entry_file, open_options, resign_file},
    queue::numbers,
};

/// The living candidates in order of succession.
pub(crate) fn candidates(dir: &Path) -> io::Result<Vec<Candidate>> {
    living(dir, usize::MAX).map(|all| all.into_iter().map(|(_, candidate)| candidate).collect())
}

/// The first of them, and its entry's number.
pub(crate) fn leader(dir: &Path) -> io::Result<Option<(u64, Candidate)>> {
    living(dir, 1).map(|mut all| all.pop())
}

/// Asks the first of them to resign.
pub(crate) fn request_resign(dir: &Path) -> io::Result<Option<Candidate>> {
    let Some((number, leader)) = leader(dir)? else { return Ok(None) };
    // Should it be gone by now, the next that enters removes this.
    match open_options().write(true).create_new(true).mode(0o600).open(dir.join(resign_file(number))) {
        Err(error) if error.kind() != io::ErrorKind::AlreadyExists => Err(error),
        _ => Ok(Some(leader)),
    }
}

fn living(dir: &Path, at_most: usize) -> io::Result<Vec<(u64, Candidate)>> {
    let mut living = Vec::new();
    for number in numbers(dir)? {
        if living.len() == at_most {
            break;
        }
        let name = entry_file(number);
        let Look::Living(file) = look(&dir.join(&name))? else { continue };
        // An entry that somebody has written over leads none the less: it is shown, by
        // its name, rather than its election called vacant.
        let (session, payload) = entry::read(&file)?.unwrap_or_default();
        let mut candidate = Candidate::decode(&name, session, &payload, FencingToken::new(number));
        let made = file.metadata().and_then(|m| m.created().or_else(|_| m.modified())).ok();
        candidate.age = made.and_then(|made| SystemTime::now().duration_since(made).ok());
        living.push((number, candidate));
    }
    Ok(living)
}
