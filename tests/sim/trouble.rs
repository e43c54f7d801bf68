//! How the server ends and starts again: power cuts, kills, faults of the disk, orderly stops.

use std::sync::Arc;

use ganger_engine::{HeadBudget, Options, facts::Recovered};
use ganger_server::{
    driver::Core,
    store::{
        Store, StoreError, doctor,
        memory::{Crash, Fault},
    },
};

use crate::{
    history::Checked,
    world::{Server, World},
};

/// How the server ends.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum End {
    /// The machine loses power: nothing unsynced survives, or some of it.
    PowerLoss,
    /// The process is killed.
    Kill,
    /// It stops in order.
    Clean,
}

impl World {
    pub fn step_trouble(&mut self) -> Checked {
        if self.is_faulty || self.server.is_none() {
            return Ok(());
        }
        match self.rng.u32(..10) {
            0..3 => {
                let fault = [Fault::Io, Fault::NoSpace][self.rng.usize(..2)];
                let nth = self.rng.u64(..30);
                self.trace.note(
                    self.clock.elapsed(),
                    "the {} th call of the disk will fail",
                    &[nth],
                );
                self.disk.fail_at(nth, fault);
                self.is_faulty = true;
                Ok(())
            }
            3..6 => self.end(End::PowerLoss),
            6..8 => self.end(End::Kill),
            _ => self.end(End::Clean),
        }
    }

    /// A call of the store failed: right when the disk was told to fail. Nothing is answered from
    /// here on; the process ends.
    pub fn failed(&mut self, error: &StoreError) -> Checked {
        if !self.is_faulty {
            return Err(format!("the store failed by itself: {error}"));
        }
        self.trace
            .note(self.clock.elapsed(), "the disk has failed", &[]);
        let now = self.clock.now();
        if let Some(server) = &mut self.server {
            let sealed = server.core.seal(now);
            if sealed.is_ok_and(|was_dirty| was_dirty) || server.store.sync().is_ok() {
                return Err("I19: the store goes on after an error".to_owned());
            }
        }
        self.crash(End::PowerLoss)
    }

    fn end(&mut self, end: End) -> Checked {
        self.trace.note(
            self.clock.elapsed(),
            "the server ends ({}: 0 power loss, 1 killed, 2 in order)",
            &[end as u64],
        );
        if end == End::Clean {
            self.settle()?;
            let Some(server) = &self.server else {
                return Ok(());
            };
            if let Err(error) = server.store.settle() {
                return self.failed(&error);
            }
        } else if self.rng.bool() {
            // In the middle of a sync.
            let now = self.clock.now();
            self.disk.fail_at(self.rng.u64(..3), Fault::Io);
            if let Some(server) = &mut self.server {
                let _ = server.core.seal(now);
                let _ = server.store.sync();
            }
        }
        self.crash(end)
    }

    fn crash(&mut self, end: End) -> Checked {
        let mono = self.clock.now().mono.0;
        // A task ends with its server.
        self.task = None;
        let Some(server) = self.server.take() else {
            return Ok(());
        };
        let open = server.core.engine().open_group().0;
        drop(server);
        self.history.stopped(mono);
        let (groups, batches) = self.disk.unsynced();
        let groups_kept = match end {
            End::Clean => groups,
            End::Kill | End::PowerLoss => self.rng.usize(..=groups),
        };
        let batches_kept = match end {
            End::Clean => batches,
            End::PowerLoss | End::Kill => self.rng.usize(..=batches),
        };
        self.disk.crash(&Crash {
            groups_kept,
            batches_kept,
        });
        self.is_faulty = false;
        self.pending.clear();
        self.fetches = 0;
        self.has_withheld = false;
        self.clients.server_ended();
        self.crons.server_ended();
        self.batches.server_ended();
        self.outcomes.server_ended();
        self.limits.server_ended(self.clock.elapsed());
        self.clock.advance(self.rng.u64(..3_000));
        let group = self.start()?;
        if let Some(group) = group
            && group > open
        {
            return Err(format!("group {group} was recovered, {open} was open"));
        }
        Ok(())
    }

    /// Starts the server, over and over until it stands; the last group that it found.
    pub fn start(&mut self) -> Checked<Option<u64>> {
        let mut found = None;
        for attempt in 0.. {
            if attempt > 0 || self.rng.u32(..8) > 0 {
                // An undisturbed start, in the end.
                found = self.open(attempt < 3)?;
            } else {
                self.disk.fail_at(self.rng.u64(..12), Fault::Io);
                self.is_faulty = true;
                found = self.open(true)?.or(found);
            }
            if self.server.is_some() {
                break;
            }
        }
        Ok(found)
    }

    fn open(&mut self, may_fail: bool) -> Checked<Option<u64>> {
        self.clock.boot();
        let now = self.clock.now();
        let opened = self.disk.open(&self.store_options);
        let (store, recovered): (Store, Recovered) = match opened {
            Ok(opened) => opened,
            Err(_) if self.is_faulty && may_fail => {
                self.disk.crash(&Crash::default());
                self.is_faulty = false;
                return Ok(None);
            }
            Err(error) => return Err(format!("the store does not open: {error}")),
        };
        let group = recovered.group.0;
        self.trace.note(
            self.clock.elapsed(),
            "the server starts at group {}",
            &[group],
        );
        if group < self.history.durable {
            return Err(format!(
                "I1: {} was durable, {group} is recovered",
                self.history.durable
            ));
        }
        self.history.durable = group;
        self.history.restarted(group)?;
        let elapsed = self.clock.elapsed();
        self.limits.restarted(group, elapsed, self.plan.has_jumps)?;
        let options = Options {
            heads: HeadBudget {
                heads_max: self.plan.heads_max,
                bytes_max: 1 << 20,
            },
            poison_losses: self.plan.poison_losses,
            settled_max: self.plan.settled_max,
            secret: crate::world::SECRET,
            seed: self.rng.u64(..),
            ..Options::default()
        };
        let store = Arc::new(store);
        if !self.is_faulty {
            let health = doctor::examine(&store, Vec::new(), &mut |_| {});
            if let Some(finding) = health.findings.first() {
                return Err(format!(
                    "I13: the doctor says of group {group}: {finding:?}"
                ));
            }
        }
        let core = Core::open(now, options, Arc::clone(&store), recovered);
        self.server = Some(Server {
            core,
            store,
            syncs: Default::default(),
            ticks: 0,
        });
        // Nothing is granted before the first group is durable.
        let Some(server) = &mut self.server else {
            return Ok(Some(group));
        };
        let sealed = server.core.seal_for_sync(now);
        match sealed.and_then(|_sealed| server.store.sync()) {
            Ok(durable) => {
                self.history.durable = durable.0;
                server.core.synced(durable);
            }
            Err(_) if self.is_faulty => {
                self.server = None;
                let (groups, batches) = self.disk.unsynced();
                self.disk.crash(&Crash {
                    groups_kept: self.rng.usize(..=groups),
                    batches_kept: self.rng.usize(..=batches),
                });
                self.is_faulty = false;
                return Ok(Some(group));
            }
            Err(error) => return Err(format!("the first group is not durable: {error}")),
        }
        // What is left of a fault that nothing has met yet.
        self.audit()?;
        Ok(Some(group))
    }

    /// Says what the engine holds.
    pub fn show(&self) {
        if let Some(server) = &self.server {
            eprintln!("{:#?}", server.core.engine());
        }
    }

    /// Ends all trouble.
    pub fn calm(&mut self) -> Checked {
        if self.is_faulty {
            self.end(End::PowerLoss)?;
        }
        self.end(End::Clean)
    }
}
