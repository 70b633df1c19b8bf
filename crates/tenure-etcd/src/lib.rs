//! tenure-etcd
