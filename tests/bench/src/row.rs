//! One measurement next to its floor, the raw store operation.

use std::time::Duration;

use serde::Serialize;

/// What was measured, in microseconds.
#[derive(Debug, Serialize)]
pub(crate) struct Row {
    /// What was measured, if not tenure.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) peer: Option<&'static str>,
    pub(crate) store: String,
    pub(crate) measure: String,
    /// A description of the floor.
    pub(crate) floor: &'static str,
    pub(crate) rounds: usize,
    pub(crate) p50_us: f64,
    pub(crate) p99_us: f64,
    pub(crate) floor_p50_us: Option<f64>,
    pub(crate) floor_p99_us: Option<f64>,
    pub(crate) ratio_p50: Option<f64>,
    pub(crate) ratio_p99: Option<f64>,
    /// The target, as text.
    pub(crate) target: String,
    pub(crate) met: bool,
}

/// The samples of one measurement.
#[derive(Debug, Default)]
pub(crate) struct Samples(Vec<Duration>);

impl Samples {
    pub(crate) fn add(&mut self, time: Duration) {
        self.0.push(time);
    }

    pub(crate) fn add_if(&mut self, is_counted: bool, time: Duration) {
        if is_counted {
            self.add(time);
        }
    }

    pub(crate) fn len(&self) -> usize {
        self.0.len()
    }

    /// The quantile `share`, in microseconds.
    fn at(&self, share: f64) -> f64 {
        let mut times = self.0.clone();
        times.sort_unstable();
        let last = times.len().saturating_sub(1) as f64;
        times.get((last * share).round() as usize).map_or(0.0, |time| time.as_secs_f64() * 1e6)
    }
}

impl Row {
    /// A measurement whose median may be at most `ratio` times that of its floor, and whose 99th percentile at most three times.
    pub(crate) fn against_floor(
        (store, measure): (&str, &str),
        ours: &Samples,
        (floor, floor_samples): (&'static str, &Samples),
        ratio: f64,
    ) -> Self {
        let (p50, p99) = (ours.at(0.5), ours.at(0.99));
        let (floor_p50, floor_p99) = (floor_samples.at(0.5), floor_samples.at(0.99));
        let (ratio_p50, ratio_p99) = (p50 / floor_p50, p99 / floor_p99);
        Self {
            peer: None,
            store: store.to_owned(),
            measure: measure.to_owned(),
            floor,
            rounds: ours.len(),
            p50_us: p50,
            p99_us: p99,
            floor_p50_us: Some(floor_p50),
            floor_p99_us: Some(floor_p99),
            ratio_p50: Some(ratio_p50),
            ratio_p99: Some(ratio_p99),
            target: format!("p50 at most {ratio} times the floor's, p99 at most 3 times"),
            met: ratio_p50 <= ratio && ratio_p99 <= 3.0,
        }
    }

    /// A measurement that is held against nothing.
    pub(crate) fn alone(name: (&str, &str), ours: &Samples) -> Self {
        Self {
            floor: "none",
            floor_p50_us: None,
            floor_p99_us: None,
            ratio_p50: None,
            ratio_p99: None,
            target: "none".to_owned(),
            met: true,
            ..Self::against_floor(name, ours, ("none", ours), 1.0)
        }
    }

    /// One value that has no times, against what is allowed.
    pub(crate) fn value(
        (store, measure): (&str, &str),
        value: f64,
        (floor, floor_value): (&'static str, Option<f64>),
        (target, met): (String, bool),
    ) -> Self {
        Self {
            peer: None,
            store: store.to_owned(),
            measure: measure.to_owned(),
            floor,
            rounds: 1,
            p50_us: value,
            p99_us: value,
            floor_p50_us: floor_value,
            floor_p99_us: floor_value,
            ratio_p50: floor_value.map(|floor| value / floor),
            ratio_p99: floor_value.map(|floor| value / floor),
            target,
            met,
        }
    }
}
