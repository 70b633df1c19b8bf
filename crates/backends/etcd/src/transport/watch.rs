//! All watches of a backend, on one stream.
//!
//! A watch only signals "read again": a waiter reads the store, watches the keys that its result depends on from the
//! revision of the read + 1, and reads again when it is notified. So a compaction, a lost stream, and a frozen or
//! partitioned member are all the same case. There is one exception, where a watch itself proves something:
//! [`target::Succession`].
//!
//! - [`watcher`] is what callers use: a [`Subscription`](watcher::Subscription) for a waiter, or a
//!   [`Notifier`](subscriber::Notifier) for the owner of many watches. [`reusable`] keeps a subscription between
//!   reads.
//! - [`stream`] runs the stream, [`dispatch`] applies its responses, and [`table`] holds the watches that it carries.
//! - [`prefix_watch`] replaces thousands of single watches by one.
//! - [`target`] defines what is watched, and [`subscriber`] who is notified.

pub(crate) mod dispatch;
pub(crate) mod prefix_watch;
pub(crate) mod reusable;
pub(crate) mod stream;
pub(crate) mod subscriber;
pub(crate) mod table;
pub(crate) mod target;
pub(crate) mod watcher;
