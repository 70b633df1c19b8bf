//! Reads the candidates of an election, and requests that its leader resign.

use std::{io, os::unix::fs::OpenOptionsExt as _, path::Path, time::SystemTime};

use tenure_core::{Candidate, ElectionName, FencingToken};

use crate::{
    entry::{self, EntryState, entry_state},
    layout::{entry_file, open_options, resign_request_file},
    queue::{entry_numbers, file_names},
};

/// The live candidates in order of succession.
pub(crate) fn candidates(dir: &Path) -> io::Result<Vec<Candidate>> {
    live_candidates(dir, usize::MAX).map(|all| all.into_iter().map(|(_, candidate)| candidate).collect())
}

/// The leader and the number of its entry.
pub(crate) fn leader(dir: &Path) -> io::Result<Option<(u64, Candidate)>> {
    live_candidates(dir, 1).map(|mut all| all.pop())
}

/// Requests that the leader resign. Returns the leader; `None` if there is none.
pub(crate) fn request_resign(dir: &Path) -> io::Result<Option<Candidate>> {
    let Some((number, leader)) = leader(dir)? else { return Ok(None) };
    // If the leader has left meanwhile, the next candidate that enters removes this file.
    let path = dir.join(resign_request_file(number));
    match open_options().write(true).create_new(true).mode(0o600).open(path) {
        Err(error) if error.kind() != io::ErrorKind::AlreadyExists => Err(error),
        _ => Ok(Some(leader)),
    }
}

/// The elections below `dir` that have a live candidate.
pub(crate) fn elections(dir: &Path) -> io::Result<Vec<ElectionName>> {
    let mut elections = Vec::new();
    for name in file_names(dir)? {
        if let Ok(election) = ElectionName::new(&name)
            && !live_candidates(&dir.join(&name), 1)?.is_empty()
        {
            elections.push(election);
        }
    }
    Ok(elections)
}

fn live_candidates(dir: &Path, limit: usize) -> io::Result<Vec<(u64, Candidate)>> {
    let mut live = Vec::new();
    for number in entry_numbers(dir)? {
        if live.len() == limit {
            break;
        }
        let name = entry_file(number);
        let EntryState::Alive(file) = entry_state(&dir.join(&name))? else { continue };
        // An entry whose content was overwritten still leads. It is shown under its file name, because without it the
        // election would appear vacant.
        let (session, payload) = entry::read(&file)?.unwrap_or_default();
        let mut candidate = Candidate::decode(&name, session, &payload, FencingToken::new(number));
        let created = file.metadata().and_then(|m| m.created().or_else(|_| m.modified())).ok();
        candidate.age = created.and_then(|created| SystemTime::now().duration_since(created).ok());
        live.push((number, candidate));
    }
    Ok(live)
}
