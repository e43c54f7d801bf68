//! The only place that spawns. A client has one task, ended and awaited by
//! [`Client::close`](crate::Client::close); a worker's handlers live in its own set.

use std::future::Future;

/// Runs `future` on the current runtime. Whoever calls sees to it that the task ends.
#[expect(
    clippy::disallowed_methods,
    reason = "the one spawn of the crate; the task holds a guard that `Client::close` waits for"
)]
pub(crate) fn spawn(future: impl Future<Output = ()> + Send + 'static) {
    // A dropped handle detaches the task, which ends with the last handle of its client.
    drop(tokio::spawn(future));
}
