//! The only spawner: every thread and task has a name, is known, and is joined at shutdown.
//!
//! A task is told to stop by [`Tasks::stopping`]; nothing is aborted before the shutdown has waited
//! for it. The periodic work of the server is one table of [`Periodic`] rows. What a task does is
//! its own file's; this one knows only that it runs.

use std::{
    collections::BTreeMap,
    future::Future,
    io,
    sync::{Arc, Mutex, PoisonError},
    thread,
    time::Duration,
};

use tokio::time::MissedTickBehavior;
use tokio_util::{sync::CancellationToken, task::TaskTracker};

/// The tasks and threads of a server. A clone is the same set.
#[derive(Debug, Clone, Default)]
pub struct Tasks(Arc<Inner>);

#[derive(Debug, Default)]
struct Inner {
    tracker: TaskTracker,
    stopping: CancellationToken,
    /// How many of each name run.
    running: Mutex<BTreeMap<&'static str, usize>>,
    threads: Mutex<Vec<thread::JoinHandle<()>>>,
}

/// What was still running when the time for the shutdown had passed: name and count.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("still running: {}", self.text())]
pub struct Unfinished(pub Vec<(&'static str, usize)>);

impl Unfinished {
    fn text(&self) -> String {
        let rows = self
            .0
            .iter()
            .map(|(name, count)| format!("{name} ({count})"));
        rows.collect::<Vec<_>>().join(", ")
    }
}

/// What happens to the others when a task panics.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum OnPanic {
    /// They go on: the task served one connection only.
    Continue,
    /// All are told to stop: the server cannot do without this one.
    Stop,
}

impl Tasks {
    /// An empty set.
    pub fn new() -> Self {
        Self::default()
    }

    /// Spawns a task on the current runtime.
    pub fn spawn<F>(&self, name: &'static str, on_panic: OnPanic, future: F)
    where
        F: Future<Output = ()> + Send + 'static,
    {
        let entry = self.enter(name, on_panic);
        // Boxed: a task that awaits what it has captured holds it twice.
        let future = Box::pin(future);
        self.0.tracker.spawn(async move {
            let _entry = entry;
            future.await;
        });
    }

    /// Starts a thread. A panic in it tells everything else to stop.
    ///
    /// # Errors
    /// When the system has no thread to give.
    pub fn thread(
        &self,
        name: &'static str,
        body: impl FnOnce() + Send + 'static,
    ) -> io::Result<()> {
        let entry = self.enter(name, OnPanic::Stop);
        let handle = thread::Builder::new()
            .name(name.to_owned())
            .spawn(move || {
                let _entry = entry;
                body();
            })?;
        lock(&self.0.threads).push(handle);
        Ok(())
    }

    /// Starts the rows of a table of periodic work, each a task of its own. They end when the set
    /// is told to stop.
    pub fn spawn_periodic<C: Clone + Send + Sync + 'static>(
        &self,
        context: &C,
        table: &'static [Periodic<C>],
    ) {
        for row in table {
            let (stopping, context) = (self.stopping(), context.clone());
            self.spawn(row.name, OnPanic::Stop, async move {
                let mut ticks = tokio::time::interval(row.every);
                ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
                // The first tick comes at once.
                ticks.tick().await;
                // Both branches are cancel-safe: a tick that was not taken comes again.
                while stopping.run_until_cancelled(ticks.tick()).await.is_some() {
                    (row.run)(&context);
                }
            });
        }
    }

    /// Becomes cancelled when everything is to stop. Cancelling it is how to ask for that.
    pub fn stopping(&self) -> CancellationToken {
        self.0.stopping.clone()
    }

    /// What runs, by name.
    pub fn running(&self) -> Vec<(&'static str, usize)> {
        lock(&self.0.running)
            .iter()
            .map(|(name, count)| (*name, *count))
            .collect()
    }

    /// Tells everything to stop and joins it.
    ///
    /// # Errors
    /// What still ran after `within`. It is left to the end of the process.
    pub async fn shutdown(&self, within: Duration) -> Result<(), Unfinished> {
        self.0.stopping.cancel();
        self.0.tracker.close();
        let joined = async {
            self.0.tracker.wait().await;
            let threads = std::mem::take(&mut *lock(&self.0.threads));
            let join = move || {
                for thread in threads {
                    // A panic was reported by the thread's own entry.
                    let _ = thread.join();
                }
            };
            // Joining does not panic, so there is nothing to report.
            let _ = tokio::task::spawn_blocking(join).await;
        };
        match tokio::time::timeout(within, joined).await {
            Ok(()) => Ok(()),
            Err(_elapsed) => Err(Unfinished(self.running())),
        }
    }

    fn enter(&self, name: &'static str, on_panic: OnPanic) -> Entry {
        *lock(&self.0.running).entry(name).or_default() += 1;
        Entry {
            name,
            on_panic,
            inner: Arc::clone(&self.0),
        }
    }
}

/// A row of periodic work.
#[derive(Debug, Clone, Copy)]
pub struct Periodic<C: 'static> {
    /// Its name, for the log.
    pub name: &'static str,
    /// The time between two runs; the first comes after one such time.
    pub every: Duration,
    /// What is done. It must not block.
    pub run: fn(&C),
}

