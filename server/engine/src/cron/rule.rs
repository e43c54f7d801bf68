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

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use jiff::Zoned;
    use proptest::prelude::*;

    use super::*;

    fn clock(expression: &str, zone: &str) -> Rule {
        Rule::of_expression(expression, Some(zone)).unwrap().0
    }

    fn instant(text: &str) -> Timestamp {
        let at: jiff::Timestamp = text.parse().unwrap();
        Timestamp(at.as_millisecond().try_into().unwrap())
    }

    fn show(at: Timestamp) -> String {
        let at = jiff::Timestamp::from_millisecond(at.0.try_into().unwrap());
        at.unwrap().to_string()
    }

    #[track_caller]
    fn check_times(expression: &str, zone: &str, from: &str, expected: &[&str]) {
        let rule = clock(expression, zone);
        let times = std::iter::successors(rule.after(instant(from)), |at| rule.after(*at));
        let times: Vec<_> = times.take(expected.len()).map(show).collect();
        assert_eq!(times, expected, "{expression} {zone}");
    }

    #[test]
    fn times_are_those_of_the_zones_wall_clock() {
        let winter_and_summer = [
            "2026-03-28T03:30:00Z",
            "2026-03-29T02:30:00Z",
            "2026-03-30T02:30:00Z",
        ];
        let from = "2026-03-27T12:00:00Z";
        check_times("30 4 * * *", "Europe/Berlin", from, &winter_and_summer);
    }

    #[test]
    fn a_time_in_a_gap_is_the_first_instant_after_it() {
        // 02:00 to 03:00 is left out; 01:00 UTC is 03:00 there.
        let expected = [
            "2026-03-28T01:30:00Z",
            "2026-03-29T01:00:00Z",
            "2026-03-30T00:30:00Z",
        ];
        let from = "2026-03-28T00:00:00Z";
        check_times("30 2 * * *", "Europe/Berlin", from, &expected);
        let many = ["2026-03-29T00:59:00Z", "2026-03-29T01:00:00Z"];
        let then = ["2026-03-29T01:01:00Z"];
        let from = "2026-03-29T00:58:00Z";
        let expected = [&many[..], &then].concat();
        check_times("* * * * *", "Europe/Berlin", from, &expected);
    }

    #[test]
    fn a_time_that_comes_twice_counts_the_first_time() {
        // 02:00 to 03:00 comes twice, from 00:00 UTC and from 01:00 UTC.
        let expected = ["2026-10-25T00:30:00Z", "2026-10-26T01:30:00Z"];
        let from = "2026-10-24T12:00:00Z";
        check_times("30 2 * * *", "Europe/Berlin", from, &expected);
        let within_the_second = "2026-10-25T01:30:00Z";
        let expected = ["2026-10-25T02:00:00Z"];
        check_times(
            "*/15 * * * *",
            "Europe/Berlin",
            within_the_second,
            &expected,
        );
    }

    #[test]
    fn a_day_that_a_zone_left_out_comes_at_its_end() {
        // Samoa had no 30 December 2011.
        let expected = ["2011-12-30T10:00:00Z", "2011-12-30T21:00:00Z"];
        let from = "2011-12-29T22:00:00Z";
        check_times("0 11 * * *", "Pacific/Apia", from, &expected);
    }

    #[test]
    fn a_distance_counts_from_the_epoch() {
        let rule = Rule::Every(DurationMs(700));
        assert_eq!(rule.after(Timestamp(0)), Some(Timestamp(700)));
        assert_eq!(rule.after(Timestamp(699)), Some(Timestamp(700)));
        assert_eq!(rule.after(Timestamp(700)), Some(Timestamp(1400)));
        assert_eq!(rule.after(Timestamp(INTEGER_MAX)), None);
    }

    #[track_caller]
    fn check_refused(expression: &str, zone: &str, field: &str, words: &str) {
        let error = Rule::of_expression(expression, Some(zone)).unwrap_err();
        assert_eq!(error.field.as_deref(), Some(field), "{error}");
        assert!(error.message.contains(words), "{}", error.message);
        assert!(!error.message.contains('\n'), "{}", error.message);
    }

    #[test]
    fn what_is_no_expression_or_zone_is_refused_with_what_is_allowed() {
        check_refused("", "UTC", "expression", "it has 0 fields");
        check_refused("* * * *", "UTC", "expression", "it has 4 fields");
        check_refused("* * * * * UTC", "UTC", "expression", "it has 6 fields");
        check_refused("60 * * * *", "UTC", "expression", "0..=59");
        check_refused("5-1 * * * *", "UTC", "expression", "ascending");
        check_refused("x * * * *", "UTC", "expression", "MON-FRI");
        check_refused("H * * * *", "UTC", "expression", "malformed");
        check_refused("@daily", "UTC", "expression", "it has 1 fields");
        check_refused("* * * * *", "Mars/Base", "timezone", "Europe/Berlin");
        check_refused("* * * * *", "", "timezone", "Europe/Berlin");
    }

    #[test]
    fn a_zone_is_spelled_as_the_database_does() {
        let (_, times) = Rule::of_expression(" 5  4 * * * ", Some("europe/berlin")).unwrap();
        let expected = CronTimes::Expression {
            expression: "5 4 * * *".to_owned(),
            timezone: "Europe/Berlin".to_owned(),
        };
        assert_eq!(times, expected);
        assert!(Rule::of(&times).is_some());
    }

    #[test]
    fn an_expression_that_never_comes_has_no_time() {
        assert_eq!(clock("0 0 30 2 *", "UTC").after(Timestamp(0)), None);
    }

    /// Every instant of some days, minute by minute, at which one who looks at the clock on the wall
    /// would push: a minute that is named and was not seen before, or was passed over.
    fn naive(minutes: &BTreeSet<i8>, hours: &BTreeSet<i8>, zone: &str, from: u64) -> Vec<u64> {
        const MINUTE: u64 = 60_000;
        let zone = TimeZoneDatabase::bundled().get(zone).unwrap();
        let look = |at: u64| -> Zoned {
            let at = jiff::Timestamp::from_millisecond(at.try_into().unwrap());
            at.unwrap().to_zoned(zone.clone())
        };
        let is_named =
            |civil: DateTime| minutes.contains(&civil.minute()) && hours.contains(&civil.hour());
        let mut latest = look(from).datetime();
        let mut times = Vec::new();
        for nth in 1..=3 * 24 * 60 {
            let at = from + nth * MINUTE;
            let shown = look(at).datetime();
            let mut is_due = false;
            while latest < shown {
                latest = latest.checked_add(jiff::Span::new().minutes(1)).unwrap();
                is_due |= is_named(latest);
            }
            if is_due {
                times.push(at);
            }
        }
        times
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(64))]

        #[test]
        fn times_are_those_that_somebody_sees_who_looks_every_minute(
            minutes in prop::collection::btree_set(0_i8..60, 1..4),
            hours in prop_oneof![
                prop::collection::btree_set(0_i8..24, 1..4),
                Just((0..24).collect::<BTreeSet<i8>>()),
            ],
            zone in prop::sample::select(vec![
                "UTC", "Europe/Berlin", "America/New_York", "Australia/Lord_Howe", "Asia/Kolkata",
                "Pacific/Apia", "America/Sao_Paulo",
            ]),
            // Days around changes of 2011, 2018 and 2026, in UTC.
            day in prop::sample::select(vec![15_337_u64, 15_059, 17_838, 20_540, 20_519, 20_750, 20_757]),
            late in 0_u64..1440,
        ) {
            let list = |numbers: &BTreeSet<i8>| {
                let numbers: Vec<_> = numbers.iter().map(ToString::to_string).collect();
                numbers.join(",")
            };
            let expression = format!("{} {} * * *", list(&minutes), list(&hours));
            let rule = clock(&expression, zone);
            let from = day * 86_400_000;
            let expected = naive(&minutes, &hours, zone, from);
            // From a day on, so that both know what was shown before a change.
            let begin = from + 86_400_000 + late * 60_000;
            let expected: Vec<_> = expected.into_iter().filter(|at| *at > begin).collect();
            let times = std::iter::successors(rule.after(Timestamp(begin)), |at| rule.after(*at));
            let times: Vec<_> = times.take(expected.len()).map(|at| at.0).collect();
            prop_assert_eq!(&times, &expected, "{} {}", expression, zone);
            let (after, until) = (Timestamp(begin), Timestamp(begin + 86_400_000));
            let last = expected.iter().rev().find(|at| **at <= until.0);
            prop_assert_eq!(rule.last_within(after, until), last.map(|at| Timestamp(*at)));
        }
    }
}
