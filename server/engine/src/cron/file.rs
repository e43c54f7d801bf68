//! Cron entries that stand in the configuration of the server: set as a whole when it starts and
//! when it is reloaded, changed by nobody else, and gone when they are taken out of it. How entries
//! work is [`super`]'s; reading the configuration is the server's.

use ganger_protocol::{
    ErrorCode, NamespaceName, Timestamp, WireError, cron::CronSet, limits::Limits,
};

use super::{rule::Rule, times_of};
use crate::{
    Engine,
    command::Now,
    records::{CronNumber, CronRecord, CronTimes, INLINE_BYTES_MAX},
};

/// A cron entry of a configuration, which has been checked.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct FileCron {
    namespace: NamespaceName,
    entry: CronSet,
    times: CronTimes,
}

impl FileCron {
    /// An entry for a namespace.
    ///
    /// # Errors
    /// As those of `cron_set`, naming the field.
    pub fn new(
        namespace: NamespaceName,
        entry: CronSet,
        limits: &Limits,
    ) -> Result<Self, WireError> {
        entry.check(limits)?;
        let (rule, times) = times_of(&entry)?;
        // Whatever comes at all has come once within four years of the epoch.
        if rule.after(Timestamp::default()).is_none() {
            return Err(super::never());
        }
        let bytes = crate::records::Content::from(entry.job.clone()).bound_bytes();
        if bytes > INLINE_BYTES_MAX {
            return Err(WireError::too_large("job", INLINE_BYTES_MAX, bytes));
        }
        Ok(Self {
            namespace,
            entry,
            times,
        })
    }

    /// Its namespace.
    pub fn namespace(&self) -> &NamespaceName {
        &self.namespace
    }

    fn is(&self, record: &CronRecord) -> bool {
        self.namespace == record.namespace && self.entry.name == record.name
    }
}

impl CronRecord {
    /// Refuses a change of an entry that only the configuration may change.
    pub(super) fn check_changeable(&self) -> Result<(), WireError> {
        if !self.from_file {
            return Ok(());
        }
        let name = &self.name;
        let message = format!("{name} stands in the configuration of the server: change it there");
        Err(WireError {
            field: Some("name".to_owned()),
            ..WireError::new(ErrorCode::Conflict, message)
        })
    }
}

impl Engine {
    /// The configuration has exactly these entries. One that was made otherwise is taken over by
    /// its name, with how far it has come.
    pub(crate) fn take_file_crons(&mut self, now: Now, crons: Vec<FileCron>) {
        let stays = |record: &CronRecord| crons.iter().any(|cron| cron.is(record));
        let all = self.crons.records();
        let gone: Vec<CronNumber> = all
            .filter(|record| record.from_file && !stays(record))
            .map(|record| record.number)
            .collect();
        for number in gone {
            self.remove_cron(number);
        }
        for cron in crons {
            self.take_file_cron(now, cron);
        }
    }

    fn take_file_cron(&mut self, now: Now, cron: FileCron) {
        let FileCron {
            namespace,
            entry,
            times,
        } = cron;
        let before = self.crons.named(&namespace, &entry.name).ok();
        let before = before.and_then(|number| self.crons.record(number)).cloned();
        let number = match &before {
            Some(before) => before.number,
            None => CronNumber(self.take_number().0),
        };
        let rule = Rule::of(&times);
        let last = before.as_ref().and_then(|before| before.last_at);
        let since = now.wall.max(last.unwrap_or_default());
        let first = rule.as_ref().and_then(|rule| rule.after(since));
        let paused = entry.paused.unwrap_or(false);
        let mut record = CronRecord::of(number, namespace, times, entry);
        record.from_file = true;
        self.put_cron(record, rule, first, before, Some(paused));
    }
}
