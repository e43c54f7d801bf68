//! Where settings come from: defaults, then the file, then the environment, then flags.
//!
//! Each layer is read strictly on its own, so that an error names its place: line and column, a
//! variable, a flag. Then the tables are laid over each other. Ranges are [`super`]'s.

use std::{
    collections::BTreeMap,
    fs, io,
    path::{Path, PathBuf},
};

use toml::{Table, Value};

use super::{Config, ConfigError};

/// Variables of the environment that are no settings of the server.
const FOREIGN: [&str; 5] = ["URL", "TOKEN", "TOKEN_FILE", "CONFIG", "READY_FILE"];

/// The layers over the defaults, lowest first.
#[derive(Debug, Clone, Default)]
pub struct Layers {
    /// Files and their texts; a later one goes over an earlier one.
    pub files: Vec<(PathBuf, String)>,
    /// Variables of the environment, all of them.
    pub environment: Vec<(String, String)>,
    /// Settings of the command line.
    pub flags: Vec<Setting>,
}

impl Layers {
    /// A file, and the files `conf.d/*.toml` beside it in the order of their names.
    ///
    /// # Errors
    /// When one of them cannot be read. There need not be a `conf.d`.
    pub fn read_files(path: &Path) -> Result<Vec<(PathBuf, String)>, ConfigError> {
        let mut paths = vec![path.to_owned()];
        let beside = path.with_file_name("conf.d");
        let refused = |path: &Path, source| ConfigError::Read {
            path: path.to_owned(),
            source,
        };
        let mut parts = match parts(&beside) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => Vec::new(),
            parts => parts.map_err(|source| refused(&beside, source))?,
        };
        parts.sort();
        paths.append(&mut parts);
        let read = |path: PathBuf| match fs::read_to_string(&path) {
            Ok(text) => Ok((path, text)),
            Err(source) => Err(refused(&path, source)),
        };
        paths.into_iter().map(read).collect()
    }

    /// Where each setting that is not left at its default comes from, by its dotted name.
    pub fn origins(&self) -> BTreeMap<String, String> {
        let mut origins = BTreeMap::new();
        for (path, text) in &self.files {
            let table = toml::from_str(text).unwrap_or_default();
            for name in leaves(&table).into_keys() {
                origins.insert(name, path.display().to_string());
            }
        }
        let variables = self.environment.iter().cloned();
        let variables = variables.filter_map(|(name, text)| variable(name, text));
        for setting in variables.chain(self.flags.iter().cloned()) {
            origins.insert(setting.path.join("."), setting.origin);
        }
        origins
    }
}

fn parts(directory: &Path) -> io::Result<Vec<PathBuf>> {
    let mut paths = Vec::new();
    for entry in fs::read_dir(directory)? {
        let path = entry?.path();
        if path
            .extension()
            .is_some_and(|extension| extension == "toml")
        {
            paths.push(path);
        }
    }
    Ok(paths)
}

/// The values of a table by their dotted names; a list is one value.
pub(super) fn leaves(table: &Table) -> BTreeMap<String, Value> {
    let mut found = BTreeMap::new();
    for (key, value) in table {
        match value {
            Value::Table(inner) if key != "sync" => {
                let inner = leaves(inner).into_iter();
                found.extend(inner.map(|(name, value)| (format!("{key}.{name}"), value)));
            }
            value => {
                found.insert(key.clone(), value.clone());
            }
        }
    }
    found
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
    for (path, text) in layers.files {
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

/// Lays a table over another. Lists of tables, such as the tokens, are added up.
fn overlay(under: &mut Table, over: Table) {
    for (key, value) in over {
        match (under.get_mut(&key), value) {
            (Some(Value::Table(under)), Value::Table(over)) if key != "sync" => {
                overlay(under, over);
            }
            (Some(Value::Array(under)), Value::Array(over)) if over.iter().all(Value::is_table) => {
                under.extend(over);
            }
            (_, value) => {
                under.insert(key, value);
            }
        }
    }
}

fn in_file(path: &Path, text: &str, error: &toml::de::Error) -> ConfigError {
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
    fn the_parts_beside_a_file_go_over_it_by_name_and_their_tokens_are_added() {
        let place = tempfile::tempdir().unwrap();
        let token = |id: &str| {
            let hash = "1".repeat(64);
            format!("[[auth.token]]\nid = \"{id}\"\nhash = \"{hash}\"\nverbs = [\"push\"]\n")
        };
        let parts = place.path().join("conf.d");
        fs::create_dir(&parts).unwrap();
        let main = place.path().join("ganger.toml");
        fs::write(&main, format!("shards = 2\n{}", token("a"))).unwrap();
        fs::write(parts.join("20.toml"), "shards = 4").unwrap();
        fs::write(parts.join("10.toml"), format!("shards = 3\n{}", token("b"))).unwrap();
        fs::write(parts.join("note.txt"), "no setting").unwrap();
        let layers = Layers {
            files: Layers::read_files(&main).unwrap(),
            environment: vec![("GANGER_LOG__LEVEL".to_owned(), "debug".to_owned())],
            ..Layers::default()
        };
        let origins = layers.origins();
        let (config, _) = Config::load(layers).unwrap();
        assert_eq!(config.shards, 4);
        let ids: Vec<_> = config
            .auth
            .token
            .iter()
            .map(|token| token.id.as_str())
            .collect();
        assert_eq!(ids, ["a", "b"]);
        assert_eq!(
            origins["shards"],
            parts.join("20.toml").display().to_string()
        );
        assert_eq!(origins["log.level"], "GANGER_LOG__LEVEL");
        assert_eq!(origins.get("listen"), None);
    }

    #[test]
    fn a_file_that_is_not_there_is_named() {
        let error = Layers::read_files(Path::new("/nowhere/ganger.toml")).unwrap_err();
        assert_eq!(error.to_string(), "cannot read /nowhere/ganger.toml");
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
