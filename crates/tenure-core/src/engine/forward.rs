//! A `tracing` subscriber that copies what is logged and leaves the rest to the reporter's thread.
//!
//! It is the default on the engine's threads, so that nothing that is logged there, by this crate, a backend or a client
//! library, calls a user's subscriber on them. The exception is `register_callsite`, which `tracing` calls once for each
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

use super::report::{Queue, Report};

/// The subscriber that the reporter reports to.
#[derive(Default)]
pub(super) struct Target(OnceLock<Dispatch>);

impl Target {
    /// Takes the current thread's subscriber, unless there is one already or the thread has none. Whether it did.
    pub(super) fn learn(&self) -> bool {
        if self.0.get().is_some() {
            return false;
        }
        let current = dispatcher::get_default(Dispatch::clone);
        !current.is::<NoSubscriber>() && !current.is::<Forwarder>() && self.0.set(current).is_ok()
    }

    pub(super) fn scope(&self, log: impl FnOnce()) {
        if let Some(dispatch) = self.0.get() {
            dispatcher::with_default(dispatch, log);
        }
    }

    /// Logs `event` within its spans.
    pub(super) fn report(&self, event: &CapturedEvent) {
        let Some(dispatch) = self.0.get() else { return };
        if !dispatch.enabled(event.fields.metadata) {
            return;
        }
        dispatcher::with_default(dispatch, || {
            let mut entered = Entered { dispatch, spans: Vec::new() };
            if let Some(span) = &event.span {
                span.enter(&mut entered);
            }
            event.fields.with(|values| {
                Event::dispatch(event.fields.metadata, &event.fields.metadata.fields().value_set_all(values));
            });
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
    queue: Queue,
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
            self.queue.send(Report::SpanClosed(id));
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
    /// The spans that this thread is in, the innermost last.
    static ENTERED: RefCell<Vec<u64>> = const { RefCell::new(Vec::new()) };
}

/// The subscriber of the engine's threads.
pub(super) struct Forwarder {
    queue: Queue,
    target: Arc<Target>,
    last_id: AtomicU64,
    /// The spans, with the number of their handles.
    spans: Mutex<HashMap<u64, (Arc<CapturedSpan>, usize)>>,
}

impl Forwarder {
    pub(super) fn new(queue: Queue, target: Arc<Target>) -> Self {
        Self { queue, target, last_id: AtomicU64::new(0), spans: Mutex::default() }
    }

    fn span(&self, id: u64) -> Option<Arc<CapturedSpan>> {
        lock(&self.spans).get(&id).map(|(span, _)| Arc::clone(span))
    }

    fn current(&self) -> Option<Arc<CapturedSpan>> {
        self.span(ENTERED.with_borrow(|entered| entered.last().copied())?)
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Subscriber for Forwarder {
    fn register_callsite(&self, metadata: &'static Metadata<'static>) -> Interest {
        match self.target.0.get() {
            Some(dispatch) => dispatch.register_callsite(metadata),
            None => Interest::never(),
        }
    }

    /// The level in force is the highest of all subscribers', and the user's counts by itself.
    fn max_level_hint(&self) -> Option<LevelFilter> {
        Some(LevelFilter::OFF)
    }

    /// The reporter asks the user's subscriber.
    fn enabled(&self, _: &Metadata<'_>) -> bool {
        self.target.0.get().is_some()
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
            queue: self.queue.clone(),
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
        self.queue.send_event(CapturedEvent { fields, span });
    }

    fn enter(&self, id: &Id) {
        ENTERED.with_borrow_mut(|entered| entered.push(id.into_u64()));
    }

    fn exit(&self, id: &Id) {
        ENTERED.with_borrow_mut(|entered| {
            if let Some(place) = entered.iter().rposition(|entered| *entered == id.into_u64()) {
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
