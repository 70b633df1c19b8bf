//! Billing periods: when a plan renews, and the name of a period.

use std::{fmt, str::FromStr};

/// Milliseconds in a day.
pub(crate) const DAY_MS: i64 = 24 * 60 * 60 * 1000;

/// How often a subscription renews.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Plan {
    Monthly,
    Annual,
}

impl Plan {
    fn months(self) -> i64 {
        match self {
            Self::Monthly => 1,
            Self::Annual => 12,
        }
    }

    pub(crate) fn as_str(self) -> &'static str {
        match self {
            Self::Monthly => "monthly",
            Self::Annual => "annual",
        }
    }

    /// When the period after `periods` whole ones begins, for a subscription that started at `started_at`. Both times
    /// are in milliseconds since 1970.
    ///
    /// Counted from the start, so that a subscription of the 31st of January renews on the 28th of February and on
    /// the 31st of March.
    pub(crate) fn renews_at(self, started_at: i64, periods: i64) -> i64 {
        let (days, time_of_day) = (started_at.div_euclid(DAY_MS), started_at.rem_euclid(DAY_MS));
        let (year, month, day) = civil_from_days(days);
        let months = year * 12 + (month - 1) + periods * self.months();
        let (year, month) = (months.div_euclid(12), months.rem_euclid(12) + 1);
        days_from_civil(year, month, day.min(days_in_month(year, month))) * DAY_MS + time_of_day
    }
}

impl fmt::Display for Plan {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

impl FromStr for Plan {
    type Err = String;
    fn from_str(text: &str) -> Result<Self, String> {
        match text {
            "monthly" => Ok(Self::Monthly),
            "annual" => Ok(Self::Annual),
            other => Err(format!("plan {other:?} does not exist: use monthly or annual")),
        }
    }
}

/// The name of a period: the UTC date on which it begins, like `2026-12-21`.
pub(crate) fn period_name(begins_at: i64) -> String {
    let (year, month, day) = civil_from_days(begins_at.div_euclid(DAY_MS));
    format!("{year:04}-{month:02}-{day:02}")
}

fn days_in_month(year: i64, month: i64) -> i64 {
    match month {
        2 if year % 4 == 0 && (year % 100 != 0 || year % 400 == 0) => 29,
        2 => 28,
        4 | 6 | 9 | 11 => 30,
        _ => 31,
    }
}

// This function and the next one are from Howard Hinnant, "chrono-compatible low-level date algorithms".
fn days_from_civil(year: i64, month: i64, day: i64) -> i64 {
    let year = if month <= 2 { year - 1 } else { year };
    let era = year.div_euclid(400);
    let year_of_era = year.rem_euclid(400);
    let day_of_year = (153 * ((month + 9) % 12) + 2) / 5 + day - 1;
    era * 146_097 + year_of_era * 365 + year_of_era / 4 - year_of_era / 100 + day_of_year - 719_468
}

fn civil_from_days(days: i64) -> (i64, i64, i64) {
    let days = days + 719_468;
    let era = days.div_euclid(146_097);
    let day_of_era = days.rem_euclid(146_097);
    let year_of_era = (day_of_era - day_of_era / 1460 + day_of_era / 36_524 - day_of_era / 146_096) / 365;
    let day_of_year = day_of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let shifted = (5 * day_of_year + 2) / 153;
    let month = if shifted < 10 { shifted + 3 } else { shifted - 9 };
    (year_of_era + era * 400 + i64::from(month <= 2), month, day_of_year - (153 * shifted + 2) / 5 + 1)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn at(year: i64, month: i64, day: i64) -> i64 {
        days_from_civil(year, month, day) * DAY_MS
    }

    #[test]
    fn a_plan_of_the_31st_renews_on_the_31st_again() {
        let started = at(2027, 1, 31);
        let names: Vec<_> = (0..4).map(|n| period_name(Plan::Monthly.renews_at(started, n))).collect();
        assert_eq!(names, ["2027-01-31", "2027-02-28", "2027-03-31", "2027-04-30"]);
        assert_eq!(period_name(Plan::Annual.renews_at(at(2028, 2, 29), 1)), "2029-02-28");
        assert_eq!(period_name(Plan::Annual.renews_at(at(2028, 2, 29), 4)), "2032-02-29");
    }

    proptest! {
        #[test]
        fn periods_increase_and_have_distinct_names(
            started in 0i64..4_000_000_000_000, annual: bool, periods in 0i64..200,
        ) {
            let plan = if annual { Plan::Annual } else { Plan::Monthly };
            let (this, next) = (plan.renews_at(started, periods), plan.renews_at(started, periods + 1));
            prop_assert!(next - this >= 28 * DAY_MS && next - this <= 366 * DAY_MS);
            prop_assert!(period_name(this) < period_name(next));
            prop_assert_eq!(plan.renews_at(started, 0), started);
        }
    }
}
