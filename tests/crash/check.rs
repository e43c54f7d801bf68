//! The history against the rules of a queue: nothing lost, nothing made up, nothing done twice,
//! no lease that is not the only one.

use std::{
    collections::{BTreeMap, BTreeSet, HashMap},
    time::Duration,
};

use ganger_protocol::{
    JobId, LeaseId,
    batch::BatchView,
    cron::CronView,
    job::JobState,
    limit::LimitView,
    response::{Counters, QueueView},
};

use crate::{
    batches,
    history::{Answer, Event, Verdict},
    limits,
    plan::{Identity, Plan},
    ticks, unique,
};

/// What the server shows when everything has ended.
#[derive(Debug)]
pub(crate) struct Remains {
    pub(crate) counters: Counters,
    pub(crate) dead: BTreeSet<JobId>,
    /// Dead jobs that were taken away meanwhile.
    pub(crate) purged: BTreeSet<JobId>,
    pub(crate) queues: Vec<QueueView>,
    /// That of the limited queue.
    pub(crate) limit: LimitView,
    /// Those that are settled behind those that are not.
    pub(crate) batches: Vec<BatchView>,
    pub(crate) cron: CronView,
}

/// All jobs, as the history tells of them. A place is that of an event.
#[derive(Debug, Default)]
pub(crate) struct Jobs {
    pub(crate) known: HashMap<Identity, Job>,
    /// Where the servers ended, in their order.
    ends: Vec<usize>,
}

#[derive(Debug, Clone, Copy)]
pub(crate) struct Grant {
    place: usize,
    pub(crate) life: u64,
    pub(crate) lease: LeaseId,
    pub(crate) asked: Duration,
    pub(crate) told: Duration,
}

/// From where to where a lease ran for certain; nowhere when `from` is not before `to`.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Span {
    pub(crate) from: usize,
    pub(crate) to: usize,
    pub(crate) grant: Grant,
}

#[derive(Debug, Default)]
pub(crate) struct Job {
    pub(crate) id: Option<JobId>,
    is_answered: bool,
    /// Where it was pushed, and from where on it was there for certain.
    pub(crate) pushed: usize,
    pub(crate) is_there: Option<usize>,
    /// The holder of its unique key that its push met, so that there is no job, and where that was
    /// said.
    pub(crate) met: Option<(JobId, usize)>,
    pub(crate) grants: Vec<Grant>,
    /// Answers and where they were sent, in their order.
    pub(crate) sent: Vec<(usize, LeaseId, Answer)>,
    /// Leases whose answer was applied: the answer and where it was sent and answered.
    applied: Vec<(LeaseId, Answer, usize, usize)>,
    /// Answers that may have been applied before their server ended.
    unsure: Vec<(LeaseId, Answer)>,
    /// Leases that a resumed session was told it does not hold.
    disowned: Vec<LeaseId>,
    is_dead: bool,
    /// From where on it was over for certain.
    pub(crate) is_over: Option<usize>,
}

impl Jobs {
    /// Where its leases ran for certain. One that a server forgot ended with the server that gave
    /// it, long before its worker heard of that.
    pub(crate) fn spans(&self, job: &Job) -> impl Iterator<Item = Span> {
        job.grants.iter().map(|grant| {
            let ends = |(_, lease, answer): &&(usize, LeaseId, Answer)| {
                *lease == grant.lease && *answer != Answer::Extend
            };
            let answered = job.sent.iter().find(ends).map(|(place, ..)| *place);
            let life = usize::try_from(grant.life - 1).unwrap_or(usize::MAX);
            let is_forgotten = job.disowned.contains(&grant.lease);
            let forgotten = self.ends.get(life).filter(|_| is_forgotten).copied();
            Span {
                from: grant.place,
                to: first(answered, forgotten),
                grant: *grant,
            }
        })
    }
}

impl Job {
    /// Whether it was acked for certain, and whether it may have been.
    pub(crate) fn acks(&self) -> (bool, bool) {
        let applied = self.applied.iter().any(|applied| applied.1 == Answer::Ack);
        let unsure = self.unsure.iter().any(|unsure| unsure.1 == Answer::Ack);
        (applied, applied || unsure)
    }

