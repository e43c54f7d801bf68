//! `ganger serve`: the server in the foreground, until a signal ends it.

use std::{
    fs, io,
    net::SocketAddr,
    path::{Path, PathBuf},
};

use ganger_protocol::DEFAULT_PORT;
use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio_util::sync::CancellationToken;

use super::{
    error::{CliError, Exit},
    output, systemd,
};
use crate::{
    RecoveredCounts, ServeError, Server,
    config::{Config, Layers, LimitsConfig, LogConfig, Setting},
    reload::Control,
    tasks::{OnPanic, Tasks},
    telemetry::{LogFormat, Telemetry},
};

/// The few common settings; everything is in the file, and in GANGER_* variables.
#[derive(Debug, clap::Args)]
pub(super) struct ServeArgs {
    /// The configuration file
    #[arg(long, value_name = "FILE", env = "GANGER_CONFIG")]
    config: Option<PathBuf>,
    /// Where the store lives [default: ./ganger-data]
    #[arg(long, value_name = "DIRECTORY")]
    data_dir: Option<String>,
    /// Where clients connect [default: 127.0.0.1:4264]
    #[arg(long, value_name = "ADDRESS")]
    pub(super) listen: Option<String>,
    /// Reserved for the web UI and metrics
    #[arg(long, value_name = "ADDRESS")]
    web: Option<String>,
    /// How many shards a new store has [default: 1]
    #[arg(long, value_name = "COUNT")]
    shards: Option<u16>,
    /// The level of the log, or target=level pairs [default: info]
    #[arg(long, value_name = "LEVEL")]
    log: Option<String>,
    /// How the log looks [default: auto]
    #[arg(long, value_name = "FORMAT")]
    log_format: Option<LogFormat>,
    /// A file to write once the server listens, as JSON; it is gone when the server is
    #[arg(long, value_name = "FILE")]
    ready_file: Option<PathBuf>,
    /// Listen beyond this machine without tokens
    #[arg(long)]
    insecure_no_auth: bool,
}

impl ServeArgs {
    fn settings(&self) -> Vec<Setting> {
        let format = self.log_format.and_then(|format| {
            clap::ValueEnum::to_possible_value(&format).map(|value| value.get_name().to_owned())
        });
        let flags = [
            ("--data-dir", "data_dir", self.data_dir.clone()),
            ("--listen", "listen", self.listen.clone()),
            ("--web", "web", self.web.clone()),
            (
                "--shards",
                "shards",
                self.shards.map(|shards| shards.to_string()),
            ),
            ("--log", "log.level", self.log.clone()),
            ("--log-format", "log.format", format),
            (
                "--insecure-no-auth",
                "insecure_no_auth",
                self.insecure_no_auth.then(|| "true".to_owned()),
            ),
        ];
        let given = flags
            .into_iter()
            .filter_map(|(flag, path, text)| Some((flag, path, text?)));
        given
            .map(|(flag, path, text)| Setting::flag(flag, path, text))
            .collect()
    }

    fn layers(&self) -> Result<Layers, CliError> {
        Ok(Layers {
            flags: self.settings(),
            ..super::config::layers(self.config.as_deref())?
        })
    }
}

pub(super) fn run(args: ServeArgs) -> Result<(), CliError> {
    let (config, remarks) = Config::load(args.layers()?)?;
    let telemetry = Telemetry::start(&config.log.level, config.log.format)
        .map_err(|error| CliError::usage("cannot start the log").because(&error))?;
    for warning in remarks.into_iter().chain(config.warnings()) {
        tracing::warn!("{warning}");
    }
    refuse_huge_pages();
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .enable_all()
        .build();
    let runtime = runtime.map_err(|error| CliError::failed("cannot start").because(&error))?;
    let result = runtime.block_on(serve(args, config, telemetry));
    // What did not stop within the drain's time must not keep the process.
    runtime.shutdown_background();
    result
}

