//! A record stored in two copies within one file, so that writing one copy never damages the other.
//!
//! The files whose locks matter have to be written in place: a file that is replaced by renaming is another file with
//! a lock of its own. A new state overwrites the older copy. If a crash interrupts the write, the newer copy is
//! intact. A concurrent reader sees either the old state or the new one.

use std::{fs::File, io, os::unix::fs::FileExt, str};

/// The first word of a copy's header, `tenure-record/1 GENERATION LENGTH CHECKSUM`. The header is readable text.
const MAGIC: &str = "tenure-record/1";
const HEADER_BYTES: usize = MAGIC.len() + 1 + 20 + 1 + 10 + 1 + 16 + 1;
/// The distance between the copies: more than the largest entry, and a multiple of any block size.
const COPY_STRIDE_BYTES: u64 = 128 * 1024;
const MAX_BODY_BYTES: usize = COPY_STRIDE_BYTES as usize - HEADER_BYTES;
/// How often a reader reads at most while a writer is active.
const MAX_READS: usize = 16;

/// The newest state of a file.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Record {
    /// Increases with every state.
    pub(crate) generation: u64,
    pub(crate) body: Vec<u8>,
}

/// Reads the newest state; `None` if neither copy is intact.
///
/// A single read can return the state before the newest one: it reads the first copy before a writer replaces it, and
/// the second copy while a writer replaces that. By then the first copy is newer. Two reads in a row agree only on a
/// state that was the newest one between them.
pub(crate) fn read(file: &File) -> io::Result<Option<Record>> {
    let mut latest: Option<Record> = None;
    for _ in 0..MAX_READS {
        match newest(file)? {
            Some((_, record)) => {
                let known = latest.as_ref().map_or(0, |latest| latest.generation);
                if latest.is_some() && record.generation == known {
                    break;
                }
                if record.generation >= known {
                    latest = Some(record);
                }
            }
            None if file.metadata()?.len() == 0 => break,
            None => {}
        }
    }
    Ok(latest)
}

/// Writes a new state over the older copy, without making it durable. Only one writer may be active at a time.
pub(crate) fn write(file: &File, generation: u64, body: &[u8]) -> io::Result<()> {
    if body.len() > MAX_BODY_BYTES {
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
    file.write_all_at(&bytes, copy * COPY_STRIDE_BYTES)
}

fn newest(file: &File) -> io::Result<Option<(u64, Record)>> {
    let mut newest: Option<(u64, Record)> = None;
    for copy in [0, 1] {
        if let Some(record) = read_copy(file, copy * COPY_STRIDE_BYTES)?
            && newest.as_ref().is_none_or(|(_, other)| other.generation < record.generation)
        {
            newest = Some((copy, record));
        }
    }
    Ok(newest)
}

fn read_copy(file: &File, at: u64) -> io::Result<Option<Record>> {
    let mut header = [0; HEADER_BYTES];
    if !read_exact(file, &mut header, at)? {
        return Ok(None);
    }
    let Some((generation, length, expected)) = parse_header(&header) else { return Ok(None) };
    let mut body = vec![0; length];
    if !read_exact(file, &mut body, at + HEADER_BYTES as u64)? || checksum(generation, &body) != expected {
        return Ok(None);
    }
    Ok(Some(Record { generation, body }))
}

/// Fills `bytes`; `false` if the file ends before that.
fn read_exact(file: &File, bytes: &mut [u8], at: u64) -> io::Result<bool> {
    match file.read_exact_at(bytes, at) {
        Ok(()) => Ok(true),
        Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => Ok(false),
        Err(error) => Err(error),
    }
}

fn parse_header(header: &[u8]) -> Option<(u64, usize, u64)> {
    let line = str::from_utf8(header).ok()?.strip_suffix('\n')?;
    let mut words = line.split(' ');
    if words.next()? != MAGIC {
        return None;
    }
    let generation = words.next()?.parse().ok()?;
    let length = words.next()?.parse().ok().filter(|n| *n <= MAX_BODY_BYTES)?;
    let checksum = u64::from_str_radix(words.next()?, 16).ok()?;
    Some((generation, length, checksum))
}

/// 64-bit FNV-1a: detects torn writes, not tampering.
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
        assert!(write(&file, 3, &vec![0; MAX_BODY_BYTES + 1]).is_err());
    }

    /// A reader concurrent with a writer sees only complete states, and never an older one after a newer one.
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
        /// Whichever part of a write reaches the disk, a reader sees the state before it or after it.
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
            let mut before = vec![0; 2 * COPY_STRIDE_BYTES as usize];
            let had = file.read_at(&mut before, 0).unwrap();
            let next = last.generation + 1;
            write(&file, next, &torn).unwrap();
            let at = newest(&file).unwrap().unwrap().0 * COPY_STRIDE_BYTES;
            let whole = HEADER_BYTES + torn.len();
            if cut < whole {
                before.truncate(had);
                before.resize(2 * COPY_STRIDE_BYTES as usize, 0);
                let from = at as usize + cut;
                file.write_all_at(&before[from..at as usize + whole.max(cut)], from as u64).unwrap();
            }
            let read = read(&file).unwrap().unwrap();
            prop_assert!(read == last || (read.generation == next && read.body == torn), "{:?}", read);
            prop_assert!(cut < whole || read.generation == next);
        }
    }
}
