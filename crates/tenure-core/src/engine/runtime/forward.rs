//! A `tracing` subscriber that copies events and reports them to the application's subscriber on a callback thread.
//!
//! It is the default on the engine's thread and its blocking threads. So no event that this crate, a backend or
//! a client library logs there calls the application's subscriber on those threads. The exception is
//! `register_callsite`, which `tracing` calls for every subscriber, once for each call site.

use std::{
    cell::RefCell,
    collections::HashMap,
    error::Error,
    fmt,
    sync::{
        Arc, Mutex, MutexGuard, OnceLock, PoisonError, Weak,
        atomic::{AtomicU64, Ordering},
    },
};

use tracing::{
    Dispatch, Event, Metadata, Subscriber, Value, dispatcher,
    field::{Field, Visit},
    level_filters::LevelFilter,
    span::{Attributes, Id, Record},
    subscriber::{Interest, NoSubscriber},
    warn,
};

use super::{callbacks::catch_panic, report_queue::ReportQueue};

/// The application's subscriber, to which events are reported.
#[derive(Default)]
pub(super) struct UserSubscriber(OnceLock<Dispatch>);

impl UserSubscriber {
    /// The current thread's subscriber. If it has none, the process's, as soon as one is set.
    pub(super) fn of_this_thread() -> Self {
        let subscriber = Self::default();
        subscriber.dispatch();
        subscriber
    }

    fn dispatch(&self) -> Option<&Dispatch> {
        if self.0.get().is_none() {
            let current = dispatcher::get_default(Dispatch::clone);
            if !current.is::<NoSubscriber>() && !current.is::<ForwardingSubscriber>() {
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

    /// Logs `event` inside its spans.
    fn report(&self, event: &CapturedEvent) {
        let metadata = event.fields.metadata;
        let Some(dispatch) = self.dispatch().filter(|dispatch| dispatch.enabled(metadata)) else { return };
        dispatcher::with_default(dispatch, || {
            let mut entered = EnteredSpans { dispatch, spans: Vec::new() };
            if let Some(span) = &event.span {
                span.enter(&mut entered);
            }
            // Called for the event itself last: the filters of layers remember the last answer.
            if dispatch.enabled(metadata) {
                event.fields.with(|values| {
                    Event::dispatch(metadata, &metadata.fields().value_set_all(values));
                });
            }
        });
    }

    fn close(&self, id: Id) {
        if let Some(dispatch) = self.0.get() {
            dispatch.try_close(id);
        }
    }
}

/// The entered spans of an event. They are exited in reverse order on drop, also when the subscriber panics.
struct EnteredSpans<'a> {
    dispatch: &'a Dispatch,
    spans: Vec<Id>,
}

impl Drop for EnteredSpans<'_> {
    fn drop(&mut self) {
        for id in self.spans.iter().rev() {
            self.dispatch.exit(id);
        }
    }
}

/// A copy of an event.
struct CapturedEvent {
    fields: Fields,
    span: Option<Arc<CapturedSpan>>,
}

/// A copy of a span. It is opened in the application's subscriber with the first event inside it.
struct CapturedSpan {
    fields: Fields,
    parent: Option<Arc<CapturedSpan>>,
    /// Values that were recorded after the span was created, and are not reported yet.
    records: Mutex<Vec<Fields>>,
    opened: OnceLock<Option<Id>>,
    events: EventSink,
}

impl CapturedSpan {
    fn enter(&self, entered: &mut EnteredSpans<'_>) {
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

/// The values of the fields of an event or a span, in the order of their metadata.
struct Fields {
    metadata: &'static Metadata<'static>,
    values: Vec<Option<FieldValue>>,
}

enum FieldValue {
    F64(f64),
    I64(i64),
    U64(u64),
    I128(i128),
    U128(u128),
    Bool(bool),
    Str(String),
    /// The output of `Debug` or `Display`.
    Text(tracing::field::DisplayValue<String>),
}

impl FieldValue {
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
        let values: Vec<_> = self.values.iter().map(|value| value.as_ref().map(FieldValue::value)).collect();
        call(&values)
    }

    fn set(&mut self, field: &Field, value: FieldValue) {
        if let Some(slot) = self.values.get_mut(field.index()) {
            *slot = Some(value);
        }
    }
}

impl Visit for Fields {
    fn record_f64(&mut self, field: &Field, value: f64) {
        self.set(field, FieldValue::F64(value));
    }
    fn record_i64(&mut self, field: &Field, value: i64) {
        self.set(field, FieldValue::I64(value));
    }
    fn record_u64(&mut self, field: &Field, value: u64) {
        self.set(field, FieldValue::U64(value));
    }
    fn record_i128(&mut self, field: &Field, value: i128) {
        self.set(field, FieldValue::I128(value));
    }
    fn record_u128(&mut self, field: &Field, value: u128) {
        self.set(field, FieldValue::U128(value));
    }
    fn record_bool(&mut self, field: &Field, value: bool) {
        self.set(field, FieldValue::Bool(value));
    }
    fn record_str(&mut self, field: &Field, value: &str) {
        self.set(field, FieldValue::Str(value.to_owned()));
    }
    fn record_error(&mut self, field: &Field, value: &(dyn Error + 'static)) {
        self.set(field, FieldValue::Text(tracing::field::display(value.to_string())));
    }
    fn record_debug(&mut self, field: &Field, value: &dyn fmt::Debug) {
        self.set(field, FieldValue::Text(tracing::field::display(format!("{value:?}"))));
    }
}

thread_local! {
    /// The spans that this thread has entered, as (number of the subscriber, span id), the innermost last.
    static ENTERED: RefCell<Vec<(u64, u64)>> = const { RefCell::new(Vec::new()) };
}

/// Where copied events go. Clones share the queue.
#[derive(Clone)]
pub(super) struct EventSink {
    queue: ReportQueue,
    subscriber: Weak<UserSubscriber>,
}

impl EventSink {
    pub(super) fn new(queue: ReportQueue, subscriber: &Arc<UserSubscriber>) -> Self {
        Self { queue, subscriber: Arc::downgrade(subscriber) }
    }

