//! `ganger config`: what a server would be told, without starting one. What the settings mean is
//! [`crate::config`]'s.

use std::{
    collections::BTreeMap,
    path::{Path, PathBuf},
};

use serde::Serialize;

use super::{
    error::CliError,
    output::{self, Align, Format, Table},
};
use crate::config::{Config, Layers};

#[derive(Debug, clap::Subcommand)]
pub(super) enum ConfigCommand {
    /// Say what is wrong with a configuration, with its place
    Check(FileArgs),
    /// Show every setting and where it comes from
    Show(ShowArgs),
    /// Print a file with every default, explained
    Default,
}

#[derive(Debug, clap::Args)]
pub(super) struct FileArgs {
    /// The configuration file; `conf.d/*.toml` beside it go over it
    #[arg(value_name = "FILE", env = "GANGER_CONFIG")]
    file: Option<PathBuf>,
}

#[derive(Debug, clap::Args)]
pub(super) struct ShowArgs {
    #[command(flatten)]
    file: FileArgs,
    #[command(flatten)]
    format: Format,
}

/// One setting as it is in force.
#[derive(Debug, Serialize)]
struct Shown {
    value: String,
    from: String,
}

pub(super) fn run(command: &ConfigCommand) -> Result<(), CliError> {
    match command {
        ConfigCommand::Check(args) => check(args),
        ConfigCommand::Show(args) => show(args),
        ConfigCommand::Default => output::line(Config::ANNOTATED.trim_end()),
    }
}

/// The layers of a file, those beside it, and the environment.
pub(super) fn layers(file: Option<&Path>) -> Result<Layers, CliError> {
    let files = file.map(Layers::read_files).transpose()?;
    // A variable that is no text is none of ours.
    let environment = std::env::vars_os()
        .filter_map(|(name, text)| Some((name.into_string().ok()?, text.into_string().ok()?)))
        .collect();
    Ok(Layers {
        files: files.unwrap_or_default(),
        environment,
        ..Layers::default()
    })
}

fn check(args: &FileArgs) -> Result<(), CliError> {
    let (config, remarks) = Config::load(layers(args.file.as_deref())?)?;
    for warning in remarks.into_iter().chain(config.warnings()) {
        output::note(&format!("warning: {warning}"));
    }
    output::line("the configuration is sound")
}

fn show(args: &ShowArgs) -> Result<(), CliError> {
    let layers = layers(args.file.file.as_deref())?;
    let origins = layers.origins();
    let (config, _) = Config::load(layers)?;
    let settings = config.settings().into_iter().map(|(name, value)| {
        let from = origins.get(&name).map_or("default", String::as_str);
        let from = from.to_owned();
        (name, Shown { value, from })
    });
    args.format.print(&settings.collect(), table)
}

fn table(settings: &BTreeMap<String, Shown>) -> String {
    let columns = ["SETTING", "VALUE", "FROM"].map(|title| (title, Align::Left));
    let mut table = Table::new(&columns);
    for (name, shown) in settings {
        table.row([name.clone(), shown.value.clone(), shown.from.clone()]);
    }
    table.render()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn written(text: &str) -> (tempfile::TempDir, FileArgs) {
        let place = tempfile::tempdir().unwrap();
        let path = place.path().join("ganger.toml");
        std::fs::write(&path, text).unwrap();
        let args = FileArgs { file: Some(path) };
        (place, args)
    }

    #[test]
    fn a_sound_file_is_called_so() {
        let (_place, args) = written(Config::ANNOTATED);
        run(&ConfigCommand::Check(args)).unwrap();
        assert_eq!(output::sink::take().0, "the configuration is sound\n");
    }

    #[test]
    fn what_is_wrong_is_told_with_its_place_and_what_was_meant() {
        let (_place, args) = written("shards = 1\nlisetn = \"::1\"\n");
        let error = run(&ConfigCommand::Check(args)).unwrap_err();
        let text = error.to_string();
        assert!(
            text.contains("ganger.toml:2:1: unknown field `lisetn`"),
            "{text}"
        );
        assert!(text.ends_with("hint: did you mean `listen`?"), "{text}");
        assert_eq!(error.exit.code(), 2);
    }

    #[test]
    fn each_setting_is_shown_with_its_origin_and_no_secret() {
        let hash = "1ec1".repeat(16);
        let token = format!("[[auth.token]]\nid = \"a\"\nhash = \"{hash}\"\nverbs = [\"push\"]");
        let (place, file) = written(&format!("shards = 2\n{token}\n"));
        let format = Format { json: true };
        run(&ConfigCommand::Show(ShowArgs { file, format })).unwrap();
        let shown = output::sink::take().0;
        assert!(!shown.contains("1ec1"), "{shown}");
        let shown: serde_json::Value = serde_json::from_str(&shown).unwrap();
        let path = place.path().join("ganger.toml").display().to_string();
        assert_eq!(
            shown["shards"],
            serde_json::json!({ "value": "2", "from": path })
        );
        assert_eq!(shown["heads.count_max"]["value"], "262144");
        assert_eq!(shown["heads.count_max"]["from"], "default");
    }

    #[test]
    fn the_default_file_is_printed_whole() {
        run(&ConfigCommand::Default).unwrap();
        assert_eq!(output::sink::take().0, Config::ANNOTATED);
    }
}
