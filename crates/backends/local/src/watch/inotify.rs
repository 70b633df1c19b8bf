//! One inotify instance for all waiters of a backend, because a user can have only 128 instances.

use std::{
    collections::HashMap,
    io,
    path::Path,
    sync::{Arc, Mutex, MutexGuard, PoisonError, Weak},
};

use futures::StreamExt;
use inotify::{EventMask, EventOwned, EventStream, Inotify, WatchDescriptor, WatchMask, Watches};
use tokio::task::JoinHandle;

use super::listener::{FileEvent, Listener};

const BUFFER_BYTES: usize = 16 * 1024;

const WATCH_MASK: WatchMask = WatchMask::CREATE
    .union(WatchMask::MOVED_TO)
    .union(WatchMask::MOVED_FROM)
    .union(WatchMask::DELETE)
    .union(WatchMask::CLOSE_WRITE)
    .union(WatchMask::MODIFY)
    .union(WatchMask::DELETE_SELF)
    .union(WatchMask::MOVE_SELF)
    .union(WatchMask::ONLYDIR);

/// Notifies listeners of file events. The inotify instance starts with the first listener.
#[derive(Clone, Debug, Default)]
pub(crate) struct Watcher {
    state: Arc<Mutex<State>>,
}

#[derive(Debug, Default)]
struct State {
    instance: Option<Instance>,
    instances_started: u64,
    closed: bool,
}

/// A running inotify instance.
#[derive(Debug)]
struct Instance {
    /// Distinguishes it from an earlier instance, whose watch descriptors have the same numbers.
    id: u64,
    watches: Watches,
    task: Option<JoinHandle<()>>,
    listeners: HashMap<WatchDescriptor, Vec<Registration>>,
}

#[derive(Debug)]
struct Registration {
    listener: Arc<Listener>,
    /// The only file whose events it receives, if it watches a parent directory.
    only_file: Option<String>,
}

/// Keeps a listener registered for a directory until it is dropped.
#[derive(Debug)]
pub(super) struct WatchGuard {
    watcher: Watcher,
    instance: u64,
    wd: WatchDescriptor,
    listener: Arc<Listener>,
}

impl Watcher {
    /// Whether the kernel reports changes.
    pub(crate) fn can_watch() -> io::Result<bool> {
        Inotify::init().map(|_| true)
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Notifies `listener` of events in `dir` from now on, or of those of the file `only_file` if it is given.
    ///
    /// # Errors
    /// `NotFound` if the directory does not exist. Any other error means that the kernel reports no changes.
    pub(super) fn add(
        &self,
        dir: &Path,
        listener: &Arc<Listener>,
        only_file: Option<&str>,
    ) -> io::Result<WatchGuard> {
        let mut state = self.state();
        let instance = state.running_instance(&self.state)?;
        let wd = instance.watches.add(dir, WATCH_MASK)?;
        let only_file = only_file.map(str::to_owned);
        instance
            .listeners
            .entry(wd.clone())
            .or_default()
            .push(Registration { listener: Arc::clone(listener), only_file });
        Ok(WatchGuard { watcher: self.clone(), instance: instance.id, wd, listener: Arc::clone(listener) })
    }

    /// Whether [`close`](Self::close) was called.
    pub(crate) fn is_closed(&self) -> bool {
        self.state().closed
    }

    /// Stops the watcher. Waiters are woken and poll from then on.
    pub(crate) async fn close(&self) {
        let task = {
            let mut state = self.state();
            state.closed = true;
            state.instance.take().and_then(|mut instance| instance.task.take().inspect(JoinHandle::abort))
        };
        if let Some(task) = task {
            // Awaited so that the descriptor is closed on return. The task was aborted and has no result.
            let _ = task.await;
        }
    }
}

impl State {
    fn running_instance(&mut self, this: &Arc<Mutex<Self>>) -> io::Result<&mut Instance> {
        if self.closed {
            return Err(io::Error::other("the backend has been closed"));
        }
        // The task of an instance ends when the runtime that it was started on is shut down.
        let running = self.instance.take().filter(|i| i.task.as_ref().is_some_and(|t| !t.is_finished()));
        let instance = match running {
            Some(instance) => instance,
            None => {
                self.instances_started += 1;
                Instance::start(self.instances_started, this)?
            }
        };
        Ok(self.instance.insert(instance))
    }
}

impl Instance {
    fn start(id: u64, state: &Arc<Mutex<State>>) -> io::Result<Self> {
        let stream = Inotify::init()?.into_event_stream(vec![0; BUFFER_BYTES])?;
        let watches = stream.watches();
        let task = tokio::spawn(dispatch_events(stream, Arc::downgrade(state), id));
        Ok(Self { id, watches, task: Some(task), listeners: HashMap::new() })
    }

    fn dispatch(&mut self, event: &EventOwned) {
        let mask = event.mask;
        if mask.contains(EventMask::Q_OVERFLOW) {
            for registration in self.listeners.values().flatten() {
                registration.listener.wake(FileEvent::Closed);
            }
            return;
        }
        if mask.intersects(
            EventMask::DELETE_SELF | EventMask::MOVE_SELF | EventMask::IGNORED | EventMask::UNMOUNT,
        ) {
            if let Some(watch) = self.listeners.remove(&event.wd) {
                // The kernel still watches a directory that was moved, but not one that was deleted.
                let _ = self.watches.remove(event.wd.clone());
                watch.iter().for_each(|r| r.listener.mark_stale());
            }
            return;
        }
        let (Some(watch), Some(name)) =
            (self.listeners.get(&event.wd), event.name.as_ref().and_then(|n| n.to_str()))
        else {
            return;
        };
        let event = if mask.intersects(EventMask::DELETE | EventMask::MOVED_FROM) {
            FileEvent::Removed
        } else if mask.contains(EventMask::CLOSE_WRITE) {
            FileEvent::Closed
        } else if mask.intersects(EventMask::CREATE | EventMask::MOVED_TO) {
            FileEvent::Created
        } else {
            FileEvent::Modified
        };
        for Registration { listener, only_file } in watch {
            let matches = match only_file {
                Some(only_file) => only_file == name,
                None => listener.filter().matches(name, event),
            };
            if matches {
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
        self.listeners.values().flatten().for_each(|r| r.listener.mark_stale());
    }
}

impl Drop for WatchGuard {
    fn drop(&mut self) {
        let mut state = self.watcher.state();
        let Some(instance) = state.instance.as_mut().filter(|i| i.id == self.instance) else { return };
        let Some(watch) = instance.listeners.get_mut(&self.wd) else { return };
        if let Some(index) = watch.iter().position(|r| Arc::ptr_eq(&r.listener, &self.listener)) {
            watch.swap_remove(index);
        }
        if watch.is_empty() {
            instance.listeners.remove(&self.wd);
            // This fails only if the kernel has already removed the watch together with the directory.
            let _ = instance.watches.remove(self.wd.clone());
        }
    }
}

/// Dispatches events until the watcher is dropped.
async fn dispatch_events(mut events: EventStream<Vec<u8>>, state: Weak<Mutex<State>>, id: u64) {
    while let Some(event) = events.next().await {
        let Some(state) = state.upgrade() else { return };
        let mut state = state.lock().unwrap_or_else(PoisonError::into_inner);
        let Some(instance) = state.instance.as_mut().filter(|i| i.id == id) else { return };
        match event {
            Ok(event) => instance.dispatch(&event),
            Err(error) => {
                tracing::warn!(%error, "cannot read inotify events; the next waiter starts a new instance");
                state.instance = None;
                return;
            }
        }
    }
}
