//! One inotify instance for all waiters of a backend: a user may have only 128 of them.

use std::{
    collections::HashMap,
    io,
    path::Path,
    sync::{Arc, Mutex, MutexGuard, PoisonError, Weak},
};

use futures::StreamExt;
use inotify::{EventMask, EventOwned, EventStream, Inotify, WatchDescriptor, WatchMask, Watches};
use tokio::task::JoinHandle;

use super::{Event, Listener};

const BUFFER: usize = 16 * 1024;

const EVENTS: WatchMask = WatchMask::CREATE
    .union(WatchMask::MOVED_TO)
    .union(WatchMask::MOVED_FROM)
    .union(WatchMask::DELETE)
    .union(WatchMask::CLOSE_WRITE)
    .union(WatchMask::MODIFY)
    .union(WatchMask::DELETE_SELF)
    .union(WatchMask::MOVE_SELF)
    .union(WatchMask::ONLYDIR);

/// Tells subscriptions what happens. Starts with the first of them.
#[derive(Clone, Debug, Default)]
pub(crate) struct Watcher {
    state: Arc<Mutex<State>>,
}

#[derive(Debug, Default)]
struct State {
    instance: Option<Instance>,
    started: u64,
    closed: bool,
}

/// A running inotify instance.
#[derive(Debug)]
struct Instance {
    /// Tells it from an earlier one, whose watches have the same numbers.
    id: u64,
    kernel: Watches,
    task: Option<JoinHandle<()>>,
    listeners: HashMap<WatchDescriptor, Vec<Registered>>,
}

#[derive(Debug)]
struct Registered {
    listener: Arc<Listener>,
    /// The only file it is told of, when it watches a parent.
    only: Option<String>,
}

/// A listener's place at a watch, given up when dropped.
#[derive(Debug)]
pub(super) struct Ticket {
    watcher: Watcher,
    instance: u64,
    wd: WatchDescriptor,
    listener: Arc<Listener>,
}

impl Watcher {
    /// Whether the kernel tells of changes.
    pub(crate) fn can_watch() -> io::Result<bool> {
        Inotify::init().map(|_| true)
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Tells `listener` from now on what happens in `dir`, to the file `only` if one is given.
    ///
    /// # Errors
    /// `NotFound` when there is no such directory; any other when the kernel tells nothing.
    pub(super) fn add(&self, dir: &Path, listener: &Arc<Listener>, only: Option<&str>) -> io::Result<Ticket> {
        let mut state = self.state();
        let instance = state.running(&self.state)?;
        let wd = instance.kernel.add(dir, EVENTS)?;
        let only = only.map(str::to_owned);
        instance
            .listeners
            .entry(wd.clone())
            .or_default()
            .push(Registered { listener: Arc::clone(listener), only });
        Ok(Ticket { watcher: self.clone(), instance: instance.id, wd, listener: Arc::clone(listener) })
    }

    /// Whether [`close`](Self::close) was called.
    pub(crate) fn is_closed(&self) -> bool {
        self.state().closed
    }

    /// Ends it; whoever waits is woken and goes on without it.
    pub(crate) async fn close(&self) {
        let task = {
            let mut state = self.state();
            state.closed = true;
            state.instance.take().and_then(|mut instance| instance.task.take().inspect(JoinHandle::abort))
        };
        if let Some(task) = task {
            // Only to have the descriptor closed on return; it was aborted, so there is no result.
            let _ = task.await;
        }
    }
}

impl State {
    fn running(&mut self, this: &Arc<Mutex<Self>>) -> io::Result<&mut Instance> {
        if self.closed {
            return Err(io::Error::other("the backend has been closed"));
        }
        // Its task ends early when the runtime that it was started on is shut down.
        let running = self.instance.take().filter(|i| i.task.as_ref().is_some_and(|t| !t.is_finished()));
        let instance = match running {
            Some(instance) => instance,
            None => {
                self.started += 1;
                Instance::start(self.started, this)?
            }
        };
        Ok(self.instance.insert(instance))
    }
}

impl Instance {
    fn start(id: u64, state: &Arc<Mutex<State>>) -> io::Result<Self> {
        let stream = Inotify::init()?.into_event_stream(vec![0; BUFFER])?;
        let kernel = stream.watches();
        let task = tokio::spawn(read(stream, Arc::downgrade(state), id));
        Ok(Self { id, kernel, task: Some(task), listeners: HashMap::new() })
    }

    fn dispatch(&mut self, event: &EventOwned) {
        let mask = event.mask;
        if mask.contains(EventMask::Q_OVERFLOW) {
            for registered in self.listeners.values().flatten() {
                registered.listener.wake(Event::Closed);
            }
            return;
        }
        if mask.intersects(
            EventMask::DELETE_SELF | EventMask::MOVE_SELF | EventMask::IGNORED | EventMask::UNMOUNT,
        ) {
            if let Some(watch) = self.listeners.remove(&event.wd) {
                // A directory that was moved is still watched; one that was deleted is not.
                let _ = self.kernel.remove(event.wd.clone());
                watch.iter().for_each(|r| r.listener.forsake());
            }
            return;
        }
        let (Some(watch), Some(name)) =
            (self.listeners.get(&event.wd), event.name.as_ref().and_then(|n| n.to_str()))
        else {
            return;
        };
        let event = if mask.intersects(EventMask::DELETE | EventMask::MOVED_FROM) {
            Event::Went
        } else if mask.contains(EventMask::CLOSE_WRITE) {
            Event::Closed
        } else if mask.intersects(EventMask::CREATE | EventMask::MOVED_TO) {
            Event::Came
        } else {
            Event::Written
        };
        for Registered { listener, only } in watch {
            let wanted = match only {
                Some(only) => only == name,
                None => listener.interest().includes(name, event),
            };
            if wanted {
                listener.wake(event);
            }
        }
    }
}

impl Drop for Instance {
    fn drop(&mut self) {
        if let Some(task) = &self.task {
            task.abort();
        }
        self.listeners.values().flatten().for_each(|r| r.listener.forsake());
    }
}

impl Drop for Ticket {
    fn drop(&mut self) {
        let mut state = self.watcher.state();
        let Some(instance) = state.instance.as_mut().filter(|i| i.id == self.instance) else { return };
        let Some(watch) = instance.listeners.get_mut(&self.wd) else { return };
        if let Some(at) = watch.iter().position(|r| Arc::ptr_eq(&r.listener, &self.listener)) {
            watch.swap_remove(at);
        }
        if watch.is_empty() {
            instance.listeners.remove(&self.wd);
            // It fails only when the kernel has removed it already, with the directory.
            let _ = instance.kernel.remove(self.wd.clone());
        }
    }
}

/// Passes events on until the watcher is gone.
async fn read(mut events: EventStream<Vec<u8>>, state: Weak<Mutex<State>>, id: u64) {
    while let Some(event) = events.next().await {
        let Some(state) = state.upgrade() else { return };
        let mut state = state.lock().unwrap_or_else(PoisonError::into_inner);
        let Some(instance) = state.instance.as_mut().filter(|i| i.id == id) else { return };
        match event {
            Ok(event) => instance.dispatch(&event),
            Err(error) => {
                tracing::warn!(%error, "the kernel's file events cannot be read; starting again");
                state.instance = None;
                return;
            }
        }
    }
}
