//! The thread that aborts the process when work goes on past its deadline (`OnOverrun::Abort`).
//!
//! It reads preallocated atomics and the kernel's clock, waits for a timer, and aborts. It takes no lock,
//! allocates nothing and calls no application code, so that nothing in the process can delay it.

use std::{
    fmt, io,
    sync::{
        Arc, Mutex, OnceLock, PoisonError,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    thread,
    time::Duration,
};

use super::alarm::Alarm;
use crate::{BootClock, BootInstant, Clock, sync::atomic::AtomicUsize};

/// The number of chunks. Each is twice as long as the one before, so that the table grows and a slot never moves.
const CHUNKS: usize = 24;
const FIRST_CHUNK_LEN: usize = 64;
/// A check that comes later than this after the deadline shows that the process had been stopped.
const MAX_CHECK_DELAY: Duration = Duration::from_millis(25);
/// The time in which work has to end its poll after the process was stopped and continued.
const RESUME_GRACE: Duration = Duration::from_millis(50);

/// Aborts the process at the stop-by time of a term whose work is being polled at that time.
pub(crate) struct AbortTimer(Arc<Table>);

struct Table {
    chunks: [OnceLock<Box<[Slot]>>; CHUNKS],
    /// Allocates slots. The thread never locks it.
    allocator: Mutex<SlotAllocator>,
    alarm: Alarm,
    shut_down: AtomicBool,
}

#[derive(Default)]
struct SlotAllocator {
    /// The indices of slots that are free again.
    free: Vec<usize>,
    /// The number of slots that have been used so far.
    created: usize,
}

struct Slot {
    /// When to abort the process, in nanoseconds of the clock; [`BootInstant::NEVER`] while the slot is not armed.
    abort_at: AtomicU64,
    /// The number of works that are being polled.
    active_polls: AtomicUsize,
}

/// The slot of one term in the table.
pub(crate) struct AbortSlot {
    table: Arc<Table>,
    index: usize,
}

impl fmt::Debug for AbortTimer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("AbortTimer")
    }
}

impl fmt::Debug for AbortSlot {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("AbortSlot").field(&self.index).finish()
    }
}

impl AbortTimer {
    /// Starts the thread.
    ///
    /// # Errors
    /// When the system refuses a thread or a timer.
    pub(crate) fn start() -> io::Result<Self> {
        let table = Arc::new(Table {
            chunks: [const { OnceLock::new() }; CHUNKS],
            allocator: Mutex::default(),
            alarm: Alarm::new(),
            shut_down: AtomicBool::new(false),
        });
        table.alarm.prepare()?;
        let thread_table = Arc::clone(&table);
        thread::Builder::new().name("tenure-abort".into()).spawn(move || thread_table.run(abort))?;
        Ok(Self(table))
    }

    /// A slot for one term.
    pub(crate) fn slot(&self) -> AbortSlot {
        AbortSlot { table: Arc::clone(&self.0), index: self.0.allocate() }
    }
}

impl Drop for AbortTimer {
    fn drop(&mut self) {
        self.0.shut_down.store(true, Ordering::Release);
        self.0.alarm.wake();
    }
}

impl AbortSlot {
    /// The number of works that are being polled.
    pub(crate) fn active_polls(&self) -> &AtomicUsize {
        &self.table.slot(self.index).active_polls
    }

    /// Aborts the process at `instant` if work is being polled then.
    pub(crate) fn arm(&self, instant: BootInstant) {
        if self.table.slot(self.index).abort_at.swap(instant.as_nanos(), Ordering::SeqCst)
            != instant.as_nanos()
        {
            self.table.alarm.wake();
        }
    }
}

impl Drop for AbortSlot {
    fn drop(&mut self) {
        self.table.slot(self.index).abort_at.store(BootInstant::NEVER.as_nanos(), Ordering::SeqCst);
        self.table.allocator.lock().unwrap_or_else(PoisonError::into_inner).free.push(self.index);
    }
}

/// The chunk of the slot with this index, and its offset in that chunk.
fn locate(index: usize) -> (usize, usize) {
    let chunk = (index / FIRST_CHUNK_LEN + 1).ilog2() as usize;
    (chunk, index - FIRST_CHUNK_LEN * ((1 << chunk) - 1))
}

impl Table {
    /// The index of an unused slot.
    fn allocate(&self) -> usize {
        let mut allocator = self.allocator.lock().unwrap_or_else(PoisonError::into_inner);
        allocator.free.pop().unwrap_or_else(|| {
            allocator.created += 1;
            // Creates the slot's chunk now, and chunks in order: the thread checks those that exist.
            self.slot(allocator.created - 1);
            allocator.created - 1
        })
    }

    fn slot(&self, index: usize) -> &Slot {
        let (chunk, offset) = locate(index);
        let new_chunk = || {
            let slot = || Slot {
                abort_at: AtomicU64::new(BootInstant::NEVER.as_nanos()),
                active_polls: AtomicUsize::new(0),
            };
            (0..FIRST_CHUNK_LEN << chunk).map(|_| slot()).collect()
        };
        &self.chunks[chunk].get_or_init(new_chunk)[offset]
    }

    /// The loop of the thread.
    fn run(&self, abort: impl Fn()) {
        // One period of grace serves all slots that are due after the process was stopped.
        let mut grace_until = None;
        while !self.shut_down.load(Ordering::Acquire) {
            let next = self.check(BootClock.now(), &mut grace_until, &abort);
            self.alarm.wait(&BootClock, next);
        }
    }

