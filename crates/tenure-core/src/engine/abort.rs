//! The thread that ends the process when work goes on past its deadline (`OnOverrun::Abort`).
//!
//! It reads preallocated atomics and the kernel's clock, waits for a timer, and aborts. It takes no lock, allocates nothing
//! and calls nothing that a user wrote, so that nothing in the process can keep it from its one task.

use std::{
    fmt, io,
    sync::{
        Arc, Mutex, OnceLock, PoisonError,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    thread,
    time::Duration,
};

use super::watchdog::Alarm;
use crate::{BootClock, BootInstant, Clock, sync::atomic::AtomicUsize};

/// Slots lie in chunks, each twice as long as the one before, so that a slot never moves.
const CHUNKS: usize = 24;
const FIRST_CHUNK: usize = 64;
/// A thread that looks later than this was stopped, with the process.
const STOPPED: Duration = Duration::from_millis(25);
/// What work is given to end its poll after the process was stopped and continued.
const SECOND_CHANCE: Duration = Duration::from_millis(50);

/// Aborts the process at the last instant of a leadership whose work is being polled then.
pub(crate) struct AbortTimer(Arc<Table>);

struct Table {
    chunks: [OnceLock<Box<[Slot]>>; CHUNKS],
    /// Slots that are not in use; never looked at by the thread.
    free: Mutex<Free>,
    alarm: Alarm,
    over: AtomicBool,
}

#[derive(Default)]
struct Free {
    slots: Vec<usize>,
    made: usize,
}

struct Slot {
    /// When the process is aborted, in nanoseconds of the clock; [`BootInstant::NEVER`] while nothing is due.
    at: AtomicU64,
    /// How much work is being polled.
    polled: AtomicUsize,
}

/// A leadership's place in the table.
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
            free: Mutex::default(),
            alarm: Alarm::new(),
            over: AtomicBool::new(false),
        });
        table.alarm.prepare()?;
        let watched = Arc::clone(&table);
        thread::Builder::new().name("tenure-abort".into()).spawn(move || watched.run(abort))?;
        Ok(Self(table))
    }

    /// A place for one leadership.
    pub(crate) fn slot(&self) -> AbortSlot {
        AbortSlot { table: Arc::clone(&self.0), index: self.0.claim() }
    }
}

impl Drop for AbortTimer {
    fn drop(&mut self) {
        self.0.over.store(true, Ordering::Release);
        self.0.alarm.wake();
    }
}

impl AbortSlot {
    /// Counts the work that is being polled.
    pub(crate) fn polled(&self) -> &AtomicUsize {
        &self.table.slot(self.index).polled
    }

    /// Has the process aborted at `moment`, if work is being polled then.
    pub(crate) fn arm(&self, moment: BootInstant) {
        if self.table.slot(self.index).at.swap(moment.as_nanos(), Ordering::SeqCst) != moment.as_nanos() {
            self.table.alarm.wake();
        }
    }
}

impl Drop for AbortSlot {
    fn drop(&mut self) {
        self.table.slot(self.index).at.store(BootInstant::NEVER.as_nanos(), Ordering::SeqCst);
        self.table.free.lock().unwrap_or_else(PoisonError::into_inner).slots.push(self.index);
    }
}

/// The chunk of the slot with this index, and its place there.
fn place(index: usize) -> (usize, usize) {
    let chunk = (index / FIRST_CHUNK + 1).ilog2() as usize;
    (chunk, index - FIRST_CHUNK * ((1 << chunk) - 1))
}

impl Table {
    fn claim(&self) -> usize {
        let mut free = self.free.lock().unwrap_or_else(PoisonError::into_inner);
        free.slots.pop().unwrap_or_else(|| {
            free.made += 1;
            // Its chunk is made now, and in order: the thread looks at those that there are.
            self.slot(free.made - 1);
            free.made - 1
        })
    }

    fn slot(&self, index: usize) -> &Slot {
        let (chunk, place) = place(index);
        let made = || {
            let slot =
                || Slot { at: AtomicU64::new(BootInstant::NEVER.as_nanos()), polled: AtomicUsize::new(0) };
            (0..FIRST_CHUNK << chunk).map(|_| slot()).collect()
        };
        &self.chunks[chunk].get_or_init(made)[place]
    }

    /// The thread.
    fn run(&self, abort: impl Fn()) {
        // When each slot was seen to be due is not kept: one second chance serves all that are due after a stop.
        let mut chance_until = None;
        while !self.over.load(Ordering::Acquire) {
            let next = self.look(BootClock.now(), &mut chance_until, &abort);
            self.alarm.wait(&BootClock, next);
        }
    }

