//! Limits: those that are set, and what the history says of how they were kept. Only what workers
//! were told counts: a lease runs for certain from the moment in which it was read to the one in
//! which an answer was sent that may end it.

use std::{collections::BTreeMap, time::Duration};

use ganger_protocol::{
    DurationMs, LeaseId,
    ids::Tag,
    limit::{LimitSet, LimitView, OneLimit, Rate},
    request::Operation,
};

use crate::{
    check::{Jobs, Span},
    history::{Event, Shared},
    link::Asker,
    plan::{Identity, LIMITED, Part, Plan},
};

/// Jobs of the queue that run at first.
const RUNNING: u32 = 8;

/// Slow beside the time that a start takes, so that a server that forgot a rate would be seen.
const RATE: Rate = Rate {
    n: 5,
    per_ms: DurationMs(1_000),
    burst: Some(10),
};

/// In the end, when what waits for its turn is to come soon.
const LIFTED: Rate = Rate { n: 1_000, ..RATE };

/// A key with a limit of its own, beside that of its prefix.
const EXACT: &str = "one-0";
const EXACT_RUNNING: u32 = 2;

pub(crate) fn any_key(random: &mut fastrand::Rng) -> Tag {
    let key = match random.u8(..10) {
        0..4 => format!("sequence-{}", random.u8(..3)),
        4..8 => format!("one-{}", random.u8(..3)),
        _ => format!("rate-{}", random.u8(..2)),
    };
    key.parse().expect("a name")
}

pub(crate) fn set(asker: &mut Asker) {
    let limits = [
        of_queue(RUNNING),
        LimitSet {
            sequence: true,
            ..of_key("sequence-*")
        },
        LimitSet {
            max_running: Some(1),
            ..of_key("one-*")
        },
        LimitSet {
            max_running: Some(EXACT_RUNNING),
            ..of_key(EXACT)
        },
        of_rate(RATE),
    ];
    for limit in limits {
        let _: LimitView = asker.ask(Operation::LimitSet(Box::new(limit)));
    }
}

/// Lets another number of jobs of the queue run; the server is to be ended before anything else is
/// asked of limits, so that all of its successor's grants are under the new one.
pub(crate) fn change(asker: &mut Asker, shared: &Shared, random: &mut fastrand::Rng) {
    let max_running = random.u32(3..12);
    let limit = of_queue(max_running);
    let _: LimitView = asker.ask(Operation::LimitSet(Box::new(limit)));
    shared.record(Event::LimitSet { max_running });
}

pub(crate) fn lift_rate(asker: &mut Asker, shared: &Shared) {
    shared.record(Event::RateLifted);
    let limit = of_rate(LIFTED);
    let _: LimitView = asker.ask(Operation::LimitSet(Box::new(limit)));
}

pub(crate) fn show(asker: &mut Asker) -> LimitView {
    let queue = of_queue(RUNNING).queue;
    asker.ask(Operation::LimitShow(OneLimit { queue, key: None }))
}

fn of_queue(running: u32) -> LimitSet {
    LimitSet {
        queue: Some(Part::Limited.queue().parse().expect("a name")),
        max_running: Some(running),
        ..LimitSet::default()
    }
}

fn of_rate(rate: Rate) -> LimitSet {
    LimitSet {
        rate: Some(rate),
        ..of_key("rate-*")
    }
}

fn of_key(key: &str) -> LimitSet {
    LimitSet {
        key: Some(key.parse().expect("a name or prefix")),
        ..LimitSet::default()
    }
}

/// How many of a key may run, when that is limited.
fn running_max(key: &str) -> Option<u32> {
    match key {
        EXACT => Some(EXACT_RUNNING),
        _ => (!key.starts_with("rate-")).then_some(1),
    }
}

