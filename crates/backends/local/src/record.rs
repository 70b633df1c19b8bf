//! A record kept in two copies within one file, so that writing one never harms the other.
//!
//! Both files whose lock matters have to be written in place, for a file that is
//! replaced by renaming is another file, with a lock of its own. A new state goes
//! over the older copy; a crash in the middle leaves the newer one as it was, and a
//! reader meanwhile sees either the old state or the new.

use std::{fs::File, io, os::unix::fs::FileExt, str};

/// What a copy starts with: `tenure-record/1 GENERATION LENGTH CHECKSUM`, in text for people.
const MAGIC: &str = "tenure-record/1";
const HEADER: usize = MAGIC.len() + 1 + 20 + 1 + 10 + 1 + 16 + 1;
/// The distance between the copies: more than the largest entry, and a multiple of any block.
const STRIDE: u64 = 128 * 1024;
const MAX_BODY: usize = STRIDE as usize - HEADER;
/// How often a reader looks at most beside a busy writer.
const READS: usize = 16;

/// The newest state of a file.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Record {
    /// Higher for every later state.
    pub(crate) generation: u64,
    pub(crate) body: Vec<u8>,
}

/// Reads the newest state; `None` when neither copy is whole.
///
/// A single look can be one state behind: the first copy is read before it is replaced, the
/// second while it is. By then the first one is newer, so that two looks agree only on what
/// was the newest between them.
pub(crate) fn read(file: &File) -> io::Result<Option<Record>> {
    let mut best: Option<Record> = None;
    for _ in 0..READS {
        match newest(file)? {
            Some((_, record)) => {
                let known = best.as_ref().map_or(0, |best| best.generation);
                if best.is_some() && record.generation == known {
                    break;
                }
                if record.generation >= known {
                    best = Some(record);
                }
            }
            None if file.metadata()?.len() == 0 => break,
            None => {}
        }
    }
    Ok(best)
}

/// Writes a new state over the older copy. It is not yet durable. One writer at a time.
pub(crate) fn write(file: &File, generation: u64, body: &[u8]) -> io::Result<()> {
    if body.len() > MAX_BODY {
        return Err(io::Error::new(io::ErrorKind::InvalidInput, "the record is too large"));
    }
    let copy = match newest(file)? {
        Some((copy, _)) => 1 - copy,
        None => 0,
    };
    let mut bytes =
        format!("{MAGIC} {generation:020} {:010} {:016x}\n", body.len(), checksum(generation, body))
            .into_bytes();
    bytes.extend_from_slice(body);
    file.write_all_at(&bytes, copy * STRIDE)
}

fn newest(file: &File) -> io::Result<Option<(u64, Record)>> {
    let mut newest: Option<(u64, Record)> = None;
    for copy in [0, 1] {
        if let Some(record) = read_copy(file, copy * STRIDE)?
            && newest.as_ref().is_none_or(|(_, other)| other.generation < record.generation)
        {
            newest = Some((copy, record));
        }
    }
    Ok(newest)
}

fn read_copy(file: &File, at: u64) -> io::Result<Option<Record>> {
    let mut header = [0; HEADER];
    if !read_whole(file, &mut header, at)? {
        return Ok(None);
    }
    let Some((generation, length, expected)) = parse(&header) else { return Ok(None) };
    let mut body = vec![0; length];
    if !read_whole(file, &mut body, at + HEADER as u64)? || checksum(generation, &body) != expected {
        return Ok(None);
    }
    Ok(Some(Record { generation, body }))
}

/// Fills `bytes`; `false` when the file ends before.
fn read_whole(file: &File, bytes: &mut [u8], at: u64) -> io::Result<bool> {
    match file.read_exact_at(bytes, at) {
        Ok(()) => Ok(true),
        Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => Ok(false),
        Err(error) => Err(error),
    }
}