    /// Aborts if that is due; when to look again.
    fn look(
        &self,
        now: BootInstant,
        chance_until: &mut Option<BootInstant>,
        abort: impl Fn(),
    ) -> BootInstant {
        let mut next = BootInstant::NEVER;
        let mut is_due = false;
        for slot in self.chunks.iter().filter_map(OnceLock::get).flatten() {
            let at = BootInstant::from_nanos(slot.at.load(Ordering::SeqCst));
            if at > now {
                next = next.min(at);
                continue;
            }
            if slot.polled.load(Ordering::SeqCst) == 0 {
                // Work that is not polled does nothing, and its next poll drops it: `run` counts the poll before it reads
                // the clock. Unless another moment was set just now, nothing is due here any more.
                let never = BootInstant::NEVER.as_nanos();
                let _ = slot.at.compare_exchange(at.as_nanos(), never, Ordering::SeqCst, Ordering::SeqCst);
                continue;
            }
            if slot.at.load(Ordering::SeqCst) != at.as_nanos() {
                // Another leadership's by now, or put off: looked at again at once.
                next = now;
                continue;
            }
            is_due = true;
            let stopped = now.since(at) > STOPPED;
            match *chance_until {
                None if stopped => *chance_until = Some(now + SECOND_CHANCE),
                Some(until) if now < until => {}
                _ => abort(),
            }
            next = next.min(chance_until.unwrap_or(now + SECOND_CHANCE));
        }
        if !is_due {
            *chance_until = None;
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
            free: Mutex::default(),
            alarm: Alarm::new(),
            over: AtomicBool::new(false),
        })
    }

    fn at(millis: u64) -> BootInstant {
        BootInstant::from_nanos(millis * 1_000_000)
    }

    /// Looks at `millis`: whether the process is aborted, and when to look again.
    fn look(table: &Table, millis: u64, chance_until: &mut Option<BootInstant>) -> (bool, BootInstant) {
        let aborted = Cell::new(false);
        let next = table.look(at(millis), chance_until, || aborted.set(true));
        (aborted.get(), next)
    }

    #[test]
    fn slots_lie_one_after_the_other() {
        let places: Vec<_> = [0, 63, 64, 191, 192, 447, 448].map(place).to_vec();
        assert_eq!(places, [(0, 0), (0, 63), (1, 0), (1, 127), (2, 0), (2, 255), (3, 0)]);
    }

    /// Hazard G26: the process is aborted at the moment that was set, while work is being polled.
    #[test]
    fn work_that_is_polled_at_its_last_instant_aborts() {
        let timer = AbortTimer(table());
        let (idle, busy) = (timer.slot(), timer.slot());
        let mut chance = None;
        idle.arm(at(1_000));
        busy.arm(at(2_000));
        busy.polled().store(1, Ordering::SeqCst);
        assert_eq!(look(&timer.0, 999, &mut chance), (false, at(1_000)));
        assert_eq!(look(&timer.0, 1_000, &mut chance), (false, at(2_000)));
        assert!(look(&timer.0, 2_001, &mut chance).0);
    }

    /// A process that was stopped beyond the deadline: its work is given the time to end its poll.
    #[test]
    fn work_of_a_process_that_was_stopped_has_a_second_chance() {
        let timer = AbortTimer(table());
        let slot = timer.slot();
        let mut chance = None;
        slot.arm(at(1_000));
        slot.polled().store(1, Ordering::SeqCst);
        assert_eq!(look(&timer.0, 9_000, &mut chance), (false, at(9_050)));
        assert_eq!(look(&timer.0, 9_040, &mut chance), (false, at(9_050)));
        assert!(look(&timer.0, 9_050, &mut chance).0);
        slot.polled().store(0, Ordering::SeqCst);
        assert_eq!(look(&timer.0, 9_060, &mut chance), (false, BootInstant::NEVER));
        assert_eq!(chance, None);
    }

    /// Slots that nobody has looked at are seen all the same.
    #[test]
    fn the_slot_behind_many_unused_ones_is_seen() {
        let timer = AbortTimer(table());
        let unused: Vec<_> = (0..FIRST_CHUNK * 4).map(|_| timer.slot()).collect();
        let slot = timer.slot();
        slot.arm(at(1_000));
        slot.polled().store(1, Ordering::SeqCst);
        assert!(look(&timer.0, 1_001, &mut None).0);
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
