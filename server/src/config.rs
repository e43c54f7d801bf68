//! The configuration: one struct, its defaults, its ranges.
//!
//! Every field has its unit in its name or in its value (`drain_timeout = "5s"`,
//! `cache_bytes = "64MiB"`). Unknown fields are refused. Where values come from is
//! `config/layers.rs`'s; what they do is for the files that are given them.

mod cron;
mod layers;
pub mod units;

use std::{
    collections::{BTreeMap, BTreeSet},
    fmt,
    net::SocketAddr,
    path::PathBuf,
};

use ganger_engine::cron::file::FileCron;
use ganger_protocol::{DEFAULT_PORT, DurationMs, WireError, limits as protocol};
use serde::{Deserialize, Deserializer, Serialize, de, ser::SerializeMap as _};

use self::units::{Size, Span};
pub use self::{
    cron::CronConfig,
    layers::{Layers, Setting},
};
use crate::{
    auth::{TokenConfig, Verb},
    telemetry::{LogFormat, check_level},
};

/// Cron entries of a configuration at most.
const FILE_CRONS_MAX: usize = 1_000;

/// The configuration of a server.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Config {
    /// Where clients connect. Default `127.0.0.1:4264`; port 0 takes a free one.
    pub listen: SocketAddr,
    /// Reserved for the web UI and metrics; this version does not serve them.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub web: Option<SocketAddr>,
    /// Where the store lives; made when it is not there. Default `./ganger-data`.
    pub data_dir: PathBuf,
    /// How many shards a new store has, 1…256. Default 1.
    pub shards: u16,
    /// When a change is durable. Default `"always"`.
    pub sync: Sync,
    /// How long a draining server waits for what is in flight, 0…10m. Default `5s`.
    pub drain_timeout: Span,
    /// Listen beyond this machine without tokens. Default false.
    pub insecure_no_auth: bool,
    /// The log.
    pub log: LogConfig,
    /// What clients may use.
    pub limits: LimitsConfig,
    /// The store.
    pub store: StoreConfig,
    /// Heads of waiting jobs in memory.
    pub heads: HeadsConfig,
    /// Who may do what.
    pub auth: AuthConfig,
    /// Cron entries of which the configuration alone decides; at most 1 000.
    pub cron: Vec<CronConfig>,
}

/// When a change is durable.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum Sync {
    /// Before it is answered.
    #[default]
    Always,
    /// At the latest after so many ms, 1…10 000: a crash of the machine may lose what was answered
    /// ok in that time.
    Interval(DurationMs),
}

/// The log.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct LogConfig {
    /// `off`, `error`, `warn`, `info`, `debug`, `trace`, or `target=level` pairs. Default `info`.
    pub level: String,
    /// `auto`, `pretty` or `json`. Default `auto`: pretty on a terminal.
    pub format: LogFormat,
}

/// What clients may use.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct LimitsConfig {
    /// Bytes of a frame, 64KiB…64MiB. Default `8MiB`.
    pub frame_bytes_max: Size,
    /// Bytes of a payload, 1KiB…a frame less 64KiB. Default `1MiB`.
    pub payload_bytes_max: Size,
    /// Bytes of a result, 1KiB…a frame less 64KiB. Default `256KiB`.
    pub result_bytes_max: Size,
    /// Jobs, leases or ids of a request, 1…1000. Default 1000.
    pub items_max: u32,
    /// Connections, 1…1 000 000. Default 10 000.
    pub connections_max: u32,
    /// Connections of one address that is not this machine, 1…1 000 000. Default 1 000.
    pub connections_per_address_max: u32,
    /// Bytes of unfinished requests overall, 1MiB…64GiB. Default `256MiB`.
    pub in_flight_bytes_max: Size,
    /// Bytes of the frame with `hello`, 512B…64KiB. Default `64KiB`.
    pub hello_bytes_max: Size,
    /// Time from connecting to `hello`, 100ms…1m. Default `5s`.
    pub hello_timeout: Span,
    /// Time for a frame that has begun, 1s…10m. Default `30s`.
    pub frame_timeout: Span,
    /// Time without session and request before a connection ends, 10s…1d. Default `10m`.
    pub idle_timeout: Span,
    /// Time that a client may refuse to read its replies, 1s…10m. Default `30s`.
    pub write_stall_timeout: Span,
}

