//! Tests on etcd: the conformance suite on each version, and what only etcd has.

mod access;
mod addresses;
mod cluster;
mod discovery;
mod etcd_3_4;
mod etcd_3_5;
mod faults;
mod grpc_proxy;
mod interop;
mod many_elections;
mod member_list;
mod no_space;
mod prefix_watch;
mod requests;
