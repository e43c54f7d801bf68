//! The calendar: from an expression and a time zone, or a distance, to the instants they name.
//!
//! Pure computation over the zones that are linked in; the machine's zones and clock are never
//! asked. An expression is matched against the wall clock of its zone as if that had no changes of
//! offset, and only then are its times turned into instants. So a time that a change leaves out
//! becomes the first instant after the gap, and one that comes twice counts once, the first time.
//! What happens at an instant is decided in [`super`].

use cronexpr::{Crontab, FallbackTimezoneOption, MakeTimestamp, ParseOptions};
use ganger_protocol::{DurationMs, Timestamp, WireError, time::INTEGER_MAX};
use jiff::{
    civil::DateTime,
    tz::{AmbiguousOffset, TimeZone, TimeZoneDatabase},
};

use crate::records::CronTimes;

/// Times of the wall clock that are looked at before one of them is a later instant: all minutes of
/// a day that a zone left out, twice over.
const TIMES_MAX: usize = 2 * 24 * 60;

/// When an entry pushes.
#[derive(Debug)]
pub(crate) enum Rule {
    /// At the multiples of a distance since the epoch.
    Every(DurationMs),
    /// By the wall clock of a zone.
    Clock(Box<(Crontab, TimeZone)>),
}

impl Rule {
    /// The rule of an expression in a zone, UTC unless it is named, and how both are written.
    ///
    /// # Errors
    /// `bad_request` about `expression` or `timezone`.
    pub(crate) fn of_expression(
        expression: &str,
        timezone: Option<&str>,
    ) -> Result<(Self, CronTimes), WireError> {
        let zone = zone_of(timezone.unwrap_or("UTC"))?;
        let expression = cronexpr::normalize_crontab(expression);
        let crontab = crontab_of(&expression)?;
        let timezone = zone.iana_name().unwrap_or("UTC").to_owned();
        let times = CronTimes::Expression {
            expression,
            timezone,
        };
        Ok((Self::Clock(Box::new((crontab, zone))), times))
    }

    /// The rule of times that were taken once; none when this release no longer has their zone.
    pub(crate) fn of(times: &CronTimes) -> Option<Self> {
        match times {
            CronTimes::Every(distance) => Some(Self::Every(*distance)),
            CronTimes::Expression {
                expression,
                timezone,
            } => {
                let (rule, _) = Self::of_expression(expression, Some(timezone)).ok()?;
                Some(rule)
            }
        }
    }

    /// The first time after an instant; none when there is none within four years.
    pub(crate) fn after(&self, at: Timestamp) -> Option<Timestamp> {
        match self {
            Self::Every(distance) => {
                let next = at.0.checked_div(distance.0)?.checked_add(1)?;
                let next = next.checked_mul(distance.0)?;
                (next <= INTEGER_MAX).then_some(Timestamp(next))
            }
            Self::Clock(clock) => {
                let (crontab, zone) = &**clock;
                let at = jiff::Timestamp::from_millisecond(i64::try_from(at.0).ok()?).ok()?;
                let mut civil = zone.to_datetime(at);
                for _ in 0..TIMES_MAX {
                    civil = next_civil(crontab, civil)?;
                    let instant = instant_of(zone, civil)?;
                    if instant > at {
                        return u64::try_from(instant.as_millisecond()).ok().map(Timestamp);
                    }
                }
                None
            }
        }
    }

    /// The last time behind `after` and not behind `until`.
    pub(crate) fn last_within(&self, after: Timestamp, until: Timestamp) -> Option<Timestamp> {
        let is_before_end = |at: u64| self.after(Timestamp(at)).filter(|next| *next <= until);
        // From the end backwards in longer and longer steps, so that a near one is found at once.
        let (mut step, mut high) = (60_000, until.0);
        let mut low = loop {
            let low = until.0.saturating_sub(step).max(after.0);
            if is_before_end(low).is_some() {
                break low;
            }
            if low == after.0 {
                return None;
            }
            high = low;
            step = step.saturating_mul(2);
        };
        while high - low > 1 {
            let middle = low + (high - low) / 2;
            match is_before_end(middle) {
                Some(_) => low = middle,
                None => high = middle,
            }
        }
        is_before_end(low)
    }
}

fn zone_of(name: &str) -> Result<TimeZone, WireError> {
    let zone = TimeZoneDatabase::bundled().get(name);
    zone.map_err(|_unknown| {
        let message = format!(
            "the IANA database has no time zone {name:?}; there are such as UTC, Europe/Berlin, \
             America/New_York"
        );
        WireError::bad_request("timezone", message)
    })
}

/// The times of five fields. Their zone is UTC here; the entry's own comes in only when a time is
/// turned into an instant.
fn crontab_of(expression: &str) -> Result<Crontab, WireError> {
    let refused = |reason: &str| {
        let message = format!(
            "{expression:?} is no cron expression: {reason}; it has five fields, minute, hour, \
             day of month, month, day of week, such as \"30 4 * * MON-FRI\""
        );
        WireError::bad_request("expression", message)
    };
    let fields = expression.split(' ').filter(|field| !field.is_empty());
    match fields.count() {
        5 => {}
        fields => return Err(refused(&format!("it has {fields} fields"))),
    }
    let mut options = ParseOptions::default();
    options.fallback_timezone_option = FallbackTimezoneOption::UTC;
    cronexpr::parse_crontab_with(expression, options).map_err(|error| {
        let text = error.to_string();
        refused(text.rsplit("^ ").next().unwrap_or(&text))
    })
}

/// The next time of the wall clock that matches.
fn next_civil(crontab: &Crontab, after: DateTime) -> Option<DateTime> {
    let after = TimeZone::UTC.to_timestamp(after).ok()?;
    let next = crontab.find_next(MakeTimestamp(after)).ok()?;
    Some(next.datetime())
}

/// The first instant at which the wall clock of a zone shows a time, or the first one after a gap
/// that it falls into.
fn instant_of(zone: &TimeZone, civil: DateTime) -> Option<jiff::Timestamp> {
    match zone.to_ambiguous_timestamp(civil).offset() {
        AmbiguousOffset::Unambiguous { offset } => offset.to_timestamp(civil).ok(),
        AmbiguousOffset::Fold { before, .. } => before.to_timestamp(civil).ok(),
        AmbiguousOffset::Gap { after, .. } => {
            let before_gap = after.to_timestamp(civil).ok()?;
            let change = zone.following(before_gap).next()?;
            Some(change.timestamp())
        }
    }
}