/// The store.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct StoreConfig {
    /// Cache of the table, 1MiB…64GiB a shard. Default `32MiB`.
    pub cache_bytes: Size,
    /// A segment of the log, 1MiB…1GiB. Default `64MiB`.
    pub log_segment_bytes: Size,
    /// Changes in memory that are not in the table yet, 1MiB…4GiB. Default `32MiB`.
    pub overlay_bytes_max: Size,
    /// A checkpoint after so much log, 1MiB…4GiB. Default `16MiB`.
    pub checkpoint_bytes: Size,
    /// A checkpoint at the latest after this time, 100ms…10m. Default `5s`.
    pub checkpoint_interval: Span,
}

/// Heads of waiting jobs in memory, a shard. What passes this stays on disk.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct HeadsConfig {
    /// Heads, 1024…64 Mi. Default 262 144.
    pub count_max: u32,
    /// Payloads of heads, 1MiB…64GiB. Default `32MiB`.
    pub payload_bytes_max: Size,
}

/// Who may do what.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct AuthConfig {
    /// The tokens; none means that everybody may do everything.
    pub token: Vec<TokenConfig>,
}

impl Default for Config {
    fn default() -> Self {
        Self {
            listen: SocketAddr::from(([127, 0, 0, 1], DEFAULT_PORT)),
            web: None,
            data_dir: PathBuf::from("./ganger-data"),
            shards: 1,
            sync: Sync::Always,
            drain_timeout: secs(5),
            insecure_no_auth: false,
            log: LogConfig::default(),
            limits: LimitsConfig::default(),
            store: StoreConfig::default(),
            heads: HeadsConfig::default(),
            auth: AuthConfig::default(),
            cron: Vec::new(),
        }
    }
}

impl Default for LogConfig {
    fn default() -> Self {
        Self {
            level: "info".to_owned(),
            format: LogFormat::Auto,
        }
    }
}

impl Default for LimitsConfig {
    fn default() -> Self {
        Self {
            frame_bytes_max: Size(protocol::FRAME_BYTES_MAX as u64),
            payload_bytes_max: Size(protocol::PAYLOAD_BYTES_MAX as u64),
            result_bytes_max: Size(protocol::RESULT_BYTES_MAX as u64),
            items_max: 1_000,
            connections_max: 10_000,
            connections_per_address_max: 1_000,
            in_flight_bytes_max: Size::mib(256),
            hello_bytes_max: Size(protocol::FRAME_BYTES_MAX_BEFORE_HELLO as u64),
            hello_timeout: secs(5),
            frame_timeout: secs(30),
            idle_timeout: secs(600),
            write_stall_timeout: secs(30),
        }
    }
}

impl Default for StoreConfig {
    fn default() -> Self {
        Self {
            cache_bytes: Size::mib(32),
            log_segment_bytes: Size::mib(64),
            overlay_bytes_max: Size::mib(32),
            checkpoint_bytes: Size::mib(16),
            checkpoint_interval: secs(5),
        }
    }
}

impl Default for HeadsConfig {
    fn default() -> Self {
        Self {
            count_max: 262_144,
            payload_bytes_max: Size::mib(32),
        }
    }
}

const fn secs(seconds: u64) -> Span {
    Span(DurationMs::from_secs(seconds))
}