/// A huge page stays whole in memory for the sake of a few bytes of it: up to half of what the server
/// takes. See docs/decisions/0003.
fn refuse_huge_pages() {
    if let Err(error) = rustix::thread::disable_transparent_huge_pages(true) {
        tracing::debug!(%error, "huge pages cannot be refused; the server takes more memory");
    }
}

async fn serve(args: ServeArgs, config: Config, telemetry: Telemetry) -> Result<(), CliError> {
    // Whoever waits for the file must not find that of an earlier server.
    let ready_file = args
        .ready_file
        .clone()
        .map(ReadyFile::reserve)
        .transpose()?;
    let (tasks, shutdown) = (Tasks::new(), CancellationToken::new());
    watch_signals(&tasks, shutdown.clone())?;
    // Heard from here on: before there is a server, either of them would end the process.
    let wishes = Wishes::listen()?;
    let drain_timeout = config.drain_timeout.duration();
    let server = Server::start(&config)?;
    let started = Started {
        listen: server.listen(),
        recovered: server.recovered(),
    };
    if let Some(file) = &ready_file {
        file.write(&started)?;
    }
    announce(&started, &config.data_dir);
    systemd::ready();
    let (control, stopping) = (server.control(), tasks.stopping());
    let alive = systemd::keep_alive(control.clone());
    tasks.spawn("watchdog", OnPanic::Continue, async move {
        // Cancel-safe: between two signs of life there is nothing to lose.
        stopping.run_until_cancelled(alive).await;
    });
    let stopping = tasks.stopping();
    tasks.spawn("wishes", OnPanic::Continue, async move {
        // Cancel-safe: a signal that was not taken stays.
        let granting = wishes.grant(&args, config, &telemetry, &control);
        stopping.run_until_cancelled(granting).await;
    });
    server.run_until_drained(shutdown).await?;
    // The signal watcher is all that is left.
    let _ = tasks.shutdown(drain_timeout).await;
    Ok(())
}

impl From<ServeError> for CliError {
    fn from(error: ServeError) -> Self {
        if error.is_storage() {
            return Self::new(Exit::Storage, "the store failed").because(&error);
        }
        Self::failed("the server failed").because(&error)
    }
}

/// The first TERM or INT drains; a second one ends the process at once.
fn watch_signals(tasks: &Tasks, shutdown: CancellationToken) -> Result<(), CliError> {
    let deaf = |error: io::Error| CliError::failed("cannot listen to signals").because(&error);
    let mut terminate = signal(SignalKind::terminate()).map_err(deaf)?;
    let mut interrupt = signal(SignalKind::interrupt()).map_err(deaf)?;
    let stopping = tasks.stopping();
    tasks.spawn("signals", OnPanic::Continue, async move {
        loop {
            // All branches are cancel-safe: a signal that was not taken stays.
            tokio::select! {
                _ = terminate.recv() => {}
                _ = interrupt.recv() => {}
                () = stopping.cancelled() => return,
            }
            if shutdown.is_cancelled() {
                end_at_once();
            }
            tracing::info!("asked to stop; a second signal ends it at once");
            systemd::stopping();
            shutdown.cancel();
        }
    });
    Ok(())
}

/// HUP asks for the configuration to be read again, USR1 for the state of the server.
#[derive(Debug)]
struct Wishes {
    hangup: Signal,
    user: Signal,
}

impl Wishes {
    fn listen() -> Result<Self, CliError> {
        let deaf = |error: io::Error| CliError::failed("cannot listen to signals").because(&error);
        Ok(Self {
            hangup: signal(SignalKind::hangup()).map_err(deaf)?,
            user: signal(SignalKind::user_defined1()).map_err(deaf)?,
        })
    }