fn parse(header: &[u8]) -> Option<(u64, usize, u64)> {
    let line = str::from_utf8(header).ok()?.strip_suffix('\n')?;
    let mut words = line.split(' ');
    if words.next()? != MAGIC {
        return None;
    }
    let generation = words.next()?.parse().ok()?;
    let length = words.next()?.parse().ok().filter(|n| *n <= MAX_BODY)?;
    let checksum = u64::from_str_radix(words.next()?, 16).ok()?;
    Some((generation, length, checksum))
}

/// FNV-1a, 64 bits: against torn writes, not against malice.
fn checksum(generation: u64, body: &[u8]) -> u64 {
    let bytes = generation.to_le_bytes().into_iter().chain(body.iter().copied());
    bytes.fold(0xcbf2_9ce4_8422_2325, |hash, byte| {
        (hash ^ u64::from(byte)).wrapping_mul(0x0000_0100_0000_01b3)
    })
}

#[cfg(test)]
mod tests {
    use std::{
        sync::atomic::{AtomicBool, Ordering},
        thread,
    };

    use proptest::prelude::*;

    use super::*;

    #[test]
    fn a_file_without_a_record_has_none() {
        let file = tempfile::tempfile().unwrap();
        assert_eq!(read(&file).unwrap(), None);
        file.write_all_at(
            b"something else altogether, and longer than any header of a record could be....",
            0,
        )
        .unwrap();
        assert_eq!(read(&file).unwrap(), None);
    }

    #[test]
    fn the_largest_entry_fits() {
        let file = tempfile::tempfile().unwrap();
        let body = vec![7; tenure_core::MAX_VALUE_BYTES + 1024];
        write(&file, 1, &body).unwrap();
        write(&file, 2, &body).unwrap();
        assert_eq!(read(&file).unwrap(), Some(Record { generation: 2, body }));
        assert!(write(&file, 3, &vec![0; MAX_BODY + 1]).is_err());
    }

    /// A reader beside a writer sees whole states only, and never an older one after a newer.
    #[test]
    fn a_reader_never_sees_a_torn_state() {
        let file = tempfile::tempfile().unwrap();
        write(&file, 1, &[1; 20_000]).unwrap();
        let done = AtomicBool::new(false);
        thread::scope(|s| {
            s.spawn(|| {
                for generation in 2..500_u64 {
                    write(&file, generation, &vec![generation as u8; 20_000]).unwrap();
                }
                done.store(true, Ordering::Relaxed);
            });
            let mut last = 0;
            while !done.load(Ordering::Relaxed) {
                let record = read(&file).unwrap().unwrap();
                assert!(record.body.iter().all(|b| *b == record.generation as u8));
                assert!(record.generation >= last);
                last = record.generation;
            }
        });
    }

    proptest! {
        /// Whatever part of a write reaches the disk, the state before it or after it is read.
        #[test]
        fn a_torn_write_leaves_the_state_before_it(
            bodies in prop::collection::vec(prop::collection::vec(any::<u8>(), 0..60), 1..5),
            torn in prop::collection::vec(any::<u8>(), 0..60),
            cut in 0_usize..200,
        ) {
            let file = tempfile::tempfile().unwrap();
            for (n, body) in bodies.iter().enumerate() {
                write(&file, n as u64 * 3 + 1, body).unwrap();
            }
            let last = read(&file).unwrap().unwrap();
            let mut before = vec![0; 2 * STRIDE as usize];
            let had = file.read_at(&mut before, 0).unwrap();
            let next = last.generation + 1;
            write(&file, next, &torn).unwrap();
            let at = newest(&file).unwrap().unwrap().0 * STRIDE;
            let whole = HEADER + torn.len();
            if cut < whole {
                before.truncate(had);
                before.resize(2 * STRIDE as usize, 0);
                let from = at as usize + cut;
                file.write_all_at(&before[from..at as usize + whole.max(cut)], from as u64).unwrap();
            }
            let read = read(&file).unwrap().unwrap();
            prop_assert!(read == last || (read.generation == next && read.body == torn), "{:?}", read);
            prop_assert!(cut < whole || read.generation == next);
        }
    }
}