/// Why a configuration is refused.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ConfigError {
    /// The file cannot be read.
    #[error("cannot read {}", path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// What the system says.
        source: std::io::Error,
    },
    /// The file is wrong at a place.
    #[error("{}:{line}:{column}: {message}", path.display())]
    File {
        /// The file.
        path: PathBuf,
        /// From 1.
        line: usize,
        /// In characters, from 1.
        column: usize,
        /// What is wrong.
        message: String,
        /// What was probably meant.
        suggestion: Option<String>,
    },
    /// A variable or flag is wrong.
    #[error("{origin}: {message}")]
    Setting {
        /// Its name.
        origin: String,
        /// What is wrong.
        message: String,
        /// What was probably meant.
        suggestion: Option<String>,
    },
    /// A value is outside of its range.
    #[error("{field} must be {min} to {max}, not {value}")]
    Range {
        /// The field, dotted.
        field: &'static str,
        /// The least value.
        min: String,
        /// The largest value.
        max: String,
        /// What came.
        value: String,
    },
    /// A value does not go.
    #[error("{field}: {message}")]
    Value {
        /// The field, dotted.
        field: String,
        /// Why.
        message: String,
    },
    /// Anybody in the network could do anything.
    #[error(
        "listening on {listen} without tokens would let everybody who reaches it do everything"
    )]
    OpenToAll {
        /// The address.
        listen: SocketAddr,
    },
}

impl ConfigError {
    /// What to do about it.
    pub fn hint(&self) -> Option<String> {
        match self {
            Self::File {
                suggestion: Some(name),
                ..
            }
            | Self::Setting {
                suggestion: Some(name),
                ..
            } => Some(format!("did you mean `{name}`?")),
            Self::OpenToAll { .. } => {
                Some("make a token with `ganger token new`, or say --insecure-no-auth".to_owned())
            }
            Self::Read { .. }
            | Self::File { .. }
            | Self::Setting { .. }
            | Self::Range { .. }
            | Self::Value { .. } => None,
        }
    }
}

impl Config {
    /// A file that sets every default, with what each setting means and may be.
    pub const ANNOTATED: &str = include_str!("config/default.toml");

    /// Every setting by its dotted name, as TOML writes its value; hashes of tokens are masked.
    pub fn settings(&self) -> BTreeMap<String, String> {
        let table = toml::Table::try_from(self).unwrap_or_default();
        let leaves = layers::leaves(&table).into_iter();
        leaves
            .map(|(name, value)| (name, value.to_string()))
            .collect()
    }

    /// The configuration of these layers, checked, and remarks on settings that are none.
    ///
    /// # Errors
    /// The first thing that is wrong, with its place.
    pub fn load(layers: Layers) -> Result<(Self, Vec<String>), ConfigError> {
        let (config, remarks) = layers::merge(layers)?;
        config.check()?;
        Ok((config, remarks))
    }

    /// Checks every range, and that nobody is let in unawares.
    ///
    /// # Errors
    /// The first value that does not go.
    pub fn check(&self) -> Result<(), ConfigError> {
        range("shards", 1, 256, self.shards)?;
        range(
            "drain_timeout",
            Span::default(),
            secs(600),
            self.drain_timeout,
        )?;
        if let Sync::Interval(ms) = self.sync {
            range("sync.interval_ms", 1, 10_000, ms.0)?;
        }
        if let Err(error) = check_level(&self.log.level) {
            return Err(value("log.level", &error.to_string()));
        }
        self.limits.check()?;
        self.store.check()?;
        range("heads.count_max", 1_024, 64 << 20, self.heads.count_max)?;
        let (min, max) = (Size::mib(1), Size::mib(64 << 10));
        range(
            "heads.payload_bytes_max",
            min,
            max,
            self.heads.payload_bytes_max,
        )?;
        self.auth.check()?;
        self.file_crons()?;
        let open = !self.listen.ip().to_canonical().is_loopback() && self.auth.token.is_empty();
        if open && !self.insecure_no_auth {
            return Err(ConfigError::OpenToAll {
                listen: self.listen,
            });
        }
        Ok(())
    }