    /// Until where no attempt of it had come to its end for certain.
    pub(crate) fn may_be_tried(&self) -> usize {
        let ends = |answer| !matches!(answer, Answer::Release | Answer::Extend);
        let end = self.sent.iter().find(|sent| ends(sent.2));
        end.map_or(usize::MAX, |sent| sent.0)
    }

    /// Until where it was not over for certain: an answer was sent that may have ended it.
    pub(crate) fn may_be_over(&self, max_attempts: u32) -> usize {
        let places = |is_meant: fn(Answer) -> bool| {
            let sent = self.sent.iter().filter(move |sent| is_meant(sent.2));
            sent.map(|(place, ..)| *place)
        };
        let death = places(|answer| answer == Answer::Fail).nth(max_attempts as usize - 1);
        let end = places(Answer::ends).next();
        first(end, death)
    }
}

/// The first of two places that may be there.
fn first(one: Option<usize>, other: Option<usize>) -> usize {
    let never = usize::MAX;
    one.unwrap_or(never).min(other.unwrap_or(never))
}

/// Every rule that the history breaks.
pub(crate) fn check(plan: Plan, events: &[Event], remains: &Remains) -> Vec<String> {
    let mut broken = Vec::new();
    let jobs = gather(plan, events, &mut broken);
    leases_are_unique_and_grow(events, &mut broken);
    for (identity, job) in &jobs.known {
        let mut complain = |rule: &str| broken.push(format!("{rule}: {identity:?} {job:?}"));
        one_job(*identity, job, plan, remains, &mut complain);
    }
    totals(&jobs.known, remains, &mut broken);
    limits::check(plan, events, &jobs, &remains.limit, &mut broken);
    unique::check(plan, &jobs, &mut broken);
    batches::check(plan, &jobs, &remains.batches, &mut broken);
    ticks::check(&jobs, &remains.cron, &mut broken);
    broken
}

/// How many pushed jobs met another one with their unique key.
pub(crate) fn met(events: &[Event]) -> usize {
    let outcomes = events.iter().filter_map(|event| match event {
        Event::PushAnswered { outcomes, .. } => Some(outcomes),
        _ => None,
    });
    outcomes.flatten().filter(|it| it.is_existing).count()
}

