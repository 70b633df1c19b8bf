//! Notifications from the kernel about the files of an election.
//!
//! A notification is only a reason to check the directory again. A waiter checks after it has subscribed, and from
//! time to time without a notification.

#[cfg(target_os = "linux")]
mod inotify;
mod listener;
#[cfg(not(target_os = "linux"))]
mod polling;
mod subscription;

#[cfg(target_os = "linux")]
pub(crate) use inotify::Watcher;
pub(crate) use listener::EventFilter;
#[cfg(not(target_os = "linux"))]
pub(crate) use polling::Watcher;
pub(crate) use subscription::{Subscription, WakeReason};
