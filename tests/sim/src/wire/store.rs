//! The keys and values of the fake etcd: revisions, transactions, keys of leases, and the log that feeds watches.

use std::{
    collections::{BTreeMap, VecDeque},
    time::Duration,
};

use etcd_client::{
    EventType,
    proto::{
        PbCompare, PbDeleteRequest, PbDeleteResponse, PbEvent, PbKeyValue, PbPutRequest, PbPutResponse,
        PbRangeRequest, PbRangeResponse, PbResponseOp, PbTargetUnion, PbTxnOpRequest, PbTxnOpResponse,
        PbTxnRequest, PbTxnRequestOp, PbTxnResponse,
    },
};
use tonic::Status;

use super::etcd_error;

/// The agreed state. etcd's first revision is 1; its first key has revision 2.
#[derive(Debug)]
pub(super) struct Store {
    pub(super) revision: i64,
    pub(super) compacted: i64,
    keys: BTreeMap<Vec<u8>, PbKeyValue>,
    log: VecDeque<Logged>,
    pub(super) leases: BTreeMap<i64, Granted>,
    granted: u64,
    /// The NOSPACE alarm is on: puts and grants are refused, and deletes are allowed.
    pub(super) out_of_space: bool,
    /// The events of the revision in progress.
    pending: Vec<PbEvent>,
}

#[derive(Clone, Copy, Debug)]
pub(super) struct Granted {
    /// In seconds.
    pub(super) ttl: i64,
    pub(super) at: Duration,
    /// The number of earlier grants.
    pub(super) nth: u64,
}

/// A change, and when it was made.
#[derive(Debug)]
pub(super) struct Logged {
    pub(super) revision: i64,
    pub(super) at: Duration,
    pub(super) event: PbEvent,
}

/// The keys that a request names.
#[derive(Clone, Debug)]
pub(super) struct Keys {
    pub(super) first: Vec<u8>,
    pub(super) end: Vec<u8>,
}

impl Keys {
    pub(super) fn contain(&self, key: &[u8]) -> bool {
        match self.end.as_slice() {
            [] => key == self.first,
            [0] => key >= self.first.as_slice(),
            end => key >= self.first.as_slice() && key < end,
        }
    }
}

/// etcd's minimum TTL with its default election timeout of 1 s: 1.5 times that, rounded up to seconds.
const MIN_TTL: i64 = 2;
const MAX_TTL: i64 = 9_000_000_000;

/// A transaction after its comparisons.
struct Planned {
    succeeded: bool,
    ops: Vec<Step>,
}

enum Step {
    Op(PbTxnRequestOp),
    Within(Planned),
}

impl Store {
    pub(super) fn new() -> Self {
        Self {
            revision: 1,
            compacted: 0,
            keys: BTreeMap::new(),
            log: VecDeque::new(),
            leases: BTreeMap::new(),
            granted: 0,
            out_of_space: false,
            pending: Vec::new(),
        }
    }

    /// Makes one revision of the changes of `with`, if there are any.
    fn change<T>(&mut self, now: Duration, with: impl FnOnce(&mut Self) -> T) -> T {
        let outcome = with(self);
        let pending = std::mem::take(&mut self.pending);
        if !pending.is_empty() {
            self.revision += 1;
            let revision = self.revision;
            self.log.extend(pending.into_iter().map(|event| Logged { revision, at: now, event }));
        }
        outcome
    }

    fn found(&self, keys: &Keys) -> Vec<&PbKeyValue> {
        let from = self.keys.range(keys.first.clone()..);
        from.take_while(|(key, _)| keys.contain(key)).map(|(_, kv)| kv).collect()
    }

    pub(super) fn range(&self, request: PbRangeRequest) -> Result<PbRangeResponse, Status> {
        if request.revision > 0 && request.revision <= self.compacted {
            return Err(etcd_error::compacted());
        }
        if request.revision > 0 && request.revision < self.revision {
            return Err(Status::unimplemented("the fake etcd reads the present only"));
        }
        let within = |revision: i64, min: i64, max: i64| {
            (min == 0 || revision >= min) && (max == 0 || revision <= max)
        };
        let found = self.found(&Keys { first: request.key, end: request.range_end });
        let count = found.len() as i64;
        let mut kvs: Vec<&PbKeyValue> = found
            .into_iter()
            .filter(|kv| within(kv.mod_revision, request.min_mod_revision, request.max_mod_revision))
            .filter(|kv| within(kv.create_revision, request.min_create_revision, request.max_create_revision))
            .collect();
        match request.sort_target {
            1 => kvs.sort_by_key(|kv| kv.version),
            2 => kvs.sort_by_key(|kv| kv.create_revision),
            3 => kvs.sort_by_key(|kv| kv.mod_revision),
            4 => kvs.sort_by(|a, b| a.value.cmp(&b.value)),
            // By key, as they are.
            _ => {}
        }
        const DESCENDING: i32 = 2;
        if request.sort_order == DESCENDING {
            kvs.reverse();
        }
        let limit = usize::try_from(request.limit).ok().filter(|limit| *limit > 0).unwrap_or(usize::MAX);
        let more = kvs.len() > limit;
        kvs.truncate(if request.count_only { 0 } else { limit });
        let visible_candidates = |kv: &PbKeyValue| PbKeyValue {
            value: if request.keys_only { Vec::new() } else { kv.value.clone() },
            ..kv.clone()
        };
        Ok(PbRangeResponse {
            header: None,
            kvs: kvs.into_iter().map(visible_candidates).collect(),
            more,
            count,
        })
    }

