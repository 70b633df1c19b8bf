//! A `tracing` subscriber that copies what is logged, to be reported to the user's elsewhere.
//!
//! It is the default on the engine's thread and its threads for files, so that nothing that is logged there, by this crate, a
//! backend or a client library, calls a user's subscriber on them. The exception is `register_callsite`, which `tracing` calls once for each
//! place that logs, for every subscriber.

use std::{
    cell::RefCell,
    collections::HashMap,
    error::Error,
    fmt,
    sync::{
        Arc, Mutex, MutexGuard, OnceLock, PoisonError,
        atomic::{AtomicU64, Ordering},
    },
};

use tracing::{
    Dispatch, Event, Metadata, Subscriber, Value, dispatcher,
    field::{Field, Visit},
    level_filters::LevelFilter,
    span::{Attributes, Id, Record},
    subscriber::{Interest, NoSubscriber},
};

use super::report::Events;

/// The subscriber that is reported to.
#[derive(Default)]
pub(super) struct Target(OnceLock<Dispatch>);

impl Target {
    /// The current thread's subscriber; where it has none, the process's once there is one.
    pub(super) fn of_this_thread() -> Self {
        let target = Self::default();
        target.dispatch();
        target
    }

    fn dispatch(&self) -> Option<&Dispatch> {
        if self.0.get().is_none() {
            let current = dispatcher::get_default(Dispatch::clone);
            if !current.is::<NoSubscriber>() && !current.is::<Forwarder>() {
                let _ = self.0.set(current);
            }
        }
        self.0.get()
    }

    pub(super) fn scope(&self, log: impl FnOnce()) {
        if let Some(dispatch) = self.dispatch() {
            dispatcher::with_default(dispatch, log);
        }
    }

    /// Logs `event` within its spans.
    pub(super) fn report(&self, event: &CapturedEvent) {
        let metadata = event.fields.metadata;
        let Some(dispatch) = self.dispatch().filter(|dispatch| dispatch.enabled(metadata)) else { return };
        dispatcher::with_default(dispatch, || {
            let mut entered = Entered { dispatch, spans: Vec::new() };
            if let Some(span) = &event.span {
                span.enter(&mut entered);
            }
            // Asked last about the event itself: filters of layers remember the last answer.
            if dispatch.enabled(metadata) {
                event.fields.with(|values| {
                    Event::dispatch(metadata, &metadata.fields().value_set_all(values));
                });
            }
        });
    }

    pub(super) fn close(&self, id: Id) {
        if let Some(dispatch) = self.0.get() {
            dispatch.try_close(id);
        }
    }
}

/// The spans of an event, left again in reverse order, also when the subscriber panics.
struct Entered<'a> {
    dispatch: &'a Dispatch,
    spans: Vec<Id>,
}

impl Drop for Entered<'_> {
    fn drop(&mut self) {
        for id in self.spans.iter().rev() {
            self.dispatch.exit(id);
        }
    }
}

/// A copy of an event.
pub(super) struct CapturedEvent {
    fields: Fields,
    span: Option<Arc<CapturedSpan>>,
}

/// A copy of a span, opened in the user's subscriber with the first event inside it.
struct CapturedSpan {
    fields: Fields,
    parent: Option<Arc<CapturedSpan>>,
    /// What was recorded after the span was made, and not reported yet.
    records: Mutex<Vec<Fields>>,
    opened: OnceLock<Option<Id>>,
    events: Events,
}

impl CapturedSpan {
    fn enter(&self, entered: &mut Entered<'_>) {
        if let Some(parent) = &self.parent {
            parent.enter(entered);
        }
        let dispatch = entered.dispatch;
        let opened = self.opened.get_or_init(|| {
            dispatch.enabled(self.fields.metadata).then(|| {
                self.fields.with(|values| {
                    let values = self.fields.metadata.fields().value_set_all(values);
                    dispatch.new_span(&match entered.spans.last() {
                        Some(parent) => Attributes::child_of(parent.clone(), self.fields.metadata, &values),
                        None => Attributes::new_root(self.fields.metadata, &values),
                    })
                })
            })
        });
        let Some(id) = opened else { return };
        for record in lock(&self.records).drain(..) {
            record.with(|values| {
                dispatch.record(id, &Record::new(&record.metadata.fields().value_set_all(values)));
            });
        }
        dispatch.enter(id);
        entered.spans.push(id.clone());
    }
}

impl Drop for CapturedSpan {
    fn drop(&mut self) {
        if let Some(Some(id)) = self.opened.take() {
            self.events.close(id);
        }
    }
}

/// The values of an event's or a span's fields, by their places.
struct Fields {
    metadata: &'static Metadata<'static>,
    values: Vec<Option<Captured>>,
}

enum Captured {
    F64(f64),
    I64(i64),
    U64(u64),
    I128(i128),
    U128(u128),
    Bool(bool),
    Str(String),
    /// As its `Debug` or `Display` has it.
    Text(tracing::field::DisplayValue<String>),
}

impl Captured {
    fn value(&self) -> &dyn Value {
        match self {
            Self::F64(value) => value,
            Self::I64(value) => value,
            Self::U64(value) => value,
            Self::I128(value) => value,
            Self::U128(value) => value,
            Self::Bool(value) => value,
            Self::Str(value) => value,
            Self::Text(value) => value,
        }
    }
}

impl Fields {
    fn new(metadata: &'static Metadata<'static>) -> Self {
        Self { metadata, values: metadata.fields().iter().map(|_| None).collect() }
    }

    fn with<T>(&self, call: impl FnOnce(&[Option<&dyn Value>]) -> T) -> T {
        let values: Vec<_> = self.values.iter().map(|value| value.as_ref().map(Captured::value)).collect();
        call(&values)
    }