    /// The cron entries, checked.
    ///
    /// # Errors
    /// The first one that does not go.
    pub fn file_crons(&self) -> Result<Vec<FileCron>, ConfigError> {
        range("the count of [[cron]]", 0, FILE_CRONS_MAX, self.cron.len())?;
        let limits = self.limits.announced();
        let mut names = BTreeSet::new();
        let mut checked = Vec::with_capacity(self.cron.len());
        for cron in &self.cron {
            let entry = format!("cron {}", cron.name);
            if !names.insert((&cron.namespace, &cron.name)) {
                return Err(value(&entry, "there are two entries of this name"));
            }
            let refused = |error: WireError| match error.field {
                Some(field) => value(&format!("{entry}, {field}"), &error.message),
                None => value(&entry, &error.message),
            };
            checked.push(cron.checked(&limits).map_err(refused)?);
        }
        Ok(checked)
    }

    /// What whoever starts this should know.
    pub fn warnings(&self) -> Vec<String> {
        let mut warnings = Vec::new();
        let listen = self.listen;
        if !listen.ip().to_canonical().is_loopback() {
            warnings.push(if self.auth.token.is_empty() {
                format!("everybody who reaches {listen} may do everything (insecure_no_auth)")
            } else {
                format!("jobs travel to and from {listen} unencrypted: there is no TLS yet")
            });
        }
        if let Sync::Interval(interval) = self.sync {
            warnings.push(format!(
                "a crash of the machine may lose what was answered in the last {interval} (sync)"
            ));
        }
        if self.web.is_some() {
            warnings.push("this version has no web UI; web is ignored".to_owned());
        }
        warnings
    }
}

impl LimitsConfig {
    /// The limits that clients are told.
    pub fn announced(&self) -> protocol::Limits {
        protocol::Limits {
            frame_bytes_max: self.frame_bytes_max.bytes(),
            payload_bytes_max: self.payload_bytes_max.bytes(),
            result_bytes_max: self.result_bytes_max.bytes(),
            items_max: usize::try_from(self.items_max).unwrap_or(usize::MAX),
            session_leases_max: protocol::SESSION_LEASES_MAX,
        }
    }

    fn check(&self) -> Result<(), ConfigError> {
        let kib = |count: u64| Size(count << 10);
        let content_max = Size(self.frame_bytes_max.0.saturating_sub(64 << 10)).max(kib(1));
        range(
            "limits.frame_bytes_max",
            kib(64),
            Size::mib(64),
            self.frame_bytes_max,
        )?;
        range(
            "limits.payload_bytes_max",
            kib(1),
            content_max,
            self.payload_bytes_max,
        )?;
        range(
            "limits.result_bytes_max",
            kib(1),
            content_max,
            self.result_bytes_max,
        )?;
        range("limits.items_max", 1, 1_000, self.items_max)?;
        range("limits.connections_max", 1, 1_000_000, self.connections_max)?;
        let per_address = self.connections_per_address_max;
        range(
            "limits.connections_per_address_max",
            1,
            1_000_000,
            per_address,
        )?;
        let (min, max) = (Size::mib(1), Size::mib(64 << 10));
        range(
            "limits.in_flight_bytes_max",
            min,
            max,
            self.in_flight_bytes_max,
        )?;
        range(
            "limits.hello_bytes_max",
            Size(512),
            kib(64),
            self.hello_bytes_max,
        )?;
        range(
            "limits.hello_timeout",
            Span(DurationMs(100)),
            secs(60),
            self.hello_timeout,
        )?;
        range(
            "limits.frame_timeout",
            secs(1),
            secs(600),
            self.frame_timeout,
        )?;
        range(
            "limits.idle_timeout",
            secs(10),
            secs(86_400),
            self.idle_timeout,
        )?;
        range(
            "limits.write_stall_timeout",
            secs(1),
            secs(600),
            self.write_stall_timeout,
        )
    }
}

