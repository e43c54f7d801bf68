//! Where settings come from: defaults, then the file, then the environment, then flags.
//!
//! Each layer is read strictly on its own, so that an error names its place: line and column, a
//! variable, a flag. Then the tables are laid over each other. Ranges are [`super`]'s.

use std::path::PathBuf;

use toml::{Table, Value};

use super::{Config, ConfigError};

/// Variables of the environment that are no settings of the server.
const FOREIGN: [&str; 5] = ["URL", "TOKEN", "TOKEN_FILE", "CONFIG", "READY_FILE"];

/// The layers over the defaults, lowest first.
#[derive(Debug, Clone, Default)]
pub struct Layers {
    /// The file and its text.
    pub file: Option<(PathBuf, String)>,
    /// Variables of the environment, all of them.
    pub environment: Vec<(String, String)>,
    /// Settings of the command line.
    pub flags: Vec<Setting>,
}

/// One setting as text.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Setting {
    /// How the user named it: `GANGER_LISTEN`, `--listen`.
    pub origin: String,
    /// The field: `["store", "cache_bytes"]`.
    pub path: Vec<String>,
    /// Its value.
    pub text: String,
}

impl Setting {
    /// A flag for a field, dotted: `Setting::flag("--log", "log.level", "debug")`.
    pub fn flag(origin: &str, path: &str, text: impl Into<String>) -> Self {
        Self {
            origin: origin.to_owned(),
            path: path.split('.').map(str::to_owned).collect(),
            text: text.into(),
        }
    }
}

/// The layers as one configuration whose ranges are not checked yet, and remarks.
pub(super) fn merge(layers: Layers) -> Result<(Config, Vec<String>), ConfigError> {
    let (mut table, mut remarks) = (Table::new(), Vec::new());
    if let Some((path, text)) = layers.file {
        toml::from_str::<Config>(&text).map_err(|error| in_file(&path, &text, &error))?;
        let file = toml::from_str(&text).map_err(|error| in_file(&path, &text, &error))?;
        overlay(&mut table, file);
    }
    for (name, text) in layers.environment {
        let Some(setting) = variable(name, text) else {
            continue;
        };
        match read(&setting) {
            Ok(layer) => overlay(&mut table, layer),
            // A machine may set GANGER_* for its own ends, as Kubernetes does for a service.
            Err(error) if setting.path.len() == 1 && unknown_field(error.message()).is_some() => {
                if let Some(meant) = suggestion(error.message()) {
                    let origin = &setting.origin;
                    let meant = meant.to_uppercase();
                    remarks.push(format!(
                        "{origin} is no setting; did you mean GANGER_{meant}?"
                    ));
                }
            }
            Err(error) => return Err(in_setting(&setting, &error)),
        }
    }
    for setting in layers.flags {
        overlay(
            &mut table,
            read(&setting).map_err(|error| in_setting(&setting, &error))?,
        );
    }
    let merged = table
        .try_into()
        .map_err(|error: toml::de::Error| ConfigError::Setting {
            origin: "the settings together".to_owned(),
            message: error.message().to_owned(),
            suggestion: None,
        })?;
    Ok((merged, remarks))
}

fn variable(name: String, text: String) -> Option<Setting> {
    let rest = name
        .strip_prefix("GANGER_")
        .filter(|rest| !FOREIGN.contains(rest))?;
    if text.is_empty() || rest.starts_with("JOB_") {
        return None;
    }
    let path = rest.split("__").map(str::to_lowercase).collect();
    Some(Setting {
        path,
        origin: name,
        text,
    })
}

