//! A server in this process, on a port of its own over a directory of its own.

use std::{
    net::SocketAddr,
    path::{Path, PathBuf},
};

use ganger_server::{ServeError, Server, config::Config};
use tempfile::TempDir;
use tokio::{runtime::Runtime, task::JoinHandle};
use tokio_util::sync::CancellationToken;

/// A running server; drained when it is dropped.
#[derive(Debug)]
pub struct InProcess {
    /// Where it listens.
    pub address: SocketAddr,
    shutdown: CancellationToken,
    served: Option<JoinHandle<Result<(), ServeError>>>,
    runtime: Runtime,
    directory: TempDir,
}

impl InProcess {
    /// A server as it is by default.
    pub fn start() -> Self {
        Self::with(|_| {})
    }

    /// A server with a changed configuration.
    pub fn with(change: impl FnOnce(&mut Config)) -> Self {
        let directory = tempfile::tempdir().expect("a directory");
        Self::over(directory, change).expect("the server does not start")
    }

    /// A server over this directory.
    ///
    /// # Errors
    /// When it does not start.
    pub fn over(directory: TempDir, change: impl FnOnce(&mut Config)) -> Result<Self, ServeError> {
        let mut config = Config {
            listen: SocketAddr::from(([127, 0, 0, 1], 0)),
            data_dir: directory.path().join("data"),
            ..Config::default()
        };
        change(&mut config);
        config.check().expect("a legal configuration");
        let runtime = tokio::runtime::Builder::new_multi_thread()
            .worker_threads(2)
            .enable_all()
            .build()
            .expect("a runtime");
        let guard = runtime.enter();
        let server = Server::start(&config)?;
        let address = server.listen();
        let shutdown = CancellationToken::new();
        let served = runtime.spawn(server.run_until_drained(shutdown.clone()));
        drop(guard);
        Ok(Self {
            address,
            shutdown,
            served: Some(served),
            runtime,
            directory,
        })
    }

    /// Its data.
    pub fn data_dir(&self) -> PathBuf {
        self.directory.path().join("data")
    }

    /// Begins to drain.
    pub fn shut_down(&self) {
        self.shutdown.cancel();
    }

    /// Drains it and starts another one over the same directory.
    #[must_use]
    pub fn restart(mut self) -> Self {
        self.stop().expect("a clean end");
        let path = self.directory.path().to_owned();
        let elsewhere = tempfile::tempdir().expect("a directory");
        let directory = std::mem::replace(&mut self.directory, elsewhere);
        debug_assert_eq!(directory.path(), Path::new(&path));
        Self::over(directory, |_| {}).expect("the server does not start again")
    }

    fn stop(&mut self) -> Result<(), ServeError> {
        self.shutdown.cancel();
        match self.served.take() {
            Some(served) => self.runtime.block_on(served).expect("the server panicked"),
            None => Ok(()),
        }
    }
}

impl Drop for InProcess {
    fn drop(&mut self) {
        let ended = self.stop();
        if !std::thread::panicking() {
            ended.expect("the store failed");
        }
    }
}