impl StoreConfig {
    fn check(&self) -> Result<(), ConfigError> {
        let (mib, gib) = (Size::mib(1), Size::mib(1 << 10));
        range(
            "store.cache_bytes",
            mib,
            Size::mib(64 << 10),
            self.cache_bytes,
        )?;
        range("store.log_segment_bytes", mib, gib, self.log_segment_bytes)?;
        range(
            "store.overlay_bytes_max",
            mib,
            Size::mib(4 << 10),
            self.overlay_bytes_max,
        )?;
        range(
            "store.checkpoint_bytes",
            mib,
            Size::mib(4 << 10),
            self.checkpoint_bytes,
        )?;
        let (min, max) = (Span(DurationMs(100)), secs(600));
        range(
            "store.checkpoint_interval",
            min,
            max,
            self.checkpoint_interval,
        )
    }
}

impl AuthConfig {
    fn check(&self) -> Result<(), ConfigError> {
        let mut ids = BTreeSet::new();
        for token in &self.token {
            let field = format!("auth.token {}", token.id);
            if !ids.insert(&token.id) {
                return Err(value(&field, "there are two tokens of this id"));
            }
            let none: [(&str, bool); 3] = [
                ("verbs", token.verbs.is_empty()),
                (
                    "namespaces",
                    token.namespaces.as_ref().is_some_and(Vec::is_empty),
                ),
                ("queues", token.queues.as_ref().is_some_and(Vec::is_empty)),
            ];
            if let Some((list, _)) = none.iter().find(|(_, empty)| *empty) {
                let all = Verb::ALL.map(Verb::as_str).join(", ");
                let message = format!("{list} is empty, so it is good for nothing; verbs: {all}");
                return Err(value(&field, &message));
            }
        }
        Ok(())
    }
}

fn range<T>(field: &'static str, min: T, max: T, value: T) -> Result<(), ConfigError>
where
    T: PartialOrd + fmt::Display + Copy,
{
    if min <= value && value <= max {
        return Ok(());
    }
    Err(ConfigError::Range {
        field,
        min: min.to_string(),
        max: max.to_string(),
        value: value.to_string(),
    })
}

fn value(field: &str, message: &str) -> ConfigError {
    ConfigError::Value {
        field: field.to_owned(),
        message: message.to_owned(),
    }
}

impl Serialize for Sync {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        match self {
            Self::Always => serializer.serialize_str("always"),
            Self::Interval(ms) => {
                let mut map = serializer.serialize_map(Some(1))?;
                map.serialize_entry("interval_ms", &ms.0)?;
                map.end()
            }
        }
    }
}

impl<'de> Deserialize<'de> for Sync {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_any(SyncVisitor)
    }
}

struct SyncVisitor;