    /// Queues an event; drops it when too many wait.
    fn send(&self, event: CapturedEvent) {
        let events = self.clone();
        self.queue.send_event(move || events.report(&event));
    }

    /// Closes the span that the application's subscriber knows by this id.
    fn close(&self, id: Id) {
        let subscriber = self.subscriber.clone();
        self.queue.send(move || {
            if let Some(subscriber) = subscriber.upgrade() {
                subscriber.close(id);
            }
        });
    }

    fn report(&self, event: &CapturedEvent) {
        let dropped = self.queue.take_event();
        let Some(subscriber) = self.subscriber.upgrade() else { return };
        if dropped > 0 {
            let log = || warn!(dropped, "events were not logged, because the log did not take them in time");
            catch_panic(|| subscriber.scope(log));
        }
        subscriber.report(event);
    }
}

/// The subscriber of the engine's threads.
pub(super) struct ForwardingSubscriber {
    /// Tells it from the subscribers of other engines in [`ENTERED`].
    number: u64,
    events: EventSink,
    subscriber: Arc<UserSubscriber>,
    last_id: AtomicU64,
    /// The open spans, with the number of their handles.
    spans: Mutex<HashMap<u64, (Arc<CapturedSpan>, usize)>>,
}

impl ForwardingSubscriber {
    pub(super) fn new(events: EventSink, subscriber: Arc<UserSubscriber>) -> Self {
        static NUMBER: AtomicU64 = AtomicU64::new(0);
        let number = NUMBER.fetch_add(1, Ordering::Relaxed);
        Self { number, events, subscriber, last_id: AtomicU64::new(0), spans: Mutex::default() }
    }

    fn span(&self, id: u64) -> Option<Arc<CapturedSpan>> {
        lock(&self.spans).get(&id).map(|(span, _)| Arc::clone(span))
    }

    fn current(&self) -> Option<Arc<CapturedSpan>> {
        let innermost = |entered: &RefCell<Vec<(u64, u64)>>| {
            entered.borrow().iter().rev().find(|(number, _)| *number == self.number).map(|(_, id)| *id)
        };
        self.span(ENTERED.try_with(innermost).ok()??)
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Subscriber for ForwardingSubscriber {
    fn register_callsite(&self, metadata: &'static Metadata<'static>) -> Interest {
        match self.subscriber.0.get() {
            Some(dispatch) => dispatch.register_callsite(metadata),
            None => Interest::sometimes(),
        }
    }

    /// `tracing` uses the highest level of all subscribers: the application's counts by itself.
    fn max_level_hint(&self) -> Option<LevelFilter> {
        Some(LevelFilter::OFF)
    }

    /// Decided by the application's subscriber when the event is reported.
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
            if let Some(position) = entered.iter().rposition(|entered| *entered == this) {
                entered.remove(position);
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