fn gather(plan: Plan, events: &[Event], broken: &mut Vec<String>) -> Jobs {
    let mut ends = Vec::new();
    let mut jobs: HashMap<Identity, Job> = HashMap::new();
    let mut owners: HashMap<JobId, Identity> = HashMap::new();
    let mut own = |id: JobId, identity: Identity, job: &mut Job, broken: &mut Vec<String>| {
        if job.id.is_some_and(|known| known != id) {
            broken.push(format!(
                "I3: {identity:?} is two jobs: {id} and {:?}",
                job.id
            ));
        }
        job.id = Some(id);
        if owners
            .insert(id, identity)
            .is_some_and(|owner| owner != identity)
        {
            broken.push(format!("I2: two pushes made the job {id}"));
        }
    };
    let mut by_lease: HashMap<(JobId, LeaseId), Identity> = HashMap::new();
    for (place, event) in events.iter().enumerate() {
        match event {
            Event::PushSent {
                producer,
                seq,
                count,
            } => {
                for index in 0..*count {
                    let (producer, seq) = (*producer, *seq);
                    let identity = Identity {
                        producer,
                        seq,
                        index,
                    };
                    let job = Job {
                        pushed: place,
                        ..Job::default()
                    };
                    if jobs.insert(identity, job).is_some() {
                        broken.push(format!("the test itself: {identity:?} is pushed twice"));
                    }
                }
            }
            Event::PushAnswered {
                producer,
                seq,
                outcomes,
            } => {
                for (index, outcome) in (0..).zip(outcomes.iter()) {
                    let (producer, seq) = (*producer, *seq);
                    let identity = Identity {
                        producer,
                        seq,
                        index,
                    };
                    match jobs.get_mut(&identity) {
                        Some(job) => {
                            job.is_answered = true;
                            if outcome.is_existing {
                                job.met = Some((outcome.id, place));
                            } else {
                                own(outcome.id, identity, job, broken);
                                job.is_there.get_or_insert(place);
                            }
                        }
                        None => broken.push(format!("I2: {identity:?} was never pushed")),
                    }
                }
            }
            Event::Granted {
                life,
                job: id,
                lease,
                failures,
                identity,
                asked,
                told,
            } => {
                by_lease.insert((*id, *lease), *identity);
                if *failures >= plan.max_attempts(*identity) {
                    broken.push(format!(
                        "I9: {id}/{lease} was granted after {failures} failures"
                    ));
                }
                if identity.part().is_made_by_server() {
                    jobs.entry(*identity).or_insert_with(|| Job {
                        is_answered: true,
                        ..Job::default()
                    });
                }
                match jobs.get_mut(identity) {
                    Some(job) => {
                        own(*id, *identity, job, broken);
                        job.is_there.get_or_insert(place);
                        job.grants.push(Grant {
                            place,
                            life: *life,
                            lease: *lease,
                            asked: *asked,
                            told: *told,
                        });
                    }
                    None => broken.push(format!("I2: {id} is {identity:?}, never pushed")),
                }
            }
            Event::Answered {
                sent,
                verdict,
                again,
            } => {
                let Some(Event::AnswerSent {
                    job: id,
                    lease,
                    answer,
                    ..
                }) = events.get(*sent)
                else {
                    broken.push("the test itself: an answer that was not sent".to_owned());
                    continue;
                };
                let job = by_lease.get(&(*id, *lease)).and_then(|at| jobs.get_mut(at));
                let Some(job) = job else {
                    continue;
                };
                match verdict {
                    Verdict::Applied(state) => {
                        job.applied.push((*lease, *answer, *sent, place));
                        job.is_dead |= *state == Some(JobState::Dead);
                        if answer.ends() || job.is_dead {
                            job.is_over.get_or_insert(place);
                        }
                    }
                    Verdict::Already if *answer != Answer::Extend => {
                        job.unsure.push((*lease, *answer));
                    }
                    Verdict::Lost(_) if *again => job.unsure.push((*lease, *answer)),
                    // The session gave it up at its last resumption, or it had been answered.
                    Verdict::Already | Verdict::Lost(_) => {}
                }
            }
            Event::Disowned { job, lease } => {
                let owner = by_lease.get(&(*job, *lease));
                if let Some(job) = owner.and_then(|owner| jobs.get_mut(owner)) {
                    job.disowned.push(*lease);
                }
            }
            Event::AnswerSent {
                lease,
                answer,
                identity,
                ..
            } => {
                if let Some(job) = jobs.get_mut(identity) {
                    job.sent.push((place, *lease, *answer));
                }
            }
            Event::LifeEnded => ends.push(place),
            Event::LimitSet { .. } | Event::RateLifted => {}
        }
    }
    Jobs { known: jobs, ends }
}

/// I6: a number is given once, and a server gives only numbers above those of all before it.
fn leases_are_unique_and_grow(events: &[Event], broken: &mut Vec<String>) {
    let mut seen = BTreeSet::new();
    let mut by_life: BTreeMap<u64, (LeaseId, LeaseId)> = BTreeMap::new();
    for event in events {
        if let Event::Granted {
            life, job, lease, ..
        } = event
        {
            if !seen.insert(*lease) {
                broken.push(format!("I6: the lease {lease} of {job} was given before"));
            }
            let (first, last) = by_life.entry(*life).or_insert((*lease, *lease));
            *first = (*first).min(*lease);
            *last = (*last).max(*lease);
        }
    }
    let ranges: Vec<_> = by_life.values().collect();
    for pair in ranges.windows(2) {
        if let [(_, last), (first, _)] = pair
            && first <= last
        {
            broken.push(format!("I6: {first} was given after {last} and a restart"));
        }
    }
}