    async fn grant(
        mut self,
        args: &ServeArgs,
        mut config: Config,
        telemetry: &Telemetry,
        control: &Control,
    ) {
        loop {
            // Both branches are cancel-safe: a signal that was not taken stays.
            tokio::select! {
                _ = self.hangup.recv() => {
                    systemd::reloading();
                    match reload(args, &config, telemetry, control) {
                        Ok(new) => config = new,
                        Err(error) => {
                            let error = error.to_string().replace('\n', "; ");
                            tracing::error!(%error, "the configuration stays as it was");
                        }
                    }
                    systemd::ready();
                }
                _ = self.user.recv() => control.dump(),
            }
        }
    }
}

/// Reads the configuration again and returns the one that is in force then. What needs a restart
/// stays in it as it was.
fn reload(
    args: &ServeArgs,
    old: &Config,
    telemetry: &Telemetry,
    control: &Control,
) -> Result<Config, CliError> {
    let (new, remarks) = Config::load(args.layers()?)?;
    let restart = control
        .reload(old, &new)
        .map_err(|error| CliError::usage("cannot reload").because(&error))?;
    telemetry
        .set_level(&new.log.level)
        .map_err(|error| CliError::usage("cannot change the level of the log").because(&error))?;
    for warning in remarks {
        tracing::warn!("{warning}");
    }
    for setting in restart {
        tracing::warn!(setting, "this change takes effect with a restart");
    }
    tracing::info!(tokens = new.auth.token.len(), "configuration reloaded");
    Ok(Config {
        limits: LimitsConfig {
            frame_bytes_max: old.limits.frame_bytes_max,
            payload_bytes_max: old.limits.payload_bytes_max,
            result_bytes_max: old.limits.result_bytes_max,
            items_max: old.limits.items_max,
            ..new.limits
        },
        log: LogConfig {
            level: new.log.level,
            ..old.log.clone()
        },
        auth: new.auth,
        cron: new.cron,
        ..old.clone()
    })
}

#[expect(
    clippy::exit,
    reason = "a second signal means: now, without any further step"
)]
fn end_at_once() -> ! {
    std::process::exit(i32::from(Exit::Failed.code()))
}

/// What there is to tell about a server that has started.
#[derive(Debug, Clone)]
struct Started {
    listen: SocketAddr,
    recovered: RecoveredCounts,
}

fn announce(started: &Started, data_dir: &Path) {
    let data_dir = fs::canonicalize(data_dir).unwrap_or_else(|_missing| data_dir.to_owned());
    tracing::info!(
        version = env!("CARGO_PKG_VERSION"),
        listen = %started.listen,
        data_dir = %data_dir.display(),
        jobs = live(&started.recovered),
        queues = started.recovered.queues,
        recovery_ms = started.recovered.recovery_ms,
        "started"
    );
    if output::watched() {
        output::note(&banner(started, &data_dir));
    }
}

/// Jobs that were found, whatever they wait for.
fn live(recovered: &RecoveredCounts) -> u64 {
    recovered.jobs.kept()
}

fn banner(started: &Started, data_dir: &Path) -> String {
    let Started { listen, recovered } = started;
    let url = if *listen == SocketAddr::from(([127, 0, 0, 1], DEFAULT_PORT)) {
        String::new()
    } else {
        format!("--url ganger://{listen} ")
    };
    format!(
        "\n\
         listens on   {listen}\n\
         data in      {}\n\
         recovered    {} jobs in {} queues in {} ms\n\
         push a job   ganger push {url}hello '{{\"name\": \"world\"}}'\n\
         run it       ganger work {url}-q default -- cat\n",
        data_dir.display(),
        live(recovered),
        recovered.queues,
        recovered.recovery_ms,
    )
}

/// The file that tells others where the server listens; gone when it is dropped.
#[derive(Debug)]
struct ReadyFile(PathBuf);

