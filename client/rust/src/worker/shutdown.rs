//! How a worker ends: asked by its own process through a token, by signals, or by the server.

use std::time::Duration;

use tokio::{
    signal::unix::{SignalKind, signal},
    time::Instant,
};
use tokio_util::sync::CancellationToken;

use crate::task;

/// How long the last acks and releases may take once nothing runs any more.
pub(super) const SETTLE_TIMEOUT: Duration = Duration::from_secs(5);

/// How long aborted handlers may take to reach their next `await`.
pub(super) const ABORT_TIMEOUT: Duration = Duration::from_secs(1);

/// How far a worker is on its way out.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Phase {
    /// It fetches.
    Fetching,
    /// It takes no more jobs, and lives on.
    Quiet,
    /// It waits for what runs.
    Draining {
        /// What still runs then is aborted.
        until: Instant,
    },
    /// It waits for the answers to its last acks and releases.
    Settling {
        /// It waits no longer.
        until: Instant,
    },
}

/// A token for [`Worker::run`](crate::Worker::run) that is cancelled by SIGTERM or SIGINT. Must be
/// called within a tokio runtime.
///
/// # Errors
/// When the signals cannot be listened for.
///
/// ```no_run
/// # async fn example(worker: ganger_client::Worker) -> Result<(), Box<dyn std::error::Error>> {
/// worker.run(ganger_client::shutdown_on_signals()?).await?;
/// # Ok(())
/// # }
/// ```
pub fn shutdown_on_signals() -> std::io::Result<CancellationToken> {
    let mut terminate = signal(SignalKind::terminate())?;
    let mut interrupt = signal(SignalKind::interrupt())?;
    let token = CancellationToken::new();
    let shutdown = token.clone();
    task::spawn(async move {
        tokio::select! {
            _ = terminate.recv() => {}
            _ = interrupt.recv() => {}
            // Whoever cancels the token by hand needs no signal any more.
            () = shutdown.cancelled() => {}
        }
        shutdown.cancel();
    });
    Ok(token)
}
