//! `ganger man`: manual pages, made from the tree of commands.

use std::path::PathBuf;

use clap::CommandFactory as _;

use super::{Cli, error::CliError, output};

#[derive(Debug, clap::Args)]
pub(super) struct ManArgs {
    /// Write a page for each command into this directory
    #[arg(long, value_name = "DIRECTORY")]
    out: Option<PathBuf>,
}

pub(super) fn run(args: &ManArgs) -> Result<(), CliError> {
    match &args.out {
        Some(directory) => clap_mangen::generate_to(Cli::command(), directory).map_err(|error| {
            let message = format!("cannot write manual pages into {}", directory.display());
            CliError::failed(message).because(&error)
        }),
        None => {
            let mut page = Vec::new();
            let rendered = clap_mangen::Man::new(Cli::command()).render(&mut page);
            rendered.map_err(|error| CliError::failed("cannot make the page").because(&error))?;
            output::line(String::from_utf8_lossy(&page).trim_end())
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_page_of_ganger_goes_to_stdout() {
        run(&ManArgs { out: None }).unwrap();
        let page = output::sink::take().0;
        assert!(page.contains(".TH ganger 1"), "{page}");
        assert!(page.contains("Exit codes"), "{page}");
    }

    #[test]
    fn each_command_has_its_page() {
        let place = tempfile::tempdir().unwrap();
        run(&ManArgs {
            out: Some(place.path().to_owned()),
        })
        .unwrap();
        for page in ["ganger.1", "ganger-serve.1", "ganger-dead-revive.1"] {
            assert!(place.path().join(page).exists(), "{page}");
        }
    }

    #[test]
    fn a_directory_that_is_not_there_is_named() {
        let out = Some(PathBuf::from("/nowhere/pages"));
        let error = run(&ManArgs { out }).unwrap_err();
        assert!(error.to_string().contains("/nowhere/pages"), "{error}");
    }
}