impl ReadyFile {
    fn reserve(path: PathBuf) -> Result<Self, CliError> {
        match fs::remove_file(&path) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => {
                Err(Self::refused(&path, &error))
            }
            Ok(()) | Err(_) => Ok(Self(path)),
        }
    }

    /// Writes it whole or not at all: a reader never finds half of it.
    fn write(&self, started: &Started) -> Result<(), CliError> {
        let web: Option<SocketAddr> = None;
        let ready = serde_json::json!({
            "pid": std::process::id(),
            "listen": started.listen,
            "web": web,
            "recovered": started.recovered,
            "recovery_ms": started.recovered.recovery_ms,
        });
        let mut name = self.0.clone().into_os_string();
        name.push(format!(".{}", std::process::id()));
        let draft = PathBuf::from(name);
        fs::write(&draft, format!("{ready}\n"))
            .and_then(|()| fs::rename(&draft, &self.0))
            .map_err(|error| Self::refused(&self.0, &error))
    }

    fn refused(path: &Path, error: &io::Error) -> CliError {
        CliError::failed(format!("cannot write the ready file {}", path.display())).because(error)
    }
}

impl Drop for ReadyFile {
    fn drop(&mut self) {
        // It may be gone already.
        let _ = fs::remove_file(&self.0);
    }
}

#[cfg(test)]
mod tests {
    use clap::Parser as _;
    use ganger_protocol::response::Counters;

    use super::*;

    fn started(listen: &str) -> Started {
        let recovered = RecoveredCounts {
            queues: 3,
            jobs: Counters {
                ready: 10,
                leased: 1,
                dead: 1,
                done: 500,
                ..Counters::default()
            },
            recovery_ms: 4,
            ..RecoveredCounts::default()
        };
        Started {
            listen: listen.parse().unwrap(),
            recovered,
        }
    }

    #[test]
    fn the_banner_says_where_what_and_what_next() {
        assert_eq!(
            banner(&started("127.0.0.1:4264"), Path::new("/srv/data")),
            "\n\
             listens on   127.0.0.1:4264\n\
             data in      /srv/data\n\
             recovered    12 jobs in 3 queues in 4 ms\n\
             push a job   ganger push hello '{\"name\": \"world\"}'\n\
             run it       ganger work -q default -- cat\n"
        );
        let elsewhere = banner(&started("127.0.0.1:5000"), Path::new("d"));
        assert!(elsewhere.contains("ganger push --url ganger://127.0.0.1:5000 hello"));
    }

    #[test]
    fn the_ready_file_is_there_while_the_server_is() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("ready.json");
        fs::write(&path, "stale").unwrap();
        let file = ReadyFile::reserve(path.clone()).unwrap();
        assert!(!path.exists(), "that of an earlier server is gone");
        file.write(&started("127.0.0.1:5000")).unwrap();
        let ready: serde_json::Value =
            serde_json::from_str(&fs::read_to_string(&path).unwrap()).unwrap();
        assert_eq!(ready["pid"], std::process::id());
        assert_eq!(ready["listen"], "127.0.0.1:5000");
        assert_eq!(ready["web"], serde_json::Value::Null);
        assert_eq!(ready["recovered"]["jobs"]["ready"], 10);
        assert_eq!(ready["recovered"]["queues"], 3);
        assert_eq!(ready["recovery_ms"], 4);
        assert_eq!(
            fs::read_dir(directory.path()).unwrap().count(),
            1,
            "no draft is left"
        );
        drop(file);
        assert!(!path.exists());
    }

    #[test]
    fn flags_become_settings() {
        #[derive(clap::Parser)]
        struct Line {
            #[command(flatten)]
            serve: ServeArgs,
        }
        let line = "serve --listen [::1]:0 --shards 2 --log debug --log-format json --data-dir d";
        let args = Line::try_parse_from(line.split(' ')).unwrap().serve;
        let flags = args.settings();
        let (config, _) = Config::load(Layers {
            flags,
            ..Layers::default()
        })
        .unwrap();
        assert_eq!(config.listen.to_string(), "[::1]:0");
        assert_eq!((config.shards, config.log.level.as_str()), (2, "debug"));
        assert_eq!(config.log.format, LogFormat::Json);
        assert_eq!(config.data_dir, PathBuf::from("d"));
    }
}