    pub(super) fn put(&mut self, now: Duration, request: PbPutRequest) -> Result<PbPutResponse, Status> {
        self.check_space(true)?;
        self.check_lease(&request)?;
        Ok(self.change(now, |store| store.put_now(request)))
    }

    /// As `applierV3Capped` has it (`server/etcdserver/apply.go`).
    fn check_space(&self, takes_space: bool) -> Result<(), Status> {
        if self.out_of_space && takes_space { Err(etcd_error::out_of_space()) } else { Ok(()) }
    }

    fn check_lease(&self, request: &PbPutRequest) -> Result<(), Status> {
        if request.lease != 0 && !self.leases.contains_key(&request.lease) {
            return Err(etcd_error::lease_not_found());
        }
        Ok(())
    }

    fn put_now(&mut self, request: PbPutRequest) -> PbPutResponse {
        let revision = self.revision + 1;
        let prev = self.keys.get(&request.key).cloned();
        let kv = PbKeyValue {
            create_revision: prev.as_ref().map_or(revision, |prev| prev.create_revision),
            mod_revision: revision,
            version: prev.as_ref().map_or(1, |prev| prev.version + 1),
            key: request.key.clone(),
            value: request.value,
            lease: request.lease,
        };
        self.keys.insert(request.key, kv.clone());
        let event = PbEvent { r#type: EventType::Put as i32, kv: Some(kv), prev_kv: None };
        self.pending.push(event);
        PbPutResponse { header: None, prev_kv: prev.filter(|_| request.prev_kv) }
    }

    pub(super) fn delete(&mut self, now: Duration, request: PbDeleteRequest) -> PbDeleteResponse {
        self.change(now, |store| store.delete_now(request))
    }

    fn delete_now(&mut self, request: PbDeleteRequest) -> PbDeleteResponse {
        let keys = Keys { first: request.key, end: request.range_end };
        let gone: Vec<PbKeyValue> = self.found(&keys).into_iter().cloned().collect();
        for kv in &gone {
            self.remove(&kv.key);
        }
        PbDeleteResponse {
            header: None,
            deleted: gone.len() as i64,
            prev_kvs: if request.prev_kv { gone } else { Vec::new() },
        }
    }

    /// Deletes one key.
    pub(super) fn delete_key(&mut self, now: Duration, key: &[u8]) {
        self.change(now, |store| store.remove(key));
    }

    fn remove(&mut self, key: &[u8]) {
        if self.keys.remove(key).is_some() {
            let kv =
                PbKeyValue { key: key.to_vec(), mod_revision: self.revision + 1, ..PbKeyValue::default() };
            let event = PbEvent { r#type: EventType::Delete as i32, kv: Some(kv), prev_kv: None };
            self.pending.push(event);
        }
    }

    /// As etcd does: it compares everywhere, in transactions within transactions too, before it changes anything; and
    /// carries out all of it, or nothing, in one revision.
    pub(super) fn txn(&mut self, now: Duration, request: PbTxnRequest) -> Result<PbTxnResponse, Status> {
        self.check_space(puts(&request))?;
        let planned = self.plan(request);
        self.check_leases(&planned.ops)?;
        let responses = self.change(now, |store| store.carry_out_all(planned.ops))?;
        Ok(PbTxnResponse { header: None, succeeded: planned.succeeded, responses })
    }

    fn plan(&self, request: PbTxnRequest) -> Planned {
        let succeeded = request.compare.iter().all(|compare| self.holds(compare));
        let ops = if succeeded { request.success } else { request.failure };
        let ops = ops.into_iter().map(|op| match op.request {
            Some(PbTxnOpRequest::RequestTxn(txn)) => Step::Within(self.plan(txn)),
            request => Step::Op(PbTxnRequestOp { request }),
        });
        Planned { succeeded, ops: ops.collect() }
    }

    fn check_leases(&self, ops: &[Step]) -> Result<(), Status> {
        ops.iter().try_for_each(|step| match step {
            Step::Within(planned) => self.check_leases(&planned.ops),
            Step::Op(PbTxnRequestOp { request: Some(PbTxnOpRequest::RequestPut(put)) }) => {
                self.check_lease(put)
            }
            Step::Op(_) => Ok(()),
        })
    }

    fn carry_out_all(&mut self, ops: Vec<Step>) -> Result<Vec<PbResponseOp>, Status> {
        ops.into_iter()
            .map(|step| match step {
                Step::Op(op) => self.carry_out(op),
                Step::Within(planned) => {
                    let responses = self.carry_out_all(planned.ops)?;
                    let txn = PbTxnResponse { header: None, succeeded: planned.succeeded, responses };
                    Ok(PbResponseOp { response: Some(PbTxnOpResponse::ResponseTxn(txn)) })
                }
            })
            .collect()
    }

    fn carry_out(&mut self, op: PbTxnRequestOp) -> Result<PbResponseOp, Status> {
        let response = match op.request {
            Some(PbTxnOpRequest::RequestRange(range)) => PbTxnOpResponse::ResponseRange(self.range(range)?),
            Some(PbTxnOpRequest::RequestPut(put)) => PbTxnOpResponse::ResponsePut(self.put_now(put)),
            Some(PbTxnOpRequest::RequestDeleteRange(delete)) => {
                PbTxnOpResponse::ResponseDeleteRange(self.delete_now(delete))
            }
            Some(PbTxnOpRequest::RequestTxn(_)) | None => {
                return Err(Status::invalid_argument("an operation that is none"));
            }
        };
        Ok(PbResponseOp { response: Some(response) })
    }

    /// Of a key that is not there, all numbers are zero, and its value equals nothing.
    fn holds(&self, compare: &PbCompare) -> bool {
        let kv = self.keys.get(&compare.key);
        let number = |of: fn(&PbKeyValue) -> i64, with: i64| Some(kv.map_or(0, of).cmp(&with));
        let ordering = match &compare.target_union {
            Some(PbTargetUnion::Version(with)) => number(|kv| kv.version, *with),
            Some(PbTargetUnion::CreateRevision(with)) => number(|kv| kv.create_revision, *with),
            Some(PbTargetUnion::ModRevision(with)) => number(|kv| kv.mod_revision, *with),
            Some(PbTargetUnion::Lease(with)) => number(|kv| kv.lease, *with),
            Some(PbTargetUnion::Value(with)) => kv.map(|kv| kv.value.cmp(with)),
            None => None,
        };
        ordering.is_some_and(|ordering| match compare.result {
            0 => ordering.is_eq(),
            1 => ordering.is_gt(),
            2 => ordering.is_lt(),
            _ => ordering.is_ne(),
        })
    }

    /// The TTL in seconds as it was granted.
    pub(super) fn grant(&mut self, now: Duration, id: i64, ttl: i64) -> Result<i64, Status> {
        self.check_space(true)?;
        if ttl > MAX_TTL {
            return Err(Status::out_of_range("etcdserver: too large lease TTL"));
        }
        if self.leases.contains_key(&id) {
            return Err(Status::failed_precondition("etcdserver: lease already exists"));
        }
        let ttl = ttl.max(MIN_TTL);
        self.leases.insert(id, Granted { ttl, at: now, nth: self.granted });
        self.granted += 1;
        Ok(ttl)
    }

    /// Ends a lease, and with it its keys, in one revision.
    pub(super) fn revoke(&mut self, now: Duration, id: i64) -> Result<(), Status> {
        self.leases.remove(&id).ok_or_else(etcd_error::lease_not_found)?;
        let keys = self.keys_of(id);
        self.change(now, |store| keys.iter().for_each(|key| store.remove(key)));
        Ok(())
    }

    pub(super) fn keys_of(&self, lease: i64) -> Vec<Vec<u8>> {
        self.keys.values().filter(|kv| kv.lease == lease).map(|kv| kv.key.clone()).collect()
    }

    pub(super) fn compact(&mut self, revision: i64) -> Result<(), Status> {
        if revision <= self.compacted {
            return Err(etcd_error::compacted());
        }
        if revision > self.revision {
            return Err(Status::out_of_range("etcdserver: mvcc: required revision is a future revision"));
        }
        self.compacted = revision;
        self.log.retain(|logged| logged.revision > revision);
        Ok(())
    }

    /// What happened after revision `after`, for a member that knows what is older than `seen`.
    pub(super) fn log(&self, after: i64, seen: Duration) -> impl Iterator<Item = &Logged> {
        let from = self.log.partition_point(|logged| logged.revision <= after);
        self.log.range(from..).take_while(move |logged| logged.at <= seen)
    }

    /// The revision of a member that knows what is older than `seen`.
    pub(super) fn revision_seen(&self, seen: Duration) -> i64 {
        let unseen = self.log.partition_point(|logged| logged.at <= seen);
        self.log.get(unseen).map_or(self.revision, |logged| logged.revision - 1)
    }

    /// The first key below `prefix` in the order of creation, which is the leader's.
    pub(super) fn head(&self, prefix: &str) -> Option<&PbKeyValue> {
        let all = self.keys.values().filter(|kv| kv.key.starts_with(prefix.as_bytes()));
        all.min_by_key(|kv| kv.create_revision)
    }

    pub(super) fn key_count(&self) -> usize {
        self.keys.len()
    }
}

/// Whether a transaction can put anything, whichever way its comparisons go.
fn puts(txn: &PbTxnRequest) -> bool {
    txn.success.iter().chain(&txn.failure).any(|op| match &op.request {
        Some(PbTxnOpRequest::RequestPut(_)) => true,
        Some(PbTxnOpRequest::RequestTxn(txn)) => puts(txn),
        _ => false,
    })
}
