//! The errors of etcd, with its texts, which the client parses.

use tonic::Status;

pub(super) fn lease_not_found() -> Status {
    Status::not_found("etcdserver: requested lease not found")
}

pub(super) fn compacted() -> Status {
    Status::out_of_range("etcdserver: mvcc: required revision has been compacted")
}

pub(super) fn no_leader() -> Status {
    Status::unavailable("etcdserver: no leader")
}

pub(super) fn leader_changed() -> Status {
    Status::unavailable("etcdserver: leader changed")
}

pub(super) fn timed_out() -> Status {
    Status::unavailable("etcdserver: request timed out")
}

pub(super) fn out_of_space() -> Status {
    Status::resource_exhausted("etcdserver: mvcc: database space exceeded")
}