/// A running task's place in the table; leaving it reports a panic.
#[derive(Debug)]
struct Entry {
    name: &'static str,
    on_panic: OnPanic,
    inner: Arc<Inner>,
}

impl Drop for Entry {
    fn drop(&mut self) {
        if thread::panicking() {
            tracing::error!(task = self.name, "a task panicked");
            if self.on_panic == OnPanic::Stop {
                self.inner.stopping.cancel();
            }
        }
        let mut running = lock(&self.inner.running);
        if let Some(count) = running.get_mut(self.name) {
            *count -= 1;
            if *count == 0 {
                running.remove(self.name);
            }
        }
    }
}

/// No code panics while it holds these locks, so a poisoned one is as good as any.
fn lock<T>(mutex: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicUsize, Ordering};

    use super::*;

    const SECOND: Duration = Duration::from_secs(1);

    #[tokio::test(start_paused = true)]
    async fn shutdown_joins_tasks_and_threads() {
        let tasks = Tasks::new();
        let stopping = tasks.stopping();
        tasks.spawn("session", OnPanic::Continue, async move {
            stopping.cancelled().await;
        });
        let (sender, receiver) = std::sync::mpsc::channel();
        let stopping = tasks.stopping();
        tasks.spawn("driver", OnPanic::Stop, async move {
            stopping.cancelled().await;
            sender.send(()).unwrap();
        });
        tasks
            .thread("sync", move || receiver.recv().unwrap())
            .unwrap();
        assert_eq!(
            tasks.running(),
            [("driver", 1), ("session", 1), ("sync", 1)]
        );
        assert_eq!(tasks.shutdown(SECOND).await, Ok(()));
        assert_eq!(tasks.running(), []);
    }

    #[tokio::test(start_paused = true)]
    async fn shutdown_names_what_does_not_stop() {
        let tasks = Tasks::new();
        tasks.spawn("deaf", OnPanic::Continue, std::future::pending());
        let error = tasks.shutdown(SECOND).await.unwrap_err();
        assert_eq!(error.to_string(), "still running: deaf (1)");
    }

    #[tokio::test]
    async fn a_panic_stops_the_others_only_when_they_depend_on_it() {
        let tasks = Tasks::new();
        tasks.spawn("session", OnPanic::Continue, async {
            panic!("one connection")
        });
        tokio::task::yield_now().await;
        assert!(!tasks.stopping().is_cancelled());
        tasks.spawn("driver", OnPanic::Stop, async { panic!("all of it") });
        tasks.stopping().cancelled().await;
        assert_eq!(tasks.shutdown(SECOND).await, Ok(()));
    }

    #[tokio::test(start_paused = true)]
    async fn periodic_work_runs_by_its_period() {
        static RUNS: AtomicUsize = AtomicUsize::new(0);
        static TABLE: [Periodic<()>; 1] = [Periodic {
            name: "roll_up",
            every: SECOND,
            run: |()| {
                RUNS.fetch_add(1, Ordering::Relaxed);
            },
        }];
        let tasks = Tasks::new();
        tasks.spawn_periodic(&(), &TABLE);
        tokio::time::advance(SECOND / 2).await;
        assert_eq!(RUNS.load(Ordering::Relaxed), 0);
        while RUNS.load(Ordering::Relaxed) < 3 {
            tokio::time::advance(SECOND / 2).await;
            tokio::task::yield_now().await;
        }
        assert_eq!(tasks.shutdown(SECOND).await, Ok(()));
    }
}