/// What of the limits was not kept; `shown` is that of the queue, by the last server.
pub(crate) fn check(
    plan: Plan,
    events: &[Event],
    jobs: &Jobs,
    shown: &LimitView,
    broken: &mut Vec<String>,
) {
    let (by_life, last) = queue_limits(events);
    if (shown.max_running, shown.running) != (Some(last), Some(0)) {
        broken.push(format!(
            "limits: set to {last}, and nothing runs: {shown:?}"
        ));
    }
    let mut by_key: BTreeMap<Tag, Vec<Span>> = BTreeMap::new();
    let mut orders: BTreeMap<Tag, Vec<_>> = BTreeMap::new();
    let limited = jobs.known.iter();
    for (identity, job) in limited.filter(|(identity, _)| identity.producer == LIMITED) {
        let Some(key) = plan.key(*identity) else {
            continue;
        };
        let leases = || job.grants.iter().map(|grant| grant.lease);
        if let (Some(first), Some(last)) = (leases().min(), leases().max()) {
            let order = orders.entry(key.clone()).or_default();
            order.push((*identity, first, last));
        }
        by_key.entry(key).or_default().extend(jobs.spans(job));
    }
    let all: Vec<Span> = by_key.values().flatten().copied().collect();
    let allowed = |life| *by_life.get(&life).unwrap_or(&last);
    running(Part::Limited.queue(), all, allowed, broken);
    let is_lifted = |event: &Event| matches!(event, Event::RateLifted);
    let lifted = events.iter().position(is_lifted).unwrap_or(usize::MAX);
    for (key, mut spans) in by_key {
        match running_max(key.as_str()) {
            Some(max) => running(key.as_str(), spans, |_| max, broken),
            None => {
                spans.retain(|span| span.from < lifted);
                rate(&key, spans, broken);
            }
        }
    }
    for (key, order) in orders {
        if key.as_str().starts_with("sequence-") {
            in_sequence(&key, order, broken);
        }
    }
}

/// The most jobs of the queue that might run in each life in which that was changed or had just
/// been, and how many may run in the end.
fn queue_limits(events: &[Event]) -> (BTreeMap<u64, u32>, u32) {
    let (mut life, mut now) = (1, RUNNING);
    let mut by_life = BTreeMap::from([(life, now)]);
    for event in events {
        match event {
            Event::LimitSet { max_running } => {
                let most = now.max(*max_running);
                by_life.insert(life, most);
                now = *max_running;
            }
            Event::LifeEnded => {
                life += 1;
                by_life.insert(life, now);
            }
            _ => {}
        }
    }
    (by_life, now)
}

/// No more run than may: of leases that run at the same time, the latest was granted when all others
/// ran, under what was allowed in its life.
fn running(
    what: &str,
    mut spans: Vec<Span>,
    allowed: impl Fn(u64) -> u32,
    broken: &mut Vec<String>,
) {
    spans.retain(|span| span.from < span.to);
    spans.sort_unstable_by_key(|span| span.from);
    let mut live: Vec<Span> = Vec::new();
    for span in spans {
        live.retain(|other| other.to > span.from);
        live.push(span);
        let latest = live.iter().max_by_key(|span| span.grant.lease);
        let max = latest.map_or(0, |latest| allowed(latest.grant.life));
        if live.len() > max as usize {
            broken.push(format!(
                "limits: of {what} {} run, not {max}: {live:?}",
                live.len()
            ));
        }
    }
}

/// Grants come no faster than every `1 / n` of `per_ms` behind the first `burst`, over restarts too.
/// One was decided between the moments in which it was asked for and told, by clocks of whole
/// milliseconds.
fn rate(key: &Tag, mut spans: Vec<Span>, broken: &mut Vec<String>) {
    spans.sort_unstable_by_key(|span| span.grant.lease);
    let micros = |time: Duration| i64::try_from(time.as_micros()).unwrap_or(i64::MAX);
    let step = micros(Duration::from_millis(RATE.per_ms.0)) / i64::from(RATE.n);
    let burst = i64::from(RATE.burst.unwrap_or(RATE.n));
    let rounding = micros(Duration::from_millis(2));
    // From the ith to the jth are j − i + 1, of which all but `burst` take a step each.
    let mut least = i64::MAX;
    for (nth, span) in (0..).zip(&spans) {
        least = least.min(nth * step - micros(span.grant.asked));
        let ahead = nth * step - micros(span.grant.told) - least;
        if ahead + step > burst * step + rounding {
            broken.push(format!(
                "limits: {key} is {ahead} µs before its rate: {span:?}"
            ));
        }
    }
}

/// Every job of a sequence is over before a later one is granted for the first time, also while it
/// waits for another attempt. The one producer's pushes are applied in their order.
fn in_sequence(key: &Tag, mut order: Vec<(Identity, LeaseId, LeaseId)>, broken: &mut Vec<String>) {
    order.sort_unstable_by_key(|(identity, ..)| *identity);
    for pair in order.windows(2) {
        if let [(_, _, last), (_, first, _)] = pair
            && last > first
        {
            broken.push(format!("limits: {key} does not go in sequence: {pair:?}"));
        }
    }
}
