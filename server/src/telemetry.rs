//! Logs: to stderr, as text for people or as one JSON object a line.
//!
//! Payloads are logged at `trace` only and secrets never, see [`Secret`](crate::auth::Secret).
//! Metrics are another file's.

use std::io::{self, IsTerminal as _};

use serde::{Deserialize, Serialize};
use tracing_subscriber::{
    EnvFilter, Registry, fmt::MakeWriter, layer::SubscriberExt as _, reload,
    util::SubscriberInitExt as _,
};

/// How a line of the log looks.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize, clap::ValueEnum)]
#[serde(rename_all = "snake_case")]
pub enum LogFormat {
    /// `pretty` on a terminal, else `json`.
    #[default]
    Auto,
    /// Text for people.
    Pretty,
    /// One JSON object a line.
    Json,
}

/// Why there is no log.
#[derive(Debug, thiserror::Error)]
pub enum TelemetryError {
    /// The level is none.
    #[error("{level:?} is no level: off, error, warn, info, debug, trace, or target=level pairs")]
    Level {
        /// What was given.
        level: String,
        /// What the parser says.
        source: tracing_subscriber::filter::ParseError,
    },
    /// The process already logs elsewhere.
    #[error("the log is already set up")]
    Twice(#[from] tracing_subscriber::util::TryInitError),
    /// The log has ended.
    #[error("the level of a log that has ended cannot change")]
    Gone(#[from] reload::Error),
}

/// The log of the process, to change its level.
#[derive(Debug, Clone)]
pub struct Telemetry(reload::Handle<EnvFilter, Registry>);

impl Telemetry {
    /// Sends the log of the process to stderr.
    ///
    /// # Errors
    /// When the level is none, or the log was set up before.
    pub fn start(level: &str, format: LogFormat) -> Result<Self, TelemetryError> {
        let terminal = io::stderr().is_terminal();
        let json = match format {
            LogFormat::Auto => !terminal,
            LogFormat::Pretty => false,
            LogFormat::Json => true,
        };
        let colour = terminal && std::env::var_os("NO_COLOR").is_none_or(|text| text.is_empty());
        let (subscriber, handle) = subscriber(filter(level)?, json, colour, io::stderr);
        subscriber.try_init()?;
        Ok(Self(handle))
    }

    /// Changes the level.
    ///
    /// # Errors
    /// When it is none; the old one stays.
    pub fn set_level(&self, level: &str) -> Result<(), TelemetryError> {
        Ok(self.0.reload(filter(level)?)?)
    }
}

/// Whether this is a level, or a list of `target=level`.
///
/// # Errors
/// When it is none of them.
pub fn check_level(level: &str) -> Result<(), TelemetryError> {
    filter(level).map(|_filter| ())
}

fn filter(level: &str) -> Result<EnvFilter, TelemetryError> {
    let refuse = |source| TelemetryError::Level {
        level: level.to_owned(),
        source,
    };
    EnvFilter::builder().parse(level).map_err(refuse)
}

fn subscriber<W>(
    filter: EnvFilter,
    json: bool,
    colour: bool,
    writer: W,
) -> (
    Box<dyn tracing::Subscriber + Send + Sync>,
    reload::Handle<EnvFilter, Registry>,
)
where
    W: for<'w> MakeWriter<'w> + Send + Sync + 'static,
{
    let (filter, handle) = reload::Layer::new(filter);
    let lines = tracing_subscriber::fmt::layer()
        .with_writer(writer)
        .with_ansi(colour);
    let registry = tracing_subscriber::registry().with(filter);
    let subscriber: Box<dyn tracing::Subscriber + Send + Sync> = if json {
        Box::new(registry.with(lines.json().flatten_event(true)))
    } else {
        Box::new(registry.with(lines.with_target(false)))
    };
    (subscriber, handle)
}

#[cfg(test)]
mod tests {
    use std::sync::{Arc, Mutex};

    use super::*;

    #[derive(Clone, Default)]
    struct Lines(Arc<Mutex<Vec<u8>>>);

    impl io::Write for Lines {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            let mut lines = self
                .0
                .lock()
                .unwrap_or_else(std::sync::PoisonError::into_inner);
            lines.extend_from_slice(bytes);
            Ok(bytes.len())
        }

        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    fn logged(json: bool) -> String {
        let lines = Lines::default();
        let writer = lines.clone();
        let (subscriber, handle) =
            subscriber(filter("info").unwrap(), json, false, move || writer.clone());
        let telemetry = Telemetry(handle);
        tracing::subscriber::with_default(subscriber, || {
            tracing::debug!("too fine");
            tracing::info!(queue = "mail", "paused");
            telemetry.set_level("off").unwrap();
            tracing::error!("silenced");
        });
        let bytes = lines.0.lock().unwrap().clone();
        String::from_utf8(bytes).unwrap()
    }

    #[test]
    fn json_is_one_object_a_line_with_the_fields_beside_the_message() {
        let line: serde_json::Value = serde_json::from_str(&logged(true)).unwrap();
        assert_eq!(line["message"], "paused");
        assert_eq!(line["queue"], "mail");
        assert_eq!(line["level"], "INFO");
    }

    #[test]
    fn text_is_for_people() {
        let line = logged(false);
        assert!(
            line.trim_end().ends_with("INFO paused queue=\"mail\""),
            "{line}"
        );
    }

    #[test]
    fn a_level_that_is_none_is_refused() {
        assert!(check_level("info").is_ok());
        assert!(check_level("warn,ganger_server::store=debug").is_ok());
        assert!(check_level("info=").is_err() || check_level("a=b=c").is_err());
    }
}