    fn set(&mut self, field: &Field, value: Captured) {
        if let Some(place) = self.values.get_mut(field.index()) {
            *place = Some(value);
        }
    }
}

impl Visit for Fields {
    fn record_f64(&mut self, field: &Field, value: f64) {
        self.set(field, Captured::F64(value));
    }
    fn record_i64(&mut self, field: &Field, value: i64) {
        self.set(field, Captured::I64(value));
    }
    fn record_u64(&mut self, field: &Field, value: u64) {
        self.set(field, Captured::U64(value));
    }
    fn record_i128(&mut self, field: &Field, value: i128) {
        self.set(field, Captured::I128(value));
    }
    fn record_u128(&mut self, field: &Field, value: u128) {
        self.set(field, Captured::U128(value));
    }
    fn record_bool(&mut self, field: &Field, value: bool) {
        self.set(field, Captured::Bool(value));
    }
    fn record_str(&mut self, field: &Field, value: &str) {
        self.set(field, Captured::Str(value.to_owned()));
    }
    fn record_error(&mut self, field: &Field, value: &(dyn Error + 'static)) {
        self.set(field, Captured::Text(tracing::field::display(value.to_string())));
    }
    fn record_debug(&mut self, field: &Field, value: &dyn fmt::Debug) {
        self.set(field, Captured::Text(tracing::field::display(format!("{value:?}"))));
    }
}

thread_local! {
    /// The spans that this thread is in, of which forwarder, the innermost last.
    static ENTERED: RefCell<Vec<(u64, u64)>> = const { RefCell::new(Vec::new()) };
}

/// The subscriber of the engine's threads.
pub(super) struct Forwarder {
    number: u64,
    events: Events,
    target: Arc<Target>,
    last_id: AtomicU64,
    /// The spans, with the number of their handles.
    spans: Mutex<HashMap<u64, (Arc<CapturedSpan>, usize)>>,
}

impl Forwarder {
    pub(super) fn new(events: Events, target: Arc<Target>) -> Self {
        static NUMBER: AtomicU64 = AtomicU64::new(0);
        let number = NUMBER.fetch_add(1, Ordering::Relaxed);
        Self { number, events, target, last_id: AtomicU64::new(0), spans: Mutex::default() }
    }

    fn span(&self, id: u64) -> Option<Arc<CapturedSpan>> {
        lock(&self.spans).get(&id).map(|(span, _)| Arc::clone(span))
    }

    fn current(&self) -> Option<Arc<CapturedSpan>> {
        let innermost = |entered: &RefCell<Vec<(u64, u64)>>| {
            entered.borrow().iter().rev().find(|(forwarder, _)| *forwarder == self.number).map(|(_, id)| *id)
        };
        self.span(ENTERED.try_with(innermost).ok()??)
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Subscriber for Forwarder {
    fn register_callsite(&self, metadata: &'static Metadata<'static>) -> Interest {
        match self.target.0.get() {
            Some(dispatch) => dispatch.register_callsite(metadata),
            None => Interest::sometimes(),
        }
    }

    /// The level in force is the highest of all subscribers', and the user's counts by itself.
    fn max_level_hint(&self) -> Option<LevelFilter> {
        Some(LevelFilter::OFF)
    }

    /// The user's subscriber is asked when the event is reported.
    fn enabled(&self, _: &Metadata<'_>) -> bool {
        true
    }

    fn new_span(&self, attributes: &Attributes<'_>) -> Id {
        let mut fields = Fields::new(attributes.metadata());
        attributes.record(&mut fields);
        let parent = match attributes.parent() {
            Some(parent) => self.span(parent.into_u64()),
            None if attributes.is_contextual() => self.current(),
            None => None,
        };
        let id = self.last_id.fetch_add(1, Ordering::Relaxed) + 1;
        let span = CapturedSpan {
            fields,
            parent,
            records: Mutex::default(),
            opened: OnceLock::new(),
            events: self.events.clone(),
        };
        lock(&self.spans).insert(id, (Arc::new(span), 1));
        Id::from_u64(id)
    }

    fn record(&self, id: &Id, values: &Record<'_>) {
        if let Some(span) = self.span(id.into_u64()) {
            let mut fields = Fields::new(span.fields.metadata);
            values.record(&mut fields);
            lock(&span.records).push(fields);
        }
    }

    fn record_follows_from(&self, _: &Id, _: &Id) {}

    fn event(&self, event: &Event<'_>) {
        let mut fields = Fields::new(event.metadata());
        event.record(&mut fields);
        let span = match event.parent() {
            Some(parent) => self.span(parent.into_u64()),
            None if event.is_contextual() => self.current(),
            None => None,
        };
        self.events.send(CapturedEvent { fields, span });
    }

    fn enter(&self, id: &Id) {
        let _ = ENTERED.try_with(|entered| entered.borrow_mut().push((self.number, id.into_u64())));
    }

    fn exit(&self, id: &Id) {
        let this = (self.number, id.into_u64());
        let _ = ENTERED.try_with(|entered| {
            let mut entered = entered.borrow_mut();
            if let Some(place) = entered.iter().rposition(|entered| *entered == this) {
                entered.remove(place);
            }
        });
    }

    fn clone_span(&self, id: &Id) -> Id {
        if let Some((_, handles)) = lock(&self.spans).get_mut(&id.into_u64()) {
            *handles += 1;
        }
        id.clone()
    }

    fn try_close(&self, id: Id) -> bool {
        let mut spans = lock(&self.spans);
        let Some((_, handles)) = spans.get_mut(&id.into_u64()) else { return false };
        *handles -= 1;
        let closed = if *handles == 0 { spans.remove(&id.into_u64()) } else { None };
        drop(spans);
        closed.is_some()
    }
}