impl<'de> de::Visitor<'de> for SyncVisitor {
    type Value = Sync;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("\"always\" or { interval_ms = N }")
    }

    fn visit_str<E: de::Error>(self, text: &str) -> Result<Sync, E> {
        match text {
            "always" => Ok(Sync::Always),
            other => Err(E::invalid_value(de::Unexpected::Str(other), &self)),
        }
    }

    fn visit_map<A: de::MapAccess<'de>>(self, map: A) -> Result<Sync, A::Error> {
        #[derive(Deserialize)]
        #[serde(deny_unknown_fields)]
        struct Interval {
            interval_ms: u64,
        }
        let interval = Interval::deserialize(de::value::MapAccessDeserializer::new(map))?;
        Ok(Sync::Interval(DurationMs(interval.interval_ms)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const HASH: &str = "1ec1c26b50d5d3c58d9583181af8076655fe00756bf7285940ba3670f99fcba0";

    fn file(text: &str) -> Layers {
        Layers {
            files: vec![("g.toml".into(), text.to_owned())],
            ..Layers::default()
        }
    }

    fn environment(pairs: &[(&str, &str)]) -> Layers {
        let pair = |(name, text): &(&str, &str)| ((*name).to_owned(), (*text).to_owned());
        Layers {
            environment: pairs.iter().map(pair).collect(),
            ..Layers::default()
        }
    }

    /// The error of these layers and its hint, in one line.
    #[track_caller]
    fn refused(layers: Layers) -> String {
        let error = Config::load(layers).unwrap_err();
        match error.hint() {
            None => error.to_string(),
            Some(hint) => format!("{error}; {hint}"),
        }
    }

    #[track_caller]
    fn accepted(layers: Layers) -> Config {
        Config::load(layers).unwrap().0
    }

    #[test]
    fn nothing_set_means_the_defaults_and_they_are_within_their_ranges() {
        assert_eq!(accepted(Layers::default()), Config::default());
        assert_eq!(Config::default().warnings(), Vec::<String>::new());
        assert_eq!(
            Config::default().limits.announced(),
            protocol::Limits::default()
        );
    }

    #[test]
    fn the_annotated_file_sets_every_default() {
        let text = Config::ANNOTATED;
        assert_eq!(accepted(file(text)), Config::default());
        let set: toml::Table = toml::from_str(text).unwrap();
        let mut set: Vec<String> = layers::leaves(&set).into_keys().collect();
        set.extend(["auth.token", "cron"].map(str::to_owned));
        set.sort();
        let all: Vec<String> = Config::default().settings().into_keys().collect();
        assert_eq!(set, all);
        let optional = "web id hash verbs namespaces queues name namespace expression timezone every \
                        kind queue payload headers priority max_attempts timeout tags misfire \
                        misfire_max overlap jitter paused";
        for field in optional.split_whitespace() {
            assert!(text.contains(&format!("\n# {field} = ")), "{field}");
        }
    }

    #[test]
    fn flags_beat_the_environment_beats_the_file_beats_the_defaults() {
        let mut layers = file("shards = 2\ndrain_timeout = \"1s\"\n[store]\ncache_bytes = 1048576");
        assert_eq!(accepted(layers.clone()).shards, 2);
        layers.environment = environment(&[
            ("GANGER_SHARDS", "3"),
            ("GANGER_STORE__CACHE_BYTES", "2MiB"),
            ("GANGER_DATA_DIR", "2024"),
            ("GANGER_SYNC", "{ interval_ms = 5 }"),
        ])
        .environment;
        layers.flags = vec![Setting::flag("--shards", "shards", "4")];
        let config = accepted(layers);
        assert_eq!(config.shards, 4);
        assert_eq!(config.store.cache_bytes, Size::mib(2));
        assert_eq!(config.store.log_segment_bytes, Size::mib(64));
        assert_eq!(config.drain_timeout, secs(1));
        assert_eq!(config.data_dir, PathBuf::from("2024"));
        assert_eq!(config.sync, Sync::Interval(DurationMs(5)));
    }

    #[test]
    fn an_unknown_field_is_refused_with_its_place_and_a_suggestion() {
        let message = refused(file("shards = 1\n\n[store]\n  cach_bytes = 5\n"));
        assert!(
            message.starts_with("g.toml:4:3: unknown field `cach_bytes`, expected "),
            "{message}"
        );
        assert!(
            message.ends_with("; did you mean `cache_bytes`?"),
            "{message}"
        );
        let message = refused(file("[[auth.token]]\nid = \"a\"\nverb = []"));
        assert!(message.starts_with("g.toml:3:1: "), "{message}");
        assert!(message.ends_with("did you mean `verbs`?"), "{message}");
    }

    #[test]
    fn a_value_of_another_type_is_refused_with_what_is_expected() {
        assert_eq!(
            refused(file("drain_timeout = 5")),
            "g.toml:1:17: invalid type: integer `5`, expected a duration such as \"5m\""
        );
        assert_eq!(
            refused(file("sync = \"never\"")),
            "g.toml:1:8: invalid value: string \"never\", expected \"always\" or { interval_ms = N }"
        );
        assert_eq!(
            refused(environment(&[("GANGER_STORE__CACHE_BYTES", "lots")])),
            "GANGER_STORE__CACHE_BYTES: \"lots\" is no size such as 512, 64KiB, 64MiB or 1GiB"
        );
        let layers = Layers {
            flags: vec![Setting::flag("--listen", "listen", "here")],
            ..Layers::default()
        };
        assert_eq!(refused(layers), "--listen: invalid socket address syntax");
    }

    #[test]
    fn foreign_variables_are_left_alone_and_near_misses_remarked() {
        let foreign = [
            ("GANGER_PORT", "tcp://10.0.0.1:4264"),
            ("GANGER_TOKEN", "x"),
            ("GANGER_JOB_ID", "x"),
            ("GANGER_LISTEN", ""),
            ("PATH", "/bin"),
        ];
        let (config, remarks) = Config::load(environment(&foreign)).unwrap();
        assert_eq!((config, remarks), (Config::default(), Vec::new()));
        let (_, remarks) = Config::load(environment(&[("GANGER_LISTN", "::1")])).unwrap();
        assert_eq!(
            remarks,
            ["GANGER_LISTN is no setting; did you mean GANGER_LISTEN?"]
        );
        let message = refused(environment(&[("GANGER_STORE__CACHE_BYTE", "5")]));
        assert!(
            message.starts_with("GANGER_STORE__CACHE_BYTE: unknown field"),
            "{message}"
        );
        assert!(
            message.ends_with("did you mean `cache_bytes`?"),
            "{message}"
        );
    }

    #[test]
    fn ranges_hold_at_the_limit_and_not_past_it() {
        for (text, past) in [
            ("shards = 256", "shards must be 1 to 256, not 257"),
            (
                "drain_timeout = \"10m\"",
                "drain_timeout must be 0s to 10m, not 10m1s",
            ),
            (
                "sync = { interval_ms = 1 }",
                "sync.interval_ms must be 1 to 10000, not 0",
            ),
            (
                "[limits]\nitems_max = 1000",
                "limits.items_max must be 1 to 1000, not 1001",
            ),
            (
                "[limits]\nframe_bytes_max = \"64MiB\"",
                "limits.frame_bytes_max must be 64KiB to 64MiB, not 65MiB",
            ),
            (
                "[limits]\npayload_bytes_max = \"8128KiB\"",
                "limits.payload_bytes_max must be 1KiB to 8128KiB, not 8129KiB",
            ),
            (
                "[store]\ncache_bytes = \"1MiB\"",
                "store.cache_bytes must be 1MiB to 64GiB, not 1B",
            ),
            (
                "[heads]\ncount_max = 1024",
                "heads.count_max must be 1024 to 67108864, not 1023",
            ),
        ] {
            accepted(file(text));
            let value = past.rsplit(' ').next().unwrap();
            let (field, old) = text.rsplit_once(" = ").unwrap();
            let value = match old {
                old if old.starts_with('"') => format!("\"{value}\""),
                old if old.ends_with('}') => format!("{value} }}"),
                _ => value.to_owned(),
            };
            assert_eq!(refused(file(&format!("{field} = {value}"))), past);
        }
    }

    #[test]
    fn a_level_that_is_none_is_refused() {
        let message = refused(file("[log]\nlevel = \"a=b=c\""));
        assert!(
            message.starts_with("log.level: \"a=b=c\" is no level"),
            "{message}"
        );
    }

    #[test]
    fn an_address_beyond_this_machine_needs_tokens_or_a_word() {
        assert_eq!(
            refused(file("listen = \"0.0.0.0:4264\"")),
            "listening on 0.0.0.0:4264 without tokens would let everybody who reaches it do \
             everything; make a token with `ganger token new`, or say --insecure-no-auth"
        );
        let open = accepted(file("listen = \"0.0.0.0:1\"\ninsecure_no_auth = true"));
        assert_eq!(
            open.warnings(),
            ["everybody who reaches 0.0.0.0:1 may do everything (insecure_no_auth)"]
        );
        let token = format!("[[auth.token]]\nid = \"a\"\nhash = \"{HASH}\"\nverbs = [\"push\"]");
        let closed = accepted(file(&format!("listen = \"0.0.0.0:1\"\n{token}")));
        assert_eq!(
            closed.warnings(),
            ["jobs travel to and from 0.0.0.0:1 unencrypted: there is no TLS yet"]
        );
        for loopback in ["127.0.0.2:1", "[::1]:1", "[::ffff:127.0.0.1]:1"] {
            accepted(file(&format!("listen = \"{loopback}\"")));
        }
    }

    #[test]
    fn a_token_that_says_nothing_or_twice_the_same_is_refused() {
        let token = |id: &str, rest: &str| {
            format!("[[auth.token]]\nid = \"{id}\"\nhash = \"{HASH}\"\n{rest}\n")
        };
        let good = token("a", "verbs = [\"push\", \"admin\"]\nqueues = [\"mail.*\"]");
        let config = accepted(file(&good));
        assert_eq!(config.auth.token[0].verbs, [Verb::Push, Verb::Admin]);
        assert_eq!(
            refused(file(&good.repeat(2))),
            "auth.token a: there are two tokens of this id"
        );
        assert_eq!(
            refused(file(&token("a", "verbs = []"))),
            "auth.token a: verbs is empty, so it is good for nothing; \
             verbs: push, work, inspect, admin"
        );
        let message = refused(file(&token("a.b", "verbs = [\"push\"]")));
        assert!(
            message.contains("a token id has 1 to 128 of A-Z a-z 0-9 _ -"),
            "{message}"
        );
        let message = refused(file(&token("a", "verbs = [\"pusch\"]")));
        assert!(message.ends_with("did you mean `push`?"), "{message}");
    }

    #[test]
    fn a_cron_entry_has_the_fields_of_the_operation_in_the_words_of_the_file() {
        let text = "[[cron]]\nname = \"nightly\"\nexpression = \"30 4 * * *\"\nkind = \"report\"\n\
                    payload = { pages = [3, 4] }\ntimeout = \"10m\"\n";
        let config = accepted(file(text));
        assert_eq!(config.file_crons().unwrap().len(), 1);
        let shown = &config.settings()["cron"];
        assert!(shown.contains("30 4 * * *"), "{shown}");
    }

    #[test]
    fn a_cron_entry_that_does_not_go_is_refused_by_its_name_and_field() {
        let entry = |rest: &str| {
            file(&format!(
                "[[cron]]\nname = \"nightly\"\nkind = \"report\"\n{rest}\n"
            ))
        };
        for (rest, message) in [
            ("", "cron nightly, expression: name expression"),
            ("expression = \"61 * * * *\"", "cron nightly, expression: "),
            (
                "expression = \"0 0 30 2 *\"",
                "cron nightly, expression: none of its times comes",
            ),
            (
                "expression = \"* * * * *\"\ntimezone = \"Berlin\"",
                "cron nightly, timezone: ",
            ),
            (
                "every = \"10ms\"",
                "cron nightly, every_ms: every_ms must be 1000 to",
            ),
            (
                "every = \"1m\"\npriority = 10",
                "cron nightly, job.priority: ",
            ),
            ("every = \"1m\"\npayload = \"\"\"\n", "g.toml:"),
            (
                "every = \"1m\"\nevry = 1",
                "g.toml:5:1: unknown field `evry`",
            ),
        ] {
            let refused = refused(entry(rest));
            assert!(refused.starts_with(message), "{refused}");
        }
        let twice = "[[cron]]\nname = \"a\"\nkind = \"k\"\nevery = \"1m\"\n".repeat(2);
        assert_eq!(
            refused(file(&twice)),
            "cron a: there are two entries of this name"
        );
    }

    #[test]
    fn hashes_do_not_print() {
        let token = format!("[[auth.token]]\nid = \"a\"\nhash = \"{HASH}\"\nverbs = [\"push\"]");
        let config = accepted(file(&token));
        assert!(!format!("{config:?}").contains("1ec1"));
        assert!(!toml::to_string(&config).unwrap().contains("1ec1"));
    }
}