/// A setting as a table of its own that the configuration accepts: its text as a TOML value
/// (`8`, `true`, `{ interval_ms = 5 }`), else as a string.
fn read(setting: &Setting) -> Result<Table, toml::de::Error> {
    let nested = |value: Value| {
        let path = setting.path.iter().rev();
        let value = path.fold(value, |value, key| {
            Table::from_iter([(key.clone(), value)]).into()
        });
        match value {
            Value::Table(table) => table,
            other => Table::from_iter([(String::new(), other)]),
        }
    };
    let accepted = |table: &Table| table.clone().try_into::<Config>().map(|_config| ());
    let text = nested(Value::String(setting.text.clone()));
    let refused = match accepted(&text) {
        Ok(()) => return Ok(text),
        Err(error) => error,
    };
    let typed = toml::from_str(&format!("v = {}", setting.text));
    let typed = typed.ok().filter(|table: &Table| table.len() == 1);
    match typed.and_then(|mut table| table.remove("v")).map(nested) {
        Some(typed) => accepted(&typed).map(|()| typed),
        None => Err(refused),
    }
}

fn overlay(under: &mut Table, over: Table) {
    for (key, value) in over {
        match (under.get_mut(&key), value) {
            (Some(Value::Table(under)), Value::Table(over)) => overlay(under, over),
            (_, value) => {
                under.insert(key, value);
            }
        }
    }
}

fn in_file(path: &std::path::Path, text: &str, error: &toml::de::Error) -> ConfigError {
    let start = error.span().map_or(0, |span| span.start);
    let before = text.get(..start).unwrap_or(text);
    let last = before.rsplit('\n').next().unwrap_or_default();
    ConfigError::File {
        path: path.to_owned(),
        line: before.matches('\n').count() + 1,
        column: last.chars().count() + 1,
        message: first_line(error.message()),
        suggestion: suggestion(error.message()),
    }
}

fn in_setting(setting: &Setting, error: &toml::de::Error) -> ConfigError {
    ConfigError::Setting {
        origin: setting.origin.clone(),
        message: first_line(error.message()),
        suggestion: suggestion(error.message()),
    }
}

fn first_line(message: &str) -> String {
    message.lines().next().unwrap_or_default().to_owned()
}

/// The name in "unknown field `name`, expected …".
fn unknown_field(message: &str) -> Option<&str> {
    let rest = message
        .strip_prefix("unknown field `")
        .or_else(|| message.strip_prefix("unknown variant `"))?;
    rest.split('`').next()
}

/// The expected name that is nearest to an unknown one, when it is near.
fn suggestion(message: &str) -> Option<String> {
    let unknown = unknown_field(message)?;
    let expected = message.split('`').skip(3).step_by(2);
    let near = expected.map(|name| (distance(unknown, name), name)).min()?;
    (near.0 <= 1 + unknown.len() / 4).then(|| near.1.to_owned())
}

/// How many letters to insert, remove or change to make one word of the other.
fn distance(one: &str, other: &str) -> usize {
    let other: Vec<char> = other.chars().collect();
    let mut row: Vec<usize> = (0..=other.len()).collect();
    for (i, a) in one.chars().enumerate() {
        let (mut diagonal, mut left) = (i, i + 1);
        let mut next = vec![left];
        for (b, above) in other.iter().zip(row.iter().skip(1)) {
            left = (diagonal + usize::from(a != *b))
                .min(above + 1)
                .min(left + 1);
            diagonal = *above;
            next.push(left);
        }
        row = next;
    }
    row.last().copied().unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_distance_of_words_counts_letters() {
        for (one, other, expected) in [
            ("", "abc", 3),
            ("cache", "cache", 0),
            ("cach", "cache", 1),
            ("lisetn", "listen", 2),
        ] {
            assert_eq!(distance(one, other), expected, "{one} {other}");
            assert_eq!(distance(other, one), expected, "{other} {one}");
        }
    }

    #[test]
    fn only_a_near_name_is_suggested() {
        let message =
            |name: &str| format!("unknown field `{name}`, expected one of `listen`, `sync`");
        assert_eq!(suggestion(&message("lisetn")).as_deref(), Some("listen"));
        assert_eq!(suggestion(&message("port")), None);
        assert_eq!(suggestion("invalid type"), None);
    }
}