fn one_job(
    identity: Identity,
    job: &Job,
    plan: Plan,
    remains: &Remains,
    complain: &mut impl FnMut(&str),
) {
    if !job.is_answered {
        complain("I1: a push that was sent again until it was answered is not");
    }
    let Some(id) = job.id else {
        return;
    };
    if job.met.is_some() {
        complain("I11: it was not made, and is there");
    }
    let ends = |answer: &Answer| answer.ends();
    let done: Vec<_> = job
        .applied
        .iter()
        .filter(|applied| ends(&applied.1))
        .collect();
    let is_dead = remains.dead.contains(&id) || remains.purged.contains(&id);
    let may_be_done = job.unsure.iter().any(|(_, answer)| ends(answer));
    match (done.len(), is_dead) {
        (0, false) if !may_be_done => complain("I1: it is neither done nor dead"),
        (1, true) => complain("I5: it is done and dead"),
        (2.., _) => complain("I5: two acks took effect"),
        _ => {}
    }
    if job.is_dead && !is_dead {
        complain("I1: it was dead and is not kept");
    }
    for (lease, _, _, answered) in &done {
        if job.grants.iter().any(|grant| grant.lease > *lease) {
            complain("I4: it was granted under a higher number than it was done with");
        }
        if job.grants.iter().any(|grant| grant.place > *answered) {
            complain("I4: it was granted after it was done");
        }
    }
    // I7, I8: what was sent after a newer grant was read must not be taken.
    for (lease, answer, sent, _) in &job.applied {
        let newer = |grant: &&Grant| grant.lease > *lease && grant.place < *sent;
        if job.grants.iter().find(newer).is_some() {
            complain(&format!(
                "I8: {answer:?} of the stale lease {lease} was taken"
            ));
        }
    }
    for lease in job
        .applied
        .iter()
        .map(|applied| applied.0)
        .collect::<BTreeSet<_>>()
    {
        let final_answers = job
            .applied
            .iter()
            .filter(|applied| applied.0 == lease && applied.1 != Answer::Extend);
        if final_answers.count() > 1 {
            complain(&format!("I5: the lease {lease} was answered twice"));
        }
    }
    // I9, as far as it can be seen: certain failures never pass the limit, and the last is death.
    let fails = job
        .applied
        .iter()
        .filter(|applied| applied.1 == Answer::Fail)
        .count();
    let max = plan.max_attempts(identity) as usize;
    if fails > max {
        complain("I9: more failures than allowed");
    }
    if fails == max && !job.is_dead {
        complain("I9: the last failure did not make it dead");
    }
    let unsure_fails = job
        .unsure
        .iter()
        .filter(|unsure| unsure.1 == Answer::Fail)
        .count();
    if is_dead && fails + unsure_fails < max {
        complain("I9: dead before its failures reached the limit");
    }
}

/// I12, and that no session was lost.
fn totals(jobs: &HashMap<Identity, Job>, remains: &Remains, broken: &mut Vec<String>) {
    let Remains {
        counters,
        dead,
        purged,
        ..
    } = remains;
    let mut equal = |what: &str, one: u64, other: u64| {
        if one != other {
            broken.push(format!("I12: {what}: {one}, not {other}: {counters:?}"));
        }
    };
    let made = jobs.values().filter(|job| job.id.is_some());
    equal("pushed", counters.pushed, made.count() as u64);
    equal("live", counters.kept() - counters.dead, 0);
    equal("dead", counters.dead, dead.len() as u64);
    let settled = counters.done + counters.dead + counters.deleted;
    equal("done, dead and deleted", settled, counters.pushed);
    let discarded = jobs.values().filter(|job| {
        let answers = job.applied.iter().map(|applied| applied.1);
        answers
            .chain(job.unsure.iter().map(|unsure| unsure.1))
            .any(|answer| answer == Answer::Discard)
    });
    let most = discarded.count() + purged.len();
    if counters.deleted > most as u64 {
        let deleted = counters.deleted;
        broken.push(format!(
            "I12: {deleted} deleted, {most} at most were asked to be"
        ));
    }
    let mut equal = |what: &str, one: u64, other: u64| {
        if one != other {
            broken.push(format!("I12: {what}: {one}, not {other}: {counters:?}"));
        }
    };
    equal("lost", counters.lost, 0);
}
