pub(crate) mod prefix_watch;
pub(crate) mod stream;
pub(crate) mod subscriber;
pub(crate) mod table;
pub(crate) mod target;
pub(crate) mod watcher;