    /// Calls `abort` if a slot is due. Returns when to check again.
    fn check(
        &self,
        now: BootInstant,
        grace_until: &mut Option<BootInstant>,
        abort: impl Fn(),
    ) -> BootInstant {
        let mut next = BootInstant::NEVER;
        let mut is_due = false;
        for slot in self.chunks.iter().filter_map(OnceLock::get).flatten() {
            let abort_at = BootInstant::from_nanos(slot.abort_at.load(Ordering::SeqCst));
            if abort_at > now {
                next = next.min(abort_at);
                continue;
            }
            if slot.active_polls.load(Ordering::SeqCst) == 0 {
                // Work that is not polled does nothing, and its next poll drops it: `run` counts the poll
                // before it reads the clock. Disarms the slot unless it was armed again just now.
                let never = BootInstant::NEVER.as_nanos();
                let _ = slot.abort_at.compare_exchange(
                    abort_at.as_nanos(),
                    never,
                    Ordering::SeqCst,
                    Ordering::SeqCst,
                );
                continue;
            }
            if slot.abort_at.load(Ordering::SeqCst) != abort_at.as_nanos() {
                // The slot belongs to another term by now, or was armed for a later instant: check again at once.
                next = now;
                continue;
            }
            is_due = true;
            let was_stopped = now.since(abort_at) > MAX_CHECK_DELAY;
            match *grace_until {
                None if was_stopped => *grace_until = Some(now + RESUME_GRACE),
                Some(until) if now < until => {}
                _ => abort(),
            }
            next = next.min(grace_until.unwrap_or(now + RESUME_GRACE));
        }
        if !is_due {
            *grace_until = None;
        }
        next
    }
}

/// Ends the process by SIGABRT, whatever handler the application has set for it.
fn abort() {
    let _ = signal_hook::low_level::emulate_default_handler(signal_hook::consts::SIGABRT);
    std::process::abort();
}

#[cfg(all(test, not(any(tenure_loom, tenure_shuttle))))]
mod tests {
    use std::cell::Cell;

    use super::*;

    fn table() -> Arc<Table> {
        Arc::new(Table {
            chunks: [const { OnceLock::new() }; CHUNKS],
            allocator: Mutex::default(),
            alarm: Alarm::new(),
            shut_down: AtomicBool::new(false),
        })
    }

    fn at(millis: u64) -> BootInstant {
        BootInstant::from_nanos(millis * 1_000_000)
    }

    /// Checks at `millis`: whether the process is aborted, and when to check again.
    fn check(table: &Table, millis: u64, grace_until: &mut Option<BootInstant>) -> (bool, BootInstant) {
        let aborted = Cell::new(false);
        let next = table.check(at(millis), grace_until, || aborted.set(true));
        (aborted.get(), next)
    }

    #[test]
    fn slots_lie_one_after_the_other() {
        let locations: Vec<_> = [0, 63, 64, 191, 192, 447, 448].map(locate).to_vec();
        assert_eq!(locations, [(0, 0), (0, 63), (1, 0), (1, 127), (2, 0), (2, 255), (3, 0)]);
    }

    /// Hazard G26: the process is aborted at the instant for which the slot is armed, if work is being polled.
    #[test]
    fn work_that_is_polled_at_its_stop_by_time_aborts() {
        let timer = AbortTimer(table());
        let (idle, busy) = (timer.slot(), timer.slot());
        let mut grace_until = None;
        idle.arm(at(1_000));
        busy.arm(at(2_000));
        busy.active_polls().store(1, Ordering::SeqCst);
        assert_eq!(check(&timer.0, 999, &mut grace_until), (false, at(1_000)));
        assert_eq!(check(&timer.0, 1_000, &mut grace_until), (false, at(2_000)));
        assert!(check(&timer.0, 2_001, &mut grace_until).0);
    }

    /// When the process was stopped past the deadline, its work has time to end its poll.
    #[test]
    fn work_of_a_process_that_was_stopped_has_a_second_chance() {
        let timer = AbortTimer(table());
        let slot = timer.slot();
        let mut grace_until = None;
        slot.arm(at(1_000));
        slot.active_polls().store(1, Ordering::SeqCst);
        assert_eq!(check(&timer.0, 9_000, &mut grace_until), (false, at(9_050)));
        assert_eq!(check(&timer.0, 9_040, &mut grace_until), (false, at(9_050)));
        assert!(check(&timer.0, 9_050, &mut grace_until).0);
        slot.active_polls().store(0, Ordering::SeqCst);
        assert_eq!(check(&timer.0, 9_060, &mut grace_until), (false, BootInstant::NEVER));
        assert_eq!(grace_until, None);
    }

    /// The thread finds an armed slot behind unused chunks.
    #[test]
    fn the_slot_behind_many_unused_ones_is_seen() {
        let timer = AbortTimer(table());
        let unused: Vec<_> = (0..FIRST_CHUNK_LEN * 4).map(|_| timer.slot()).collect();
        let slot = timer.slot();
        slot.arm(at(1_000));
        slot.active_polls().store(1, Ordering::SeqCst);
        assert!(check(&timer.0, 1_001, &mut None).0);
        drop(unused);
    }

    #[test]
    fn a_slot_is_used_again() {
        let timer = AbortTimer(table());
        let first = timer.slot().index;
        let (second, third) = (timer.slot(), timer.slot());
        assert_eq!((second.index, third.index), (first, first + 1));
    }
}
